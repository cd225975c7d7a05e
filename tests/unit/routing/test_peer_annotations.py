"""Routers outside as a Node's annotations name them; what is wrong with one leaves out that one."""

import base64
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.problem import Problem
from kube_router_py.routing.model import PASSWORD_MAX, Bfd, is_word
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.peer_annotations import annotated_peers
from kube_router_py.routing.peer_spec import PeerSpec

PEERS = "metadata.annotations[kube-router.io/peers]"
LEFT_OUT = "; this router is left out"


def view(make: Any, annotations: dict[str, str]) -> NodeView:
    named = {f"kube-router.io/{name}": text for name, text in annotations.items()}
    return node_view(make.node(annotations=named))[0]


def read(make: Any, text: str) -> tuple[tuple[PeerSpec, ...], tuple[Problem, ...]]:
    return annotated_peers(view(make, {"peers": text}))


def reasons(problems: tuple[Problem, ...]) -> dict[str, str]:
    assert all(problem.object == "Node node1" for problem in problems)
    return {problem.field: problem.reason for problem in problems}


def spec(index: int = 0, **fields: Any) -> PeerSpec:
    plain = PeerSpec(
        object="Node node1",
        field=f"{PEERS}[{index}]",
        description=f"annotation kube-router.io/peers[{index}]",
        remote_as=65000,
        address=ip_address("192.0.2.1"),
    )
    return structs.replace(plain, **fields)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- YAML ---------------------------------------------------------------------------------------


def test_the_example_of_kube_router(make: Any) -> None:
    text = """
    - remoteip: 192.168.1.99
      remoteasn: 65000
      localip: 10.1.1.1
      password: U2VjdXJlUGFzc3dvcmQK
      port: 1790
    - remoteip: 192.168.1.100
      remoteasn: 4200000001
    """
    specs, problems = read(make, text)
    assert problems == ()
    assert specs == (
        spec(
            address=ip_address("192.168.1.99"),
            local_address=ip_address("10.1.1.1"),
            # What it says ends in a line break, as ``echo`` leaves it.
            password="SecurePassword",
            port=1790,
        ),
        spec(1, address=ip_address("192.168.1.100"), remote_as=4200000001),
    )


def test_the_example_of_the_documentation(make: Any) -> None:
    page = (Path(__file__).parents[3] / "docs/bgp-neighbors.md").read_text(encoding="utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    specs, problems = read(make, text)
    assert problems == ()
    assert [each.address or each.network or each.interface for each in specs] == [
        ip_address("192.0.2.1"),
        ip_address("2001:db8::1"),
        "eth1",
        ip_network("198.51.100.0/24"),
    ]
    assert specs[0].bfd == Bfd(3, 300, 300)
    assert specs[1].secret == SecretRef("kube-router-py-bgp", "tor-2")


def test_everything_that_can_be_said_of_a_router(make: Any) -> None:
    text = f"""
    - RemoteIP: 192.0.2.1
      REMOTEASN: "0xfde8"
      LocalIP: 10.1.1.1
      Port: 1790
      password: {encoded("s3cret!")}
      holdtime: 30s
      multihop: 3
      gracefulrestart: true
      bfd:
        Enabled: true
        port: 3784
        detection_multiplier: 5
        desired_min_tx_interval: 200
        required_min_rx_interval: 300
    - {{remoteip: "2001:db8::1", remoteasn: internal, ttlsecurity: 2, holdtime: 9}}
    - {{interface: eth1, passwordsecretref: {{name: bgp, key: tor-1}}, gtsm: true}}
    - {{listenrange: 10.9.1.1/16, remoteasn: external, gracefulrestart: false}}
    """
    specs, problems = read(make, text)
    assert problems == ()
    assert specs == (
        spec(
            local_address=ip_address("10.1.1.1"),
            port=1790,
            password="s3cret!",
            hold_s=30,
            multihop=3,
            graceful_restart=True,
            bfd=Bfd(detection_multiplier=5, receive_interval_ms=300, transmit_interval_ms=200),
        ),
        spec(1, address=ip_address("2001:db8::1"), remote_as="internal", ttl_security=2, hold_s=9),
        spec(
            2,
            address=None,
            interface="eth1",
            remote_as="external",
            secret=SecretRef("bgp", "tor-1"),
            ttl_security=1,
        ),
        spec(
            3,
            address=None,
            network=ip_network("10.9.0.0/16"),
            remote_as="external",
            graceful_restart=False,
        ),
    )
    assert [each.version for each in specs] == [4, 6, 0, 4]


@pytest.mark.parametrize("text", ["", "  ", "~", "null", "[]", "# nothing", "---"])
def test_no_routers(make: Any, text: str) -> None:
    assert read(make, text) == ((), ())


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "localip: ",
        "localip: ~",
        "localip: null",
        "password: ''",
        "passwordsecretref: null",
        "bfd: ",
        "bfd: {}",
        "bfd: {enabled: false, detection_multiplier: 3}",
        "gtsm: false",
        "ttlsecurity: 'False'",
    ],
)
def test_what_is_empty_is_not_there(make: Any, rest: str) -> None:
    assert read(make, f"[{{remoteip: 192.0.2.1, remoteasn: 65000, {rest}}}]") == ((spec(),), ())


