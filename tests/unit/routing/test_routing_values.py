"""Numbers, addresses and prefixes out of texts from outside."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kube_router_py.routing.model import is_word
from kube_router_py.routing.values import (
    parse_address,
    parse_cidr,
    parse_interface,
    parse_neighbor,
    parse_number,
    parse_seconds,
    unusable_neighbor,
)

# Texts that look like something, and bytes that end a line or a command of FRR.
NASTY = st.text(st.sampled_from("0123456789abcdefx.:/%-_ \n\r\t\0\x7f\x03!;ß٣"), max_size=40)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("64512", 64512),
        ("4294967295", 4294967295),
        # As Go's ParseUint with base 0 reads them.
        ("010", 8),
        ("00", 0),
        ("0x10", 16),
        ("0b11", 3),
        ("0o17", 15),
    ],
)
def test_numbers_as_go_reads_them(text: str, number: int) -> None:
    assert parse_number(text, 0, 2**32 - 1) == number


@pytest.mark.parametrize(
    "text",
    [
        " 5",
        "5 ",
        "+5",
        "-5",
        "08",
        "0x",
        "0o",
        "0b2",
        "1.0",
        "1e3",
        "five",
        "4294967296",
        "٣",
        "5\n",
        "5\x00",
        "",
    ],
)
def test_what_is_no_number_of_32_bits(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number; write a number from 0 to 4294967295"):
        parse_number(text, 0, 2**32 - 1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1m30s", 90), ("1h", 3600), ("3", 3)]
)
def test_seconds(text: str, seconds: int) -> None:
    assert parse_seconds(text, 3, 65535) == seconds


@pytest.mark.parametrize(
    "text", ["", "2", "2s", "19h", "3.5s", "3500ms", "-9s", "s", "90 s", "9" * 400 + "h", "90s\n"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time in whole seconds from 3 to 65535"):
        parse_seconds(text, 3, 65535)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == ip_address(address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an IP address"),
        ("192.0.2.256", "not an IP address"),
        ("010.0.0.1", "not an IP address"),
        ("192.0.2.1/32", "not an IP address"),
        ("192.0.2.1\n", "not an IP address"),
        ("3232235777", "not an IP address"),
        ("fe80::1%eth0", "has a zone"),
        ("2001:db8::1%a\nb", "has a zone"),
    ],
)
def test_what_is_no_address(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0", "the unspecified address"),
        ("::", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("224.0.0.5", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("fe80::1", "a link-local address, which needs its interface"),
    ],
)
def test_addresses_that_no_session_can_be_held_with(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_neighbor(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "169.254.169.1", "fd00::1", "2001:db8::1"])
def test_addresses_of_neighbors(text: str) -> None:
    assert parse_neighbor(text) == ip_address(text)


def test_addresses_with_zones_are_no_neighbors() -> None:
    assert unusable_neighbor(IPv6Address("2001:db8::1%eth0")) == "an address with a zone"


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1/64", "fd00::/64"),
    ],
)
def test_cidrs(text: str, network: str) -> None:
    assert parse_cidr(text) == ip_network(network)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.0.0.255",
        "fd00::/129",
        "fe80::%eth0/64",
        "10.0.0.0/8\n",
        "/8",
        "10.0.0.0/-1",
        "10.0.0.0/٣",
        "a/8",
    ],
)
def test_what_is_no_cidr(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CIDR"):
        parse_cidr(text)


@pytest.mark.parametrize("text", ["eth0", "eth0.100", "br-lan", "bond_0", "a" * 15])
def test_interfaces(text: str) -> None:
    assert parse_interface(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a" * 16, "eth 0", "eth0\n", "eth0\0", "eth/0", "éth0", "10.0.0.1"]
)
def test_what_is_no_interface(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an interface"):
        parse_interface(text)


@given(NASTY | st.text(max_size=20))
@example("fe80::1%\n")
@example("0o")
def test_whatever_the_text_a_value_comes_back_or_a_reason(text: str) -> None:
    parsers: tuple[Callable[[str], Any], ...] = (
        lambda text: parse_number(text, 0, 255),
        lambda text: parse_seconds(text, 3, 65535),
        parse_address,
        parse_neighbor,
        parse_cidr,
    )
    reasons: list[str] = []
    for parse in parsers:
        try:
            value = parse(text)
        except ValueError as error:
            reasons.append(str(error))
            continue
        shown = str(value)
        assert set(shown) <= set("0123456789abcdef.:/")
        # What it is rendered as is read back as the same.
        assert parse(shown) == value
    try:
        assert is_word(parse_interface(text))
    except ValueError as error:
        reasons.append(str(error))
    # Each goes on after the value, and says what to do about it.
    assert all(re.match(r"(is|has) .*; ", reason) for reason in reasons)


def test_link_local_addresses_of_ipv4_serve() -> None:
    assert unusable_neighbor(IPv4Address("169.254.1.1")) == ""
