"""FRR's configuration: golden texts, what they may never hold, and what they mean."""

import os
import re
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_policy import DISTINCT_LISTS, Class, class_tags
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running
from kube_router_py.routing.model import (
    Community,
    Kind,
    Neighbor,
    PrefixRange,
    Role,
    RouterConfig,
    Session,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "frr"
# Without the module's values, which a test has only from a fixture: its names.
NAMES = sorted(path.stem for path in GOLDEN.glob("*.txt"))


@pytest.fixture(scope="module")
def cases(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_cases")


def document(rendered: FrrConfig) -> str:
    return "".join(f"# {daemon}\n{rendered.text(daemon)}" for daemon in DAEMONS)


def test_goldens_are_those_of_the_cases(cases: Any) -> None:
    """UPDATE_GOLDEN=1 writes the texts instead; read the difference before committing it."""
    if os.environ.get("UPDATE_GOLDEN"):
        for name, config in cases.CASES.items():
            (GOLDEN / f"{name}.txt").write_text(document(render_frr(config)))
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(cases.CASES)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, cases: Any) -> None:
    rendered = render_frr(cases.CASES[name])
    assert document(rendered) == (GOLDEN / f"{name}.txt").read_text()
    assert parse_running({each: rendered.text(each) for each in DAEMONS}) == structs.replace(
        rendered, listen=(), port=179
    )
    for daemon in DAEMONS:
        for line in rendered.text(daemon).splitlines():
            assert not re.search(
                "ip(v6)? forwarding|check-control-plane|aggregate-address", line
            ), line


# --- reading back ---------------------------------------------------------------------------

ECHO = """
Current configuration:
!
frr version 8.4.4
frr defaults datacenter
!
hostname worker-1
log file /var/log/frr.log
! "log stdout debugging" enabled by "--log" startup option
!
ip prefix-list krp-refuse seq 9 permit 0.0.0.0/0
ip prefix-list krp-refuse seq 10 permit 10.0.0.0/8 le 32
!
route-map krp-from-nodes permit 30
exit
!
router bgp 64512
 bgp router-id 10.9.0.1
 neighbor 10.9.0.2 remote-as internal
 neighbor 10.9.0.2 password !x
 !
 address-family ipv4 unicast
  neighbor 10.9.0.2 activate
 exit-address-family
 !
 address-family ipv6 unicast
 exit-address-family
exit
!
no ip forwarding
no ipv6 forwarding
!
end
"""


def test_an_echo_is_read_without_what_the_host_says() -> None:
    read = parse_running({"bgpd": ECHO})
    assert [(each.path, each.lines) for each in read.bgpd] == [
        (
            (),
            (
                "ip prefix-list krp-refuse seq 9 permit 0.0.0.0/0",
                "ip prefix-list krp-refuse seq 10 permit 10.0.0.0/8 le 32",
            ),
        ),
        (("route-map krp-from-nodes permit 30",), ()),
        (
            ("router bgp 64512",),
            (
                "bgp router-id 10.9.0.1",
                "neighbor 10.9.0.2 remote-as internal",
                "neighbor 10.9.0.2 password !x",
            ),
        ),
        (
            ("router bgp 64512", "address-family ipv4 unicast"),
            ("neighbor 10.9.0.2 activate",),
        ),
    ]
    assert (read.zebra, read.bfdd, read.has_bfd) == ((), (), False)
    assert (read.asn, read.router_id) == (64512, IPv4Address("10.9.0.1"))


def test_a_daemon_without_configuration_has_no_router() -> None:
    read = parse_running({"bgpd": "frr defaults datacenter\n"})
    assert (read.asn, read.router_id, read.bgpd) == (None, None, ())


@given(st.integers(0, 2**32))
def test_what_is_rendered_is_read_back(cases: Any, seed: int) -> None:
    rendered = render_frr(cases.Walk(seed).config)
    assert parse_running({each: rendered.text(each) for each in DAEMONS}) == rendered


@given(st.integers(0, 2**32))
def test_the_order_of_the_values_does_not_matter(cases: Any, seed: int) -> None:
    config = cases.Walk(seed).config
    chance = Random(seed)
    shuffled = structs.replace(
        config,
        **{
            name: tuple(chance.sample(each, len(each)))
            for name, each in structs.asdict(config).items()
            if isinstance(each, tuple)
        },
    )
    assert render_frr(shuffled) == render_frr(config)


# --- text from outside ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    ["a b", "a\nno router bgp 64512", "a\0b", "\t", "x\x7f", "x" * 81, "é" * 41, "\ud800"],
)
def test_a_password_of_more_than_one_word_is_refused_without_being_told(
    cases: Any, password: str
) -> None:
    config = cases.router(neighbors=(cases.outside("10.9.0.9", password=password),))
    with pytest.raises(ValueError, match=r"^the password of 10\.9\.0\.9 is not at most 80 bytes"):
        render_frr(config)


