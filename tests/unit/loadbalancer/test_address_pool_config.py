"""What the ConfigMap of address pools may say, and every way in which it may be wrong."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kube_router_py import pool_reader
from kube_router_py.address_pool_config import (
    CONFIG_MAP,
    KEY,
    LONGEST,
    PoolSettings,
    compile_pools,
    flag_pool,
    parse_config,
    pool_settings,
)
from kube_router_py.address_pools import AddressRange, Announcing, Pool
from kube_router_py.address_ranges import overlap, overlaps, parse_range
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.options import parse as parse_options
from kube_router_py.problem import Problem

SUBJECT = "ConfigMap kube-system/kube-router-address-pools"
SETTINGS = PoolSettings(cluster_ranges=(ip_network("10.96.0.0/12"),), ipv6=True)
WITH_FLAG = PoolSettings(ranges=(ip_network("203.0.113.0/24"),), ipv6=True)


def between(first: str, last: str) -> AddressRange:
    return AddressRange(ip_address(first), ip_address(last))


def mistakes(text: str, settings: PoolSettings = SETTINGS) -> dict[str, str]:
    problems = parse_config(text, settings).problems
    assert {each.object for each in problems} <= {SUBJECT}
    return {each.field: each.reason for each in problems}


def names(compiled: Any) -> list[str]:
    return [pool.name for pool in compiled.pools.pools]


# --- what may be written --------------------------------------------------------------------------


def test_all_fields() -> None:
    parsed = parse_config(
        """
- name: outside
  addresses: [192.0.2.0/24, 198.51.100.7-198.51.100.9, '198.51.100.1', "2001:db8::/64"]
  autoAssign: false
  avoidBuggyIPs: true
  priority: 7
  namespaces: [shop, web]
  namespaceSelector: {matchLabels: {tier: 1}}
  serviceSelector:
    matchLabels: {example.com/app: web, empty: }
    matchExpressions:
    - {key: stage, operator: NotIn, values: [test]}
    - {key: public, operator: Exists}
  reallocate: true
  announce:
    bgp: false
    layer2: true
    interfaces: [eth0, bond*]
    nodeSelector: {matchLabels: {edge: ""}}
    communities: [65000:100, no-export]
    localPreference: 200
""",
        SETTINGS,
    )
    assert parsed.problems == ()
    assert parsed.pools == (
        Pool(
            "outside",
            (
                between("192.0.2.0", "192.0.2.255"),
                between("198.51.100.7", "198.51.100.9"),
                between("198.51.100.1", "198.51.100.1"),
                between("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
            ),
            auto_assign=False,
            avoid_buggy_ips=True,
            namespace_names=frozenset(("shop", "web")),
            namespaces=Selector((Requirement("tier", "In", ("1",)),)),
            services=Selector(
                (
                    Requirement("empty", "In", ("",)),
                    Requirement("example.com/app", "In", ("web",)),
                    Requirement("public", "Exists"),
                    Requirement("stage", "NotIn", ("test",)),
                )
            ),
            priority=7,
            reallocate=True,
            announcing=Announcing(
                bgp=False,
                layer2=True,
                interfaces=("eth0", "bond*"),
                nodes=Selector((Requirement("edge", "In", ("",)),)),
                communities="65000:100,no-export",
                local_preference=200,
            ),
        ),
    )


def test_what_is_not_written_has_a_default() -> None:
    for more in ("", ", announce: {}", ", autoAssign: null, announce: ~, serviceSelector:"):
        parsed = parse_config(f"[{{name: a, addresses: [192.0.2.1]{more}}}]", SETTINGS)
        assert parsed.problems == ()
        assert parsed.pools == (Pool("a", (between("192.0.2.1", "192.0.2.1"),)),)


def test_communities_are_written_as_in_the_annotation() -> None:
    for written in ("'65000:1, no-export'", "[65000:1, no-export]", "['65000:1,no-export']"):
        text = f"[{{name: a, addresses: [192.0.2.1], announce: {{communities: {written}}}}}]"
        (pool,) = parse_config(text, SETTINGS).pools
        assert pool.announcing.communities == "65000:1,no-export"


@pytest.mark.parametrize("text", ["", "[]", "null", "# nothing yet\n"])
def test_there_may_be_no_pools(text: str) -> None:
    compiled = compile_pools(WITH_FLAG, text)
    assert (names(compiled), compiled.accepted, compiled.problems) == (["default"], text, ())


def test_pools_stand_in_the_order_of_priority_and_name() -> None:
    text = """