def test_bfd_has_the_defaults_of_kube_router(make: Any) -> None:
    specs, problems = read(make, "[{remoteip: 192.0.2.1, remoteasn: 65000, bfd: {enabled: true}}]")
    assert (specs, problems) == ((spec(bfd=Bfd(3, 1000, 1000)),), ())


def test_bfd_that_frr_cannot_do_comes_as_near_as_it_can(make: Any) -> None:
    bfd = "{enabled: true, port: 4784, detection_multiplier: 1, desired_min_tx_interval: 1}"
    specs, problems = read(make, f"[{{remoteip: 192.0.2.1, remoteasn: 65000, bfd: {bfd}}}]")
    assert specs == (spec(bfd=Bfd(2, 1000, 10)),)
    assert reasons(problems) == {
        f"{PEERS}[0].bfd.port": "4784 is not possible with FRR, 3784 is used; leave the port out",
        f"{PEERS}[0].bfd.detection_multiplier": "1 is not possible with FRR, 2 is used; "
        "choose from 2 to 255",
        f"{PEERS}[0].bfd.desired_min_tx_interval": "1 is not possible with FRR, 10 is used; "
        "choose from 10 to 60000",
    }


@pytest.mark.parametrize(
    ("item", "place", "reason"),
    [
        ("hello", "", "it is no mapping, such as {remoteip: 192.0.2.1}"),
        ("[a, b]", "", "it is no mapping, such as {remoteip: 192.0.2.1}"),
        ("{remoteasn: 65000}", "", "it has no remoteip; give one of "),
        ("{remoteip: 10.0.0.9}", ".remoteasn", "it is missing; give the AS number of the router"),
        ("{listenrange: 10.0.0.0/8}", ".remoteasn", "it is missing"),
        ("{remoteip: 10.0.0.9, interface: eth0, remoteasn: 1}", "", "both remoteip and interface"),
        ("{remoteip: 10.0.0.300, remoteasn: 1}", ".remoteip", "'10.0.0.300' is not an IP address"),
        ("{remoteip: 127.0.0.1, remoteasn: 1}", ".remoteip", "'127.0.0.1' is a loopback address"),
        ("{remoteip: 'fe80::1', remoteasn: 1}", ".remoteip", "which needs its interface"),
        ("{remoteip: 'fd00::1%e', remoteasn: 1}", ".remoteip", "'fd00::1%e' has a zone"),
        ('{remoteip: "10.0.0.9\\0x", remoteasn: 1}', ".remoteip", r"'10.0.0.9\x00x' is not an"),
        ("{remoteip: [10.0.0.9], remoteasn: 1}", ".remoteip", "it is a list or a mapping"),
        ("{remoteip: 10.0.0.9, remoteasn: 0}", ".remoteasn", "'0' is not an AS number, internal"),
        ("{remoteip: 10.0.0.9, remoteasn: 23456}", ".remoteasn", "is reserved or not an AS number"),
        ("{remoteip: 10.0.0.9, remoteasn: 65535}", ".remoteasn", "is reserved"),
        ("{remoteip: 10.0.0.9, remoteasn: 4294967296}", ".remoteasn", "is not an AS number"),
        ("{remoteip: 10.0.0.9, remoteasn: 6.5e4}", ".remoteasn", "'6.5e4' is not an AS number"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, port: 0}", ".port", "'0' is not a port"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, port: 65536}", ".port", "'65536' is not a port"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, localip: x}", ".localip", "'x' is not an IP address"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, holdtime: 2}", ".holdtime", "'2' is not a time in"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, multihop: 256}", ".multihop", "'256' is not a number"),
        ("{remoteip: 10.0.0.9, remoteasn: 1, gtsm: 255}", ".gtsm", "'255' is not a number of hops"),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, ttlsecurity: x}",
            ".ttlsecurity",
            "'x' is not a number",
        ),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, gtsm: 1, multihop: 2}",
            ".multihop",
            "it excludes gtsm",
        ),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, gracefulrestart: yes}",
            ".gracefulrestart",
            "'yes' is",
        ),
        ("{remoteip: 10.0.0.9, remoteasn: 1, bfd: true}", ".bfd", "it is no mapping, such as"),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, bfd: {enabled: on}}",
            ".bfd.enabled",
            "'on' is neither",
        ),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, bfd: {detection_multiplier: 256}}",
            ".bfd.detection_multiplier",
            "'256' is not a number; write a number from 1 to 255",
        ),
        (
            "{remoteip: 10.0.0.9, remoteasn: 1, bfd: {desired_min_tx_interval: 0}}",
            ".bfd.desired_min_tx_interval",
            "'0' is not a number of milliseconds",
        ),
        ("{interface: 'eth 0'}", ".interface", "'eth 0' is not the name of an interface"),
        ("{interface: 'eth0\\nno router bgp'}", ".interface", "is not the name of an interface"),
        ("{interface: eth0, localip: 10.0.0.1}", ".localip", "a router behind an interface has"),
        ("{interface: eth0, multihop: 2}", ".multihop", "behind an interface a router is near"),
        ("{interface: eth0, gtsm: 2}", ".gtsm", "a router is 1 hop away; write true"),
        ("{listenrange: 10.0.0.0, remoteasn: 1}", ".listenrange", "'10.0.0.0' is not a CIDR"),
        ("{listenrange: 10.0.0.0/8, remoteasn: 1, port: 179}", ".port", "are not called"),
        ("{interface: eth0, password: secret!}", ".password", "it is not base64; encode"),
        (
            "{interface: eth0, password: c2VjcmV0, passwordsecretref: {name: a, key: b}}",
            ".passwordsecretref",
            "there is a password besides; leave out one of them",
        ),
        ("{interface: eth0, passwordsecretref: a}", ".passwordsecretref", "it is no mapping"),
        (
            "{interface: eth0, passwordsecretref: {name: a}}",
            ".passwordsecretref.key",
            "it is missi",
        ),
        (
            "{interface: eth0, passwordsecretref: {name: ../a, key: b}}",
            ".passwordsecretref.name",
            "'../a' is nothing that Secrets or their keys are called",
        ),
        (
            f"{{remoteip: {'1' * 300}, remoteasn: 1}}",
            ".remoteip",
            "it is longer than 256 characters; shorten it",
        ),
    ],
)
def test_what_is_wrong_with_one_router_leaves_out_that_one(
    make: Any, item: str, place: str, reason: str
) -> None:
    good = "{remoteip: 192.0.2.1, remoteasn: 65000}"
    specs, problems = read(make, f"[{good}, {item}, {good.replace('2.1', '2.2')}]")
    assert specs == (spec(), spec(2, address=ip_address("192.0.2.2")))
    assert [problem.field for problem in problems] == [f"{PEERS}[1]{place}"]
    assert reason in problems[0].reason
    assert problems[0].reason.endswith(LEFT_OUT)