@pytest.mark.parametrize("name", ["", "eth0 interface", "eth0\nexit", "e" * 64, "eth0/1"])
def test_an_odd_interface_is_refused(name: str, cases: Any) -> None:
    config = cases.router(neighbors=(structs.replace(cases.link("eth0"), interface=name),))
    with pytest.raises(ValueError, match="is no name of an interface"):
        render_frr(config)


@given(st.text(max_size=200))
def test_a_description_stays_one_line_of_its_neighbor(cases: Any, text: str) -> None:
    plain = cases.router(neighbors=(cases.outside("10.9.0.9"),))
    told = cases.router(neighbors=(cases.outside("10.9.0.9", description=text),))
    new = set(render_frr(told).text("bgpd").splitlines())
    more = new - set(render_frr(plain).text("bgpd").splitlines())
    assert len(more) <= 1
    for line in more:
        assert re.fullmatch(r" neighbor 10\.9\.0\.9 description [\x21-\x7e][\x20-\x7e]{0,79}", line)
        assert not line.endswith(" ")


def test_passwords_are_hidden_from_people(cases: Any) -> None:
    rendered = render_frr(cases.CASES["external"])
    assert " neighbor 10.9.0.253 password <masked>" in rendered.masked("bgpd").splitlines()
    assert "k8s" not in rendered.masked("bgpd")
    assert len(rendered.masked("bgpd").splitlines()) == len(rendered.text("bgpd").splitlines())
    group = render_frr(cases.CASES["listen-ranges"])
    assert "secret" in group.text("bgpd")
    assert "secret" not in group.masked("bgpd")


# --- policy ---------------------------------------------------------------------------------


def lines(rendered: FrrConfig, *path: str) -> tuple[str, ...]:
    (found,) = (each.lines for each in rendered.bgpd if each.path == path)
    return found


def maps(rendered: FrrConfig, start: str = "") -> set[str]:
    return {
        each.path[0].split()[1]
        for each in rendered.bgpd
        if each.path and each.path[0].startswith(f"route-map {start}")
    }


FAMILY = ("router bgp 64512", "address-family ipv4 unicast")


