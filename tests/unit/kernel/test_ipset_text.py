"""Entries of sets in the spelling of ipset(8)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.kernel.ipset_text import canonical_entries, parse_save


def test_a_saved_set_is_read_without_what_is_no_part_of_its_entries() -> None:
    header, entries = parse_save(
        "create a hash:net family inet hashsize 1024 maxelem 65536 timeout 0 counters comment "
        "bucketsize 12 initval 0xd2d2ee01\n"
        "add a 10.0.0.1 timeout 0 packets 3 bytes 9\n"
        'add a 10.9.0.0/16 timeout 7 nomatch packets 0 bytes 0 comment "add a 1.2.3.4"\n',
        "a",
    )
    assert header == {"type": "hash:net", "family": "inet", "maxelem": "65536"}
    assert entries == ["10.0.0.1", "10.9.0.0/16 nomatch"]


def test_a_text_without_the_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no header"):
        parse_save("create b hash:ip family inet\n", "a")


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