- {name: z, addresses: [192.0.2.1]}
- {name: late, addresses: [192.0.2.2], priority: 1}
- {name: b, addresses: [192.0.2.3], priority: 0}
"""
    assert names(compile_pools(WITH_FLAG, text)) == ["b", "default", "z", "late"]


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
        (" 192.0.2.4 - 192.0.2.7 ", "192.0.2.4", "192.0.2.7"),
        ("192.0.2.9-192.0.2.9", "192.0.2.9", "192.0.2.9"),
        ("192.0.2.9/32", "192.0.2.9", "192.0.2.9"),
        ("2001:DB8::1", "2001:db8::1", "2001:db8::1"),
        ("2001:db8::ffff-2001:db8::1:2", "2001:db8::ffff", "2001:db8::1:2"),
        ("2001:db8::/127", "2001:db8::", "2001:db8::1"),
    ],
)
def test_ranges(text: str, first: str, last: str) -> None:
    assert parse_range(text) == between(first, last)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no range"),
        ("web", "no range"),
        ("192.0.2.1-", "no range"),
        ("-192.0.2.1", "no range"),
        ("192.0.2.1-192.0.2.2-192.0.2.3", "no range"),
        ("192.0.2.010", "no range"),
        ("192.0.2.0/", "no range"),
        ("192.0.2.0/255.255.255.0", "no range"),
        ("192.0.2.0/+24", "no range"),
        ("192.0.2.0/24-192.0.3.0/24", "no range"),
        ("192.0.2.0/33", "longer than 32 bits"),
        ("2001:db8::/129", "longer than 128 bits"),
        ("192.0.2.1/24", "write 192.0.2.0/24"),
        ("192.0.2.9-192.0.2.1", "ends before it begins"),
        ("192.0.2.9-2001:db8::1", "write two ranges"),
        ("2001:db8::1%eth0", "has a zone"),
        ("2001:db8::1%eth0-2001:db8::2", "has a zone"),
    ],
)
def test_what_is_no_range(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_range(text)
    found = mistakes(yaml.safe_dump([{"name": "a", "addresses": ["192.0.2.77", text]}]))
    assert [*found] == ["pools[0].addresses[1]"]
    assert found["pools[0].addresses[1]"].startswith(repr(text))
    assert ";" in found["pools[0].addresses[1]"]


# --- mistakes -------------------------------------------------------------------------------------

GOOD = "name: a, addresses: [192.0.2.1]"


@pytest.mark.parametrize(
    ("item", "field", "words"),
    [
        ("x", "pools[0]", "no mapping"),
        ("[]", "pools[0]", "no mapping"),
        ("{addresses: [192.0.2.1]}", "pools[0]", "no name"),
        ("{name: , addresses: [192.0.2.1]}", "pools[0]", "no name"),
        ("{name: Web_1, addresses: [192.0.2.1]}", "pools[0].name", "'Web_1' is no name"),
        (f"{{name: {'a' * 64}, addresses: [192.0.2.1]}}", "pools[0].name", "at most 63"),
        ("{name: [a], addresses: [192.0.2.1]}", "pools[0].name", "write one value"),
        ("{name: a}", "pools[0].addresses", "there are none"),
        ("{name: a, addresses: 192.0.2.1}", "pools[0].addresses", "no list"),
        ("{name: a, addresses: []}", "pools[0].addresses", "is empty"),
        ("{name: a, addresses: [[192.0.2.1]]}", "pools[0].addresses[0]", "write one value"),
        (f"{{{GOOD}, adresses: [192.0.2.2]}}", "pools[0]", "did you mean addresses?"),
        (f"{{{GOOD}, autoassign: true}}", "pools[0]", "did you mean autoAssign?"),
        (f"{{{GOOD}, qqq: true}}", "pools[0]", "there are name, addresses,"),
        (f"{{{GOOD}, name: b}}", "pools[0]", "'name' is given twice"),
        (f"{{{GOOD}, [x]: b}}", "pools[0]", "key that is a list or a mapping"),
        (f"{{{GOOD}, <<: {{priority: 1}}}}", "pools[0]", "'<<' is unknown"),
        (f"{{{GOOD}, autoAssign: yes}}", "pools[0].autoAssign", "neither true nor false"),
        (f"{{{GOOD}, reallocate: 1}}", "pools[0].reallocate", "neither true nor false"),
        (f"{{{GOOD}, avoidBuggyIPs: ''}}", "pools[0].avoidBuggyIPs", "neither true nor false"),
        (f"{{{GOOD}, priority: -1}}", "pools[0].priority", "write a number from 0"),
        (f"{{{GOOD}, priority: 4294967296}}", "pools[0].priority", "write a number from 0"),
        (f"{{{GOOD}, namespaces: shop}}", "pools[0].namespaces", "no list"),
        (f"{{{GOOD}, namespaces: []}}", "pools[0].namespaces", "is empty"),
        (f"{{{GOOD}, namespaces: [a, B]}}", "pools[0].namespaces[1]", "'B' is no name"),
        (f"{{{GOOD}, serviceSelector: web}}", "pools[0].serviceSelector", "no mapping"),
        (f"{{{GOOD}, serviceSelector: {{app: web}}}}", "pools[0].serviceSelector", "matchLabels: "),
        (
            f"{{{GOOD}, serviceSelector: {{matchlabels: {{app: web}}}}}}",
            "pools[0].serviceSelector",
            "did you mean matchLabels?",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchLabels: [app]}}}}",
            "pools[0].serviceSelector.matchLabels",
            "no mapping",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchLabels: {{-app: web}}}}}}",
            "pools[0].serviceSelector.matchLabels",
            "nothing that a label is called",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchLabels: {{app: a b}}}}}}",
            "pools[0].serviceSelector.matchLabels[app]",
            "nothing that a label holds",
        ),
        (
            f"{{{GOOD}, namespaceSelector: {{matchLabels: {{app: a, app: b}}}}}}",
            "pools[0].namespaceSelector.matchLabels",
            "given twice",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchExpressions: {{key: a}}}}}}",
            "pools[0].serviceSelector.matchExpressions",
            "no list",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchExpressions: [{{key: a, operator: in}}]}}}}",
            "pools[0].serviceSelector",
            "matchExpressions[0]: operator 'in' is none of In,",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchExpressions: [{{key: a, operator: In}}]}}}}",
            "pools[0].serviceSelector",
            "needs values",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchExpressions: [{{operator: Exists}}]}}}}",
            "pools[0].serviceSelector",
            "a key is missing",
        ),
        (
            f"{{{GOOD}, serviceSelector: {{matchExpressions: [{{key: a b, operator: Exists}}]}}}}",
            "pools[0].serviceSelector.matchExpressions[0].key",
            "nothing that a label is called",
        ),
        (f"{{{GOOD}, announce: bgp}}", "pools[0].announce", "no mapping"),
        (f"{{{GOOD}, announce: {{l2: true}}}}", "pools[0].announce", "'l2' is unknown"),
        (f"{{{GOOD}, announce: {{layer3: true}}}}", "pools[0].announce", "did you mean layer2?"),
        (f"{{{GOOD}, announce: {{bgp: on}}}}", "pools[0].announce.bgp", "neither true nor false"),
        (
            f"{{{GOOD}, announce: {{interfaces: [eth0]}}}}",
            "pools[0].announce.interfaces",
            "write layer2: true",
        ),
        (
            f"{{{GOOD}, announce: {{layer2: true, interfaces: eth0}}}}",
            "pools[0].announce.interfaces",
            "no list",
        ),
        (
            f"{{{GOOD}, announce: {{layer2: true, interfaces: [eth/0]}}}}",
            "pools[0].announce.interfaces[0]",
            "no name of a link",
        ),
        (
            f"{{{GOOD}, announce: {{layer2: true, interfaces: [{'e' * 16}]}}}}",
            "pools[0].announce.interfaces[0]",
            "no name of a link",
        ),
        (
            f"{{{GOOD}, announce: {{nodeSelector: {{edge: 'true'}}}}}}",
            "pools[0].announce.nodeSelector",
            "matchLabels: {edge: ...}",
        ),
        (
            f"{{{GOOD}, announce: {{communities: [65000:1, nonsense]}}}}",
            "pools[0].announce.communities",
            "'nonsense' is no community",
        ),
        (
            f"{{{GOOD}, announce: {{communities: {{a: b}}}}}}",
            "pools[0].announce.communities",
            "write one value",
        ),
        (
            f"{{{GOOD}, announce: {{localPreference: 4294967296}}}}",
            "pools[0].announce.localPreference",
            "from 0 to 4294967295",
        ),
        ("{name: default, addresses: [192.0.2.1]}", "pools[0].name", "--loadbalancer-ip-range"),
        ("{name: a, addresses: [0.0.0.5]}", "pools[0].addresses[0]", "unspecified"),
        ("{name: a, addresses: [127.0.0.1]}", "pools[0].addresses[0]", "loopback"),
        ("{name: a, addresses: [169.254.7.0/24]}", "pools[0].addresses[0]", "link-local"),
        ("{name: a, addresses: [0.0.0.0/1]}", "pools[0].addresses[0]", "unspecified"),
        ("{name: a, addresses: [223.0.0.0-225.0.0.0]}", "pools[0].addresses[0]", "multicast"),
        ("{name: a, addresses: [255.255.255.255]}", "pools[0].addresses[0]", "broadcast"),
        ("{name: a, addresses: ['::']}", "pools[0].addresses[0]", "unspecified"),
        ("{name: a, addresses: ['::1']}", "pools[0].addresses[0]", "loopback"),
        ("{name: a, addresses: ['::ffff:192.0.2.1']}", "pools[0].addresses[0]", "IPv4-mapped"),
        ("{name: a, addresses: ['fe80::1']}", "pools[0].addresses[0]", "link-local"),
        ("{name: a, addresses: ['ff02::1']}", "pools[0].addresses[0]", "multicast"),
        (
            "{name: a, addresses: [203.0.113.7-203.0.113.9]}",
            "pools[0].addresses[0]",
            "203.0.113.7-203.0.113.9 of pool 'a' and 203.0.113.0/24 of pool 'default' "
            "(--loadbalancer-ip-range) overlap",
        ),
        (
            "{name: a, addresses: [192.0.2.0/24, 192.0.2.9]}",
            "pools[0].addresses[1]",
            "192.0.2.9 of pool 'a' and 192.0.2.0/24 of pool 'a' overlap",
        ),
    ],
)
def test_every_mistake_is_told_where_it_is(item: str, field: str, words: str) -> None:
    parsed = parse_config(f"- {item}\n- {{name: z, addresses: [192.0.3.1]}}\n", WITH_FLAG)
    assert [each.field for each in parsed.problems] == [field]
    assert words in parsed.problems[0].reason
    # The neighbour is none the worse for it.
    assert [pool.name for pool in parsed.pools] == ["z"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {", "no YAML in line 1"),
        ("- name: a\n   addresses: b\n", "no YAML in line 2, column 13"),
        ("name: a", "no list"),
        ("pools", "no list"),
        ("- &a {name: x}\n- *a\n", "line 2, column 3: aliases are not read"),
        ("- a\n--- \n- b\n", "no YAML in line 2"),
        ("\x00", "no YAML"),
        ("\ud800", "no YAML"),
        ("[" * 20_000, "too deeply"),
        ("- " * 20_000, "too deeply"),
        (f"# {'x' * LONGEST}\n[]", f"longer than {LONGEST} bytes"),
        (f"# {'ä' * (LONGEST // 2)}\n[]", f"longer than {LONGEST} bytes"),
    ],
    ids=range(12),
)
def test_what_cannot_be_read_at_all(text: str, words: str) -> None:
    found = mistakes(text)
    assert [*found] == ["pools"]
    assert words in found["pools"]


def test_an_alias_bomb_is_not_unfolded() -> None:
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(20)]
    assert "aliases" in mistakes("\n".join(lines))["pools"]


def test_all_mistakes_are_told_at_once_but_not_at_any_length() -> None:
    found = mistakes("- {name: A, addresses: [x, y], priority: z}\n- {name: b}\n- 7\n")
    assert [*found] == [
        "pools[0].name",
        "pools[0].addresses[0]",
        "pools[0].addresses[1]",
        "pools[0].priority",
        "pools[1].addresses",
        "pools[2]",
    ]
    problems = parse_config("- x\n" * 5000, SETTINGS).problems
    assert len(problems) == 51
    assert problems[-1] == Problem(
        SUBJECT, "pools", "there are 4950 more mistakes; correct these first"
    )


def test_an_overlap_names_both_and_neither_is_used() -> None:
    parsed = parse_config(
        """