def test_all_that_is_wrong_with_a_router_is_told_at_once(make: Any) -> None:
    specs, problems = read(make, "[{remoteip: x, remoteasn: y, port: z, bfd: {enabled: w}}]")
    assert specs == ()
    assert sorted(reasons(problems)) == [
        f"{PEERS}[0].{place}" for place in ("bfd.enabled", "port", "remoteasn", "remoteip")
    ]


def test_unknown_keys_are_told_and_ignored(make: Any) -> None:
    specs, problems = read(
        make,
        "[{remoteip: 192.0.2.1, remoteasn: 65000, pasword: x, zzz: 1, bfd: {enable: true}}]",
    )
    assert specs == (spec(),)
    assert [str(problem) for problem in problems] == [
        f"Node node1 {PEERS}[0]: the key 'pasword' (and 1 more) is unknown and ignored; "
        "did you mean password?",
        f"Node node1 {PEERS}[0].bfd: the key 'enable' is unknown and ignored; "
        "did you mean enabled?",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("remoteip: 10.0.0.1", "it is no list; write each router like - {remoteip: 192.0.2.1,"),
        ("hello", "it is no list"),
        ("- {a: 1\n- b", "it is no YAML in line 2; write each router like"),
        ("- a\n--- \n- b", "it is no YAML in line 2"),
        ("- {[a]: b}", "it is no YAML in line 1"),
        ("- a\0b", "it is no YAML; write"),
        ("[" * 20000, "it is no YAML; write"),
        ("- !!python/object:os.system a\n- *b", "it is no YAML in line 2"),
        ("- a\n" * 20000, "it is longer than 65536 characters; give fewer routers"),
    ],
)
def test_what_is_no_list_of_routers(make: Any, text: str, reason: str) -> None:
    specs, problems = read(make, text)
    assert specs == ()
    assert len(problems) == 1
    assert problems[0].field == PEERS
    assert problems[0].reason.startswith(reason)