def test_thousands_of_prefixes_share_few_route_maps(cases: Any) -> None:
    vips = [
        cases.vip(
            f"10.{n >> 8}.{n & 255}.1/32",
            local_preference=(None, 200)[n % 2],
            peers=(None, ("10.9.0.253",))[n // 2 % 2],
        )
        for n in range(5000)
    ]
    both = (cases.outside("10.9.0.253"), cases.outside("10.9.0.254"))
    rendered = render_frr(cases.router(neighbors=both, announcements=tuple(vips)))
    assert len(maps(rendered, "krp-class-")) == 5  # with that of Pod CIDRs
    assert len(maps(rendered, "krp-out-")) == 2
    networks = [each for each in lines(rendered, *FAMILY) if each.startswith("network ")]
    assert len(networks) == 5000
    assert sum("prefix-list" in line for line in lines(rendered)) == 2  # the default routes


def test_neighbors_that_hear_the_same_share_a_route_map(cases: Any) -> None:
    near = tuple(cases.node(f"10.9.0.{n}", f"10.244.{n}.0/24") for n in range(2, 100))
    far = tuple(cases.outside(f"10.9.1.{n}") for n in range(2, 100))
    rendered = render_frr(cases.router(neighbors=near + far))
    assert len(maps(rendered, "krp-out-")) == 2
    assert maps(rendered, "krp-from-") == {"krp-from-nodes", "krp-from-outside"}


def test_what_goes_to_nobody_is_no_line(cases: Any) -> None:
    rendered = render_frr(cases.CASES["policy"])
    networks = [each.split()[1] for each in lines(rendered, *FAMILY) if each.startswith("network")]
    assert "192.0.2.6/32" not in networks
    assert "192.0.2.5/32" in networks


def test_a_pod_cidr_that_is_a_service_address_too_goes_where_pod_cidrs_go(cases: Any) -> None:
    both = (cases.vip("10.244.1.0/24"), cases.pods("10.244.1.0/24"))
    for order in (both, both[::-1]):
        rendered = render_frr(cases.router(announcements=order))
        (line,) = (each for each in lines(rendered, *FAMILY) if each.startswith("network "))
        assert lines(rendered, f"route-map {line.split()[3]} permit 10") == ("set tag 1",)


def test_nested_aggregates_stand_side_by_side(cases: Any) -> None:
    def aggregate(prefix: str, *keys: str) -> Any:
        return cases.Aggregate(prefix=ip_network(prefix), specific_to=keys)

    config = cases.router(
        neighbors=(cases.outside("10.9.0.253"),),
        announcements=(cases.vip("192.0.2.9/32"), cases.vip("2001:db8::1/128")),
        aggregates=(
            aggregate("192.0.0.0/16", "10.9.0.253"),
            aggregate("192.0.2.0/24"),
            aggregate("192.0.3.0/24"),
        ),
    )
    networks = [
        line.split()[1]
        for line in lines(render_frr(config), *FAMILY)
        if line.startswith("network ")
    ]
    # The closest one says who gets the specific one: nobody.
    assert networks == ["192.0.0.0/16", "192.0.2.0/24"]


numbers = st.integers(0, 3)
some_classes = st.lists(
    st.builds(
        Class,
        st.sampled_from(list(Kind)),
        st.lists(st.builds(Community, st.tuples(numbers, numbers)), max_size=2).map(tuple),
        st.none() | numbers,
        st.none() | st.lists(st.sampled_from(["10.9.0.2", "eth0", "fd00::1"])).map(tuple),
    ),
    max_size=12,
)


@given(some_classes)
def test_classes_have_tags_of_their_own(classes: list[Class]) -> None:
    plain = {Class(Kind.PODS): 1, Class(Kind.SERVICE): 3}
    tags = class_tags(classes)
    assert set(tags) == {*classes, *plain}
    assert len(set(tags.values())) == len(tags)
    assert all(16 <= tags[each] < 2**32 for each in classes if each not in plain)
    for each in classes:
        assert class_tags([each]) == {**plain, each: tags[each]}


def test_classes_that_hash_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kube_router_py.routing.frr_policy._number", lambda first, *parts: 2**32 - 1
    )
    three = [Class(Kind.SERVICE, (), preference) for preference in (1, 2, 3)]
    assert [class_tags(three)[each] for each in three] == [2**32 - 1, 16, 17]


def entries(rendered: FrrConfig, name: str) -> list[str]:
    return [line for line in lines(rendered) if f"prefix-list {name} " in line]


def accept_of(rendered: FrrConfig, address: str) -> str:
    (line,) = (
        each
        for each in lines(rendered, *FAMILY)
        if each.startswith(f"neighbor {address} prefix-list ")
    )
    return line.split()[3]


