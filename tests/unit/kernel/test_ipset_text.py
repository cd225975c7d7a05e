"""Entries of sets in the spelling of ipset(8)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.kernel.ipset_text import canonical_entries, parse_list, parse_save
from kube_router_py.kernel.ports import IpsetSpec, SetState


def test_a_saved_set_is_read_without_what_is_no_part_of_its_entries() -> None:
    found = parse_save(
        "create a hash:net family inet hashsize 1024 maxelem 1024 timeout 0 counters comment "
        "bucketsize 12 initval 0xd2d2ee01\n"
        "add a 10.0.0.1 timeout 0 packets 3 bytes 9\n"
        'add a 10.9.0.0/16 timeout 7 nomatch packets 0 bytes 0 comment "add a 1.2.3.4"\n'
        "create b list:set size 8\n"
        "create c bitmap:port range 1-9\n",
        lambda name: name != "c",
    )
    assert found == {
        "a": SetState(
            IpsetSpec("a", "hash:net", "inet"), 1024, frozenset({"10.0.0.1", "10.9.0.0/16 nomatch"})
        ),
        "b": SetState(IpsetSpec("b", "list:set", "inet"), 1 << 32, frozenset()),
    }


def test_a_saved_set_of_ipv6_is_in_one_spelling() -> None:
    text = "create a hash:ip family inet6 hashsize 64 maxelem 65536\nadd a ::1.2.3.4\n"
    expected = canonical_entries("hash:ip", ["::102:304"])
    assert parse_save(text, lambda _: True)["a"].entries == expected


def test_listed_sets() -> None:
    text = (
        "Name: a\nType: hash:ip\nRevision: 6\n"
        "Header: family inet6 hashsize 64 maxelem 4 bucketsize 12 initval 0xf2f6a976\n"
        "Size in memory: 216\nReferences: 1\nNumber of entries: 0\n\n"
        "Name: b\nType: list:set\nRevision: 3\nHeader: size 8\nSize in memory: 80\n"
    )
    assert parse_list(text) == {
        "a": IpsetSpec("a", "hash:ip", "inet6"),
        "b": IpsetSpec("b", "list:set", "inet"),
    }


@pytest.mark.parametrize(
    ("set_type", "entry", "expected"),
    [
        ("hash:net", "0.0.0.0/0 nomatch", {"0.0.0.0/1 nomatch", "128.0.0.0/1 nomatch"}),
        ("hash:net,net", "10.0.0.1/32,10.1.2.3/8", {"10.0.0.1,10.0.0.0/8"}),
        ("hash:net,iface", "10.0.0.9/24,eth0", {"10.0.0.0/24,eth0"}),
        ("hash:ip,port,ip", "10.0.0.1,UDP:53,10.0.0.2", {"10.0.0.1,udp:53,10.0.0.2"}),
        ("hash:ip", "10.0.0.1-10.0.0.9", {"10.0.0.1-10.0.0.9"}),
        ("hash:mac", "02:00:00:00:00:01", {"02:00:00:00:00:01"}),
        ("list:set", "other", {"other"}),
    ],
)
def test_spellings(set_type: str, entry: str, expected: set[str]) -> None:
    assert canonical_entries(set_type, [entry]) == expected


@given(st.sets(st.ip_addresses(v=6)), st.integers(1, 128))
def test_one_spelling_only(addresses: set[ipaddress.IPv6Address], length: int) -> None:
    given = [f"{address.exploded}/{length}" for address in addresses]
    once = canonical_entries("hash:net", given)
    assert canonical_entries("hash:net", once) == once
    assert len(once) == len({ipaddress.ip_network(text, strict=False) for text in given})