def test_so_many_routers_are_read_and_no_more(make: Any) -> None:
    items = [f"{{remoteip: 10.0.{n}.1, remoteasn: 1}}" for n in range(255)]
    text = f"[{','.join([*items, items[0], items[1]])}]"
    specs, problems = read(make, text)
    assert len(specs) == 256
    assert reasons(problems) == {PEERS: "it has 257 routers; the first 256 count"}


def test_aliases_that_explode_do_not(make: Any) -> None:
    """Each level is ten of the one before: 10**9 in all, if anyone walked them."""
    lines = ["- &a [x,x,x,x,x,x,x,x,x,x]"]
    for one, other in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"- &{other} [{','.join([f'*{one}'] * 10)}]")
    lines.append("- {remoteip: *i, remoteasn: 1, bfd: *i}")
    specs, problems = read(make, "\n".join(lines))
    assert specs == ()
    assert all(len(problem.reason) < 200 for problem in problems)
    assert read(make, "&a [*a, {remoteip: *a, bfd: &b {enabled: *b, x: *b}}]")[0] == ()


# --- lists --------------------------------------------------------------------------------------


def lists(make: Any, **texts: str) -> tuple[tuple[PeerSpec, ...], tuple[Problem, ...]]:
    return annotated_peers(view(make, {f"peer.{name}": text for name, text in texts.items()}))


def field(name: str, index: int | None = None) -> str:
    place = "" if index is None else f"[{index}]"
    return f"metadata.annotations[kube-router.io/peer.{name}]{place}"