def test_each_node_announces_its_own_until_there_are_too_many(cases: Any) -> None:
    def mesh(count: int) -> FrrConfig:
        near = tuple(
            cases.node(f"10.9.{n >> 8}.{n & 255}", f"10.244.{n}.0/24") for n in range(2, count + 2)
        )
        other = cases.outside("10.9.9.9", accept=(cases.exact("198.18.0.0/24"),))
        return render_frr(cases.router(neighbors=(*near, other)))

    few = mesh(DISTINCT_LISTS)
    own = entries(few, accept_of(few, "10.9.0.77"))
    assert [each.partition(" permit ")[2] for each in own] == ["10.244.77.0/24"]
    many = mesh(DISTINCT_LISTS + 1)
    into = {
        each.split()[3]
        for each in lines(many, *FAMILY)
        if each.endswith(" in") and not each.startswith("neighbor 10.9.9.9 ")
    }
    assert into == {"krp-from-crowd"}
    # 2 to 102, as few networks as hold them and no other /24; told once for all.
    assert lines(many, "route-map krp-from-crowd permit 30") == (
        "match ip address prefix-list krp-from-crowd",
        "set tag 2",
    )
    assert sorted(
        each.partition(" permit ")[2] for each in entries(many, "krp-from-crowd")
    ) == sorted(
        [
            "10.244.2.0/23 ge 24 le 24",
            "10.244.4.0/22 ge 24 le 24",
            "10.244.8.0/21 ge 24 le 24",
            "10.244.16.0/20 ge 24 le 24",
            "10.244.32.0/19 ge 24 le 24",
            "10.244.64.0/19 ge 24 le 24",
            "10.244.96.0/22 ge 24 le 24",
            "10.244.100.0/23 ge 24 le 24",
            "10.244.102.0/24",
        ]
    )
    assert not any("10.9.0.2 " in each and "prefix-list" in each for each in lines(many, *FAMILY))
    outside = entries(many, accept_of(many, "10.9.9.9"))
    assert [each.partition(" permit ")[2] for each in outside] == ["198.18.0.0/24"]


def test_an_entry_of_what_is_refused_keeps_its_number(cases: Any) -> None:
    first = cases.CASES["imports"]
    more = structs.replace(first, refuse=(*first.refuse, cases.exact("10.1.2.0/24")))
    new = set(lines(render_frr(more)))
    old = set(lines(render_frr(first)))
    assert old < new
    (entry,) = new - old
    assert entry.endswith(" permit 10.1.2.0/24")


SMALL = ip_network("10.0.0.0/26")


@st.composite
def ranges(draw: st.DrawFn) -> PrefixRange:
    length = draw(st.integers(26, 32))
    number = draw(st.integers(0, 2 ** (length - 26) - 1))
    network = ip_network((int(SMALL.network_address) + (number << (32 - length)), length))
    shortest = draw(st.integers(26, 32))
    return PrefixRange(network, shortest, draw(st.integers(shortest, 32)))


ENTRY = re.compile(r"ip prefix-list \S+ seq \d+ (permit|deny) (\S+)(?: ge (\d+))?(?: le (\d+))?")


def admits(entry: str, network: Any) -> bool:
    """As FRR reads an entry (prefix-list(5) of Cisco's manuals)."""
    found = ENTRY.fullmatch(entry)
    assert found is not None, entry
    whole = ip_network(found[2])
    shortest = int(found[3] or whole.prefixlen)
    longest = int(found[4] or (whole.max_prefixlen if found[3] else whole.prefixlen))
    is_inside = network.subnet_of(whole) and shortest <= network.prefixlen <= longest
    return bool(is_inside and found[1] == "permit")