- {name: a, addresses: [192.0.2.0/25]}
- {name: b, addresses: [198.51.100.0/24, 192.0.2.64-192.0.2.200]}
- {name: c, addresses: [192.0.2.201]}
""",
        SETTINGS,
    )
    assert [pool.name for pool in parsed.pools] == ["c"]
    (problem,) = parsed.problems
    assert problem.field == "pools[1].addresses[1]"
    assert problem.reason == (
        "192.0.2.64-192.0.2.200 of pool 'b' and 192.0.2.0/25 of pool 'a' overlap; "
        "an address belongs to one pool, once: change one"
    )


def test_an_overlap_with_a_pool_that_is_wrong_otherwise_counts_too() -> None:
    text = "- {name: a, addresses: [192.0.2.0/25]}\n- {name: b, addresses: [192.0.2.1], x: y}\n"
    assert parse_config(text, SETTINGS).pools == ()


def test_one_name_is_for_one_pool() -> None:
    text = "- {name: a, addresses: [192.0.2.1]}\n- {name: a, addresses: [192.0.2.2]}\n"
    parsed = parse_config(text, SETTINGS)
    assert parsed.pools == ()
    assert [each.field for each in parsed.problems] == ["pools[1].name"]
    assert "pools[0]" in parsed.problems[0].reason


def test_the_name_default_is_free_without_the_flag() -> None:
    text = "- {name: default, addresses: [203.0.113.1]}\n"
    assert [pool.name for pool in parse_config(text, SETTINGS).pools] == ["default"]


def test_addresses_of_the_cluster_are_not_to_give() -> None:
    found = mistakes("- {name: a, addresses: [10.95.0.0-10.96.0.0, 10.112.0.0/16]}\n")
    assert [*found] == ["pools[0].addresses[0]"]
    assert "--service-cluster-ip-range 10.96.0.0/12" in found["pools[0].addresses[0]"]


def test_a_family_that_is_off_is_a_mistake() -> None:
    text = "- {name: a, addresses: [192.0.2.1, '2001:db8::1']}\n"
    found = mistakes(text, PoolSettings(ipv6=False))
    assert [*found] == ["pools[0].addresses[1]"]
    assert "--enable-ipv6" in found["pools[0].addresses[1]"]
    assert [*mistakes(text, PoolSettings(ipv4=False, ipv6=True))] == ["pools[0].addresses[0]"]
    assert mistakes(text) == {}


# --- the flag -------------------------------------------------------------------------------------


def test_the_pool_of_the_flag() -> None:
    options = parse_options(
        [
            "--loadbalancer-ip-range=192.0.2.0/28,2001:db8::/112,192.0.2.4/31,192.0.2.0/28",
            "--loadbalancer-layer2",
            "--loadbalancer-layer2-interfaces=eth0,bond*",
            "--enable-ipv6",
            "--service-cluster-ip-range=10.96.0.0/12",
        ],
        {},
    )
    settings = pool_settings(options, "net")
    assert settings.subject == "ConfigMap net/kube-router-address-pools"
    assert (settings.ipv4, settings.ipv6) == (True, True)
    assert settings.cluster_ranges == (ip_network("10.96.0.0/12"),)
    # From the network's own address to that of its broadcasts, and none twice.
    assert flag_pool(settings) == Pool(
        "default",
        (between("192.0.2.0", "192.0.2.15"), between("2001:db8::", "2001:db8::ffff")),
        announcing=Announcing(layer2=True, interfaces=("eth0", "bond*")),
    )
    assert flag_pool(SETTINGS) is None
    assert compile_pools(SETTINGS, None).pools.pools == ()


def test_what_the_flag_may_not_give_is_left_out() -> None:
    settings = PoolSettings(
        ranges=(ip_network("224.0.0.0/3"), ip_network("10.96.0.0/11"), ip_network("127.0.0.1/32")),
        cluster_ranges=(ip_network("10.96.0.0/12"),),
    )
    pool = flag_pool(settings)
    assert pool is not None
    assert pool.ranges == (
        between("240.0.0.0", "255.255.255.254"),
        between("10.112.0.0", "10.127.255.255"),
    )
    problems = compile_pools(settings, None).problems
    assert {each.object for each in problems} == {"Flag --loadbalancer-ip-range"}
    assert [each.reason.partition(" has ")[0] for each in problems] == [
        "224.0.0.0/3",
        "10.96.0.0/11",
        "127.0.0.1/32",
    ]


# --- edits ----------------------------------------------------------------------------------------

FIRST = "- {name: first, addresses: [192.0.2.0/24]}\n"
HALF_BAD = "- {name: new, addresses: [198.51.100.1]}\n- {name: bad, addresses: [x]}\n"


def test_a_bad_edit_changes_nothing() -> None:
    good = compile_pools(WITH_FLAG, FIRST)
    assert (names(good), good.accepted, good.problems) == (["default", "first"], FIRST, ())
    bad = compile_pools(WITH_FLAG, HALF_BAD, good.accepted)
    assert bad.pools == good.pools
    assert bad.accepted == FIRST
    assert [each.field for each in bad.problems] == ["pools[1].addresses[0]", ""]
    assert "before it was edited" in bad.problems[-1].reason


def test_of_a_text_that_was_never_good_the_right_pools_are_used() -> None:
    for last_good in (None, "- {name: this, addresses: [was, not, either]}"):
        compiled = compile_pools(WITH_FLAG, HALF_BAD, last_good)
        assert names(compiled) == ["default", "new"]
        assert compiled.accepted is None
        assert "only those without a mistake are used: new" in compiled.problems[-1].reason


def test_without_a_config_map_there_are_the_flags() -> None:
    compiled = compile_pools(WITH_FLAG, None, FIRST)
    assert (names(compiled), compiled.accepted, compiled.problems) == (["default"], "", ())
    # That was what held: a bad edit does not replace it, either.
    bad = compile_pools(WITH_FLAG, HALF_BAD, "")
    assert (names(bad), bad.accepted) == (["default"], "")
    assert "there was none before" in bad.problems[-1].reason


def test_what_is_wrong_with_the_config_map_itself_is_as_bad_as_a_mistake_in_the_text() -> None:
    missing = Problem(SUBJECT, "data", "it has no entry 'pools'")
    compiled = compile_pools(WITH_FLAG, None, FIRST, (missing,))
    assert (names(compiled), compiled.accepted) == (["default", "first"], FIRST)
    assert compiled.problems[0] == missing


# --- whatever the text is -----------------------------------------------------------------------

addresses = st.one_of(
    st.builds("192.0.2.{}".format, st.integers(0, 256)),
    st.builds("192.0.2.{}-192.0.2.{}".format, st.integers(0, 40), st.integers(0, 40)),
    st.builds("192.0.2.{}/{}".format, st.sampled_from((0, 8, 16)), st.integers(26, 33)),
    st.builds("2001:db8::{:x}/{}".format, st.sampled_from((0, 16)), st.integers(120, 129)),
    st.sampled_from(("203.0.113.9", "::1", "", "0.0.0.0/0", "::/0", "a-b", "-", "/")),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(("matchLabels", "matchExpressions", "key", "operator", "values")),
                st.text(max_size=5),
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
items = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.sampled_from(("a", "b", "c", "d", "default")), values),
        "addresses": st.one_of(st.lists(addresses, max_size=4), values),
        "priority": st.one_of(st.integers(-1, 3), values),
        "autoAssign": st.one_of(st.booleans(), values),
        "namespaces": st.one_of(st.lists(st.sampled_from(("x", "y"))), values),
        "serviceSelector": values,
        "announce": st.one_of(
            values,
            st.fixed_dictionaries(
                {},
                optional={
                    "bgp": st.booleans(),
                    "communities": values,
                    "nodeSelector": values,
                    "interfaces": values,
                },
            ),
        ),
        "x": values,
    },
)
sound = st.fixed_dictionaries(
    {
        "name": st.sampled_from(("a", "b", "c", "d", "e")),
        "addresses": st.lists(addresses, min_size=1, max_size=3),
    }
)


def check(text: str, settings: PoolSettings) -> None:
    parsed = parse_config(text, settings)
    compiled = compile_pools(settings, text)
    pools = compiled.pools.pools
    ranges = [found for pool in pools for found in pool.ranges]
    for index, one in enumerate(ranges):
        assert not any(overlap(one, other) for other in ranges[index + 1 :])
        assert one.first.version == one.last.version
        assert int(one.first) <= int(one.last)
    assert len({pool.name for pool in pools}) == len(pools)
    assert (compiled.accepted == text) == (not parsed.problems)
    for problem in parsed.problems:
        assert problem.object == SUBJECT
        assert problem.field.startswith("pools")
        assert ";" in problem.reason or "overlap" in problem.reason or "community" in problem.reason
    # The same again is the same; and after something good, it changes nothing or all.
    assert compile_pools(settings, text) == compiled
    after = compile_pools(settings, text, "[]")
    assert after.accepted == (text if not parsed.problems else "[]")


@given(st.lists(st.one_of(items, sound, values), max_size=5))
@example([{"name": "a", "addresses": ["0.0.0.0/0"]}, {"name": "b", "addresses": ["192.0.2.1"]}])
def test_whatever_is_described_no_address_is_in_two_pools(described: Any) -> None:
    check(yaml.safe_dump(described), WITH_FLAG)


@given(st.text(alphabet="-[]{}:, \n\"'&*!|>%@`#?ab.0", max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    check(text, WITH_FLAG)


@given(st.text(max_size=40))
def test_nor_is_any_other(text: str) -> None:
    check(text, SETTINGS)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12))
def test_every_overlap_shows(places: list[tuple[int, int]]) -> None:
    """The quick way tells of the same ranges as looking at each with each."""
    base = int(ip_address("192.0.2.0"))
    ranges = [
        AddressRange(ip_address(base + first), ip_address(base + first + length))
        for first, length in places
    ]
    pairs = list(overlaps(enumerate(ranges)))
    assert all(overlap(ranges[one], ranges[other]) for one, other in pairs)
    assert len(pairs) <= len(ranges)
    slow = {
        index
        for index, one in enumerate(ranges)
        if any(overlap(one, other) for n, other in enumerate(ranges) if n != index)
    }
    assert {index for pair in pairs for index in pair} == slow


# --- docs/address-pools.md ------------------------------------------------------------------------

PAGE = (Path(__file__).parents[3] / "docs" / "address-pools.md").read_text()


def test_the_example_of_the_docs_can_be_copied() -> None:
    example = PAGE.partition("```yaml\n")[2].partition("```")[0]
    config_map = yaml.safe_load(example)
    assert config_map["metadata"]["name"] == CONFIG_MAP
    parsed = parse_config(config_map["data"][KEY], SETTINGS)
    assert parsed.problems == ()
    assert [pool.name for pool in parsed.pools] == ["public", "office", "by-request"]
    assert parsed.pools[1].announcing.interfaces == ("eth0", "bond*")


def test_the_docs_tell_of_every_field() -> None:
    told = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    for known in (pool_reader._POOL, pool_reader._ANNOUNCE):
        assert set(known) <= set(told)
    assert len(told) == len(pool_reader._POOL) + len(pool_reader._ANNOUNCE)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("it is no YAML in line", "- {"),
        ("is unknown; did you mean addresses?", "- {name: a, adresses: []}"),
        ("has an address inside of its network", "- {name: a, addresses: [192.0.2.1/24]}"),
        ("overlap", "- {name: a, addresses: [192.0.2.1, 192.0.2.1]}"),
        ("addresses of --service-cluster-ip-range", "- {name: a, addresses: [10.96.0.1]}"),
        ("is the name of pools[0], too", "- {name: a}\n- {name: a}"),
        ("the field 'role' is unknown", "- {announce: {nodeSelector: {role: edge}}}"),
        ("they have no effect without layer2", "- {announce: {interfaces: [eth0]}}"),
        (f"it is longer than {LONGEST} bytes", "#" * (LONGEST + 1)),
    ],
)
def test_the_words_of_the_docs_are_those_of_the_code(words: str, text: str) -> None:
    assert words in PAGE
    assert any(words in reason for reason in all_reasons(text))


def all_reasons(text: str) -> list[str]:
    return [each.reason for each in parse_config(text, SETTINGS).problems]