def row(index: int, **fields: Any) -> PeerSpec:
    place = f"kube-router.io/peer.ips[{index}]"
    return spec(description=f"annotation {place}", field=field("ips", index), **fields)


def test_parallel_lists(make: Any) -> None:
    specs, problems = lists(
        make,
        ips="192.0.2.1, 2001:db8::1",
        asns="65000,65001",
        ports="1790,",
        passwords=f",{encoded('secret')}",
        localips=",fd00::1",
    )
    assert problems == ()
    assert specs == (
        row(0, port=1790),
        row(
            1,
            address=ip_address("2001:db8::1"),
            remote_as=65001,
            password="secret",
            local_address=ip_address("fd00::1"),
        ),
    )


def test_ports_passwords_and_local_addresses_may_be_missing(make: Any) -> None:
    expected = ((row(0),), ())
    assert lists(make, ips="192.0.2.1", asns="65000") == expected
    blank = {"ports": "", "passwords": "", "localips": " "}
    assert lists(make, ips="192.0.2.1", asns="65000", **blank) == expected
    assert lists(make) == ((), ())
    assert lists(make, ips="", asns="") == ((), ())


def test_the_newer_annotation_suppresses_the_lists(make: Any) -> None:
    annotations = {"peer.ips": "192.0.2.9", "peer.asns": "65000"}
    for text in ("", "nonsense", "[]"):
        specs, problems = annotated_peers(view(make, {**annotations, "peers": text}))
        assert specs == ()
        assert all(problem.field == PEERS for problem in problems)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"ips": "192.0.2.1"}, {"asns": 0}),
        ({"asns": "65000"}, {"ips": 0}),
        ({"ips": "192.0.2.1,192.0.2.2", "asns": "65000"}, {"asns": 1}),
        ({"ips": "192.0.2.1", "asns": "65000", "ports": "1,2"}, {"ports": 2}),
        ({"ips": "192.0.2.1,192.0.2.2", "asns": "1,2", "passwords": "YQ=="}, {"passwords": 1}),
        ({"ips": "192.0.2.1", "asns": "1", "localips": ","}, {"localips": 2}),
    ],
)
def test_lists_of_unequal_lengths_name_nobody(
    make: Any, texts: dict[str, str], told: dict[str, int]
) -> None:
    specs, problems = lists(make, **texts)
    assert specs == ()
    assert reasons(problems).keys() == {field(name) for name in told}
    for problem, count in zip(problems, told.values(), strict=True):
        assert problem.reason.startswith(f"it has {count} items where the other lists have ")
        assert problem.reason.endswith("; give one for each router, in the same order")


def test_what_is_wrong_with_one_item_leaves_out_that_router(make: Any) -> None:
    specs, problems = lists(
        make,
        ips="192.0.2.x,192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4,",
        asns="65000,65000,none,65000,65000,65000",
        ports=",,,0,,",
        passwords=",,,,hidden!,",
    )
    assert specs == (row(1),)
    assert reasons(problems) == {
        field("ips", 0): "'192.0.2.x' is not an IP address; write it like 192.0.2.1 or "
        f"2001:db8::1{LEFT_OUT}",
        field("asns", 2): "'none' is not an AS number, internal or external; write a number from "
        f"1 to 4294967295{LEFT_OUT}",
        field("ports", 3): f"'0' is not a port; write a number from 1 to 65535{LEFT_OUT}",
        field("passwords", 4): "it is not base64; encode the password: printf %s PASSWORD | "
        f"base64{LEFT_OUT}",
        field("ips", 5): "'' is not an IP address; write it like 192.0.2.1 or 2001:db8::1"
        f"{LEFT_OUT}",
    }