@given(st.lists(ranges(), max_size=6))
def test_a_list_admits_exactly_the_ranges(cases: Any, wanted: list[PrefixRange]) -> None:
    rendered = render_frr(
        cases.router(neighbors=(cases.outside("10.9.0.9", versions=(4,), accept=tuple(wanted)),))
    )
    found = entries(rendered, accept_of(rendered, "10.9.0.9"))
    assert found
    for length in range(26, 33):
        for network in SMALL.subnets(new_prefix=length):
            is_wanted = any(
                network.subnet_of(each.network)  # type: ignore[arg-type]
                and each.shortest <= network.prefixlen <= each.longest
                for each in wanted
            )
            assert any(admits(entry, network) for entry in found) == is_wanted, network


# --- neighbors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote_as", "multihop", "expected"),
    [
        ("external", 1, ""),
        ("external", 2, "ebgp-multihop 2"),
        (65000, 300, "ebgp-multihop 255"),
        (64512, 5, ""),
        ("internal", 5, ""),
    ],
)
def test_hops_are_counted_outside_of_the_as_only(
    cases: Any, remote_as: Any, multihop: int, expected: str
) -> None:
    one = cases.outside("10.9.0.9", remote_as, multihop=multihop)
    text = render_frr(cases.router(neighbors=(one,))).text("bgpd")
    found = re.findall(r"neighbor \S+ (\S+-multihop.*)", text)
    assert found == ([expected] if expected else [])


def test_what_is_set_is_set_for_whom_it_concerns(cases: Any) -> None:
    """FRR announces nothing outside that it knows as ``no-export``: communities are set last."""
    rendered = render_frr(cases.CASES["policy"])
    for name in maps(rendered, "krp-class-"):
        (line,) = lines(rendered, f"route-map {name} permit 10")
        assert line.startswith("set tag ")
    external, internal = (
        [each for each in rendered.bgpd if each.path and f" {name} " in each.path[0]]
        for name in (out_of(rendered, "10.9.0.253"), out_of(rendered, "10.9.0.254"))
    )
    # Two plain ones, and of six others (192.0.2.6 goes to nobody) not that of 192.0.2.4.
    assert (len(external), len(internal)) == (2 + 5, 2 + 6)
    for each in external:
        assert "set as-path prepend 65010 65010" in each.lines
        assert not any("local-preference" in line for line in each.lines)
    for each in internal:
        assert not any("as-path" in line for line in each.lines)
    assert {line for each in internal for line in each.lines if "local-preference" in line} == {
        f"set local-preference {n}" for n in (50, 0, 4294967295)
    }
    assert "set community 65000:9 65000:100 blackhole no-export additive" in {
        line for each in external for line in each.lines
    }


def out_of(rendered: FrrConfig, key: str) -> str:
    (line,) = (
        each
        for each in lines(rendered, *FAMILY)
        if each.startswith(f"neighbor {key} route-map krp-out")
    )
    return line.split()[3]


def test_kinds_go_where_they_belong(cases: Any) -> None:
    """The tags that each neighbor's route-map permits."""

    def tags(config: RouterConfig, key: str) -> set[int]:
        rendered = render_frr(config)
        name = out_of(rendered, key)
        return {
            int(found.split()[2])
            for each in rendered.bgpd
            if each.path and each.path[0].startswith(f"route-map {name} permit")
            for found in each.lines
            if found.startswith("match tag")
        }

    reflector = cases.CASES["reflector"]
    assert tags(cases.CASES["full-mesh"], "10.9.0.2") == {1}
    assert tags(reflector, "10.9.0.2") == tags(reflector, "10.9.0.4") == {1, 2}
    assert tags(reflector, "10.9.0.254") == {1, 3}
    assert tags(cases.CASES["external"], "10.9.0.253") == {3}
    assert tags(cases.CASES["reflector-client"], "10.9.0.2") == {1}
    one = Neighbor(
        address=ip_address("10.9.0.9"),
        session=Session(role=Role.NODE, remote_as="internal", versions=(4,)),
    )
    chosen = cases.vip("192.0.2.1/32", peers=("10.9.0.9",))
    assert chosen.kind is Kind.SERVICE
    assert tags(cases.router(neighbors=(one,), announcements=(chosen,)), "10.9.0.9") == {1}