def test_over_long_lists_name_nobody(make: Any) -> None:
    specs, problems = lists(make, ips="192.0.2.1," * 300, asns="1," * 300)
    assert specs == ()
    assert reasons(problems) == {field("ips"): "it has more than 256 routers; give fewer"}
    specs, problems = lists(make, ips="x" * 70000, asns="1")
    assert specs == ()
    assert f"{field('ips')}" in reasons(problems)


# --- whatever comes -----------------------------------------------------------------------------

NASTY = st.one_of(
    st.text(max_size=20),
    st.text(st.sampled_from("0123456789abcdef.:/%-= \n\r\0\x7f!#\"'"), max_size=20),
    st.sampled_from(
        ["192.0.2.1", "fd00::1", "65000", "eth0", "10.0.0.0/8", "true", "c2VjcmV0", "YQpi", "90s"]
    ),
)
KEYS = st.sampled_from(
    [
        "remoteip",
        "remoteasn",
        "localip",
        "port",
        "password",
        "passwordsecretref",
        "holdtime",
        "multihop",
        "gtsm",
        "ttlsecurity",
        "interface",
        "listenrange",
        "gracefulrestart",
        "bfd",
        "enabled",
        "name",
        "key",
        "<<",
    ]
)
ITEMS = st.recursive(
    NASTY,
    lambda inner: st.dictionaries(KEYS | NASTY, inner, max_size=6) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def check(specs: tuple[PeerSpec, ...], problems: tuple[Problem, ...]) -> None:
    """Nothing but typed values and words that FRR takes as one; no password is ever told."""
    for each in specs:
        assert bool(each.interface) + (each.address is not None) + (each.network is not None) == 1
        assert not each.interface or is_word(each.interface)
        assert "%" not in str(each.address) + str(each.local_address)
        assert each.password.isprintable()
        assert len(each.password.split()) == bool(each.password)
        assert len(each.password.encode()) <= PASSWORD_MAX
        assert 1 <= each.port <= 65535
        assert isinstance(each.remote_as, int) or each.remote_as in ("internal", "external")
        assert each.description.isprintable()
        assert each.secret is None or (each.secret.name and "/" not in str(each.secret.name))
    for problem in problems:
        assert problem.object == "Node node1"
        assert problem.field.startswith("metadata.annotations[kube-router.io/peer")
        assert (problem.field + problem.reason).isprintable()
        assert len(problem.reason) < 400


@given(st.text(max_size=60) | st.text(st.sampled_from("[]{}:,-&*a!<|>'\"\n %?#0"), max_size=60))
@example("- !!timestamp 2001-99-99")
@example("- !!int x")
@example("- ? {a: b}\n  : c")
def test_whatever_the_annotation_says(make: Any, text: str) -> None:
    check(*read(make, text))


@given(st.lists(ITEMS, max_size=4))
def test_whatever_routers_are_described_as(make: Any, items: list[Any]) -> None:
    good = {"remoteip": "192.0.2.77", "remoteasn": "65077"}
    specs, problems = read(make, yaml.safe_dump([*items, good], allow_unicode=True))
    check(specs, problems)
    # The last one is read whatever the others are.
    expected = spec(len(items), address=ip_address("192.0.2.77"), remote_as=65077)
    assert specs[-1] == expected
    assert all(not problem.field.startswith(expected.field) for problem in problems)
    # Each that is left out is told.
    read_of = {each.field for each in specs}
    for index in range(len(items)):
        place = f"{PEERS}[{index}]"
        assert place in read_of or any(problem.field.startswith(place) for problem in problems)


@given(st.lists(st.tuples(NASTY, NASTY, NASTY, NASTY, NASTY), max_size=4))
def test_whatever_the_lists_say(make: Any, rows: list[tuple[str, ...]]) -> None:
    names = ("ips", "asns", "ports", "passwords", "localips")
    columns = zip(*rows, strict=True) if rows else [()] * 5
    texts = {name: ",".join(column) for name, column in zip(names, columns, strict=True)}
    check(*lists(make, **texts))
