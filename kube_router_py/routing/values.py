"""Read numbers, addresses and prefixes out of texts from outside. Pure.

Each function raises ``ValueError`` whose text goes on after the value: "is not an IP address; ...".
What comes back is a number or an address, never the text: nothing of it reaches FRR as it stands.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from kube_router_py.option_types import parse_duration
from kube_router_py.routing.model import Address, Network
from kube_router_py.services import unusable_address

# As Go's ParseUint with base 0, which kube-router reads numbers with.
_NUMBER = re.compile(
    r"0|0[xX][0-9a-fA-F]{1,16}|0[bB][01]{1,64}|0[oO]?[0-7]{1,22}|[1-9][0-9]{0,19}", re.ASCII
)
_OLD_OCTAL = re.compile(r"0[0-7]+")
_LENGTH = re.compile(r"[0-9]{1,3}")
# What the kernel takes for an interface and FRR takes as one word.
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


def parse_number(text: str, low: int, high: int, what: str = "a number") -> int:
    """A whole number from ``low`` to ``high``, in decimal or as Go writes hex, octal and binary."""
    if _NUMBER.fullmatch(text):
        number = int(text, 8) if _OLD_OCTAL.fullmatch(text) else int(text, 0)
        if low <= number <= high:
            return number
    raise ValueError(f"is not {what}; write a number from {low} to {high}")


def parse_seconds(text: str, low: int, high: int) -> int:
    """Whole seconds, as a number or as a duration of Go: ``90``, ``1m30s``."""
    try:
        seconds = parse_duration(text) if text[-1:].isalpha() else parse_number(text, low, high)
    except ValueError:
        seconds = -1
    if not low <= seconds <= high or seconds != int(seconds):
        raise ValueError(f"is not a time in whole seconds from {low} to {high}; write it like 90s")
    return int(seconds)


def parse_address(text: str) -> Address:
    """An address; one of IPv4 that is mapped into IPv6 is the one of IPv4, as in Go."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address; write it like 192.0.2.1 or 2001:db8::1") from None
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise ValueError("has a zone; leave out what is behind the percent sign")
    return address.ipv4_mapped or address


def parse_neighbor(text: str) -> Address:
    """The address of a neighbor, or one that neighbors call."""
    address = parse_address(text)
    if reason := unusable_neighbor(address):
        raise ValueError(f"is {reason}; write the address that the router really has")
    return address


def unusable_neighbor(address: Address) -> str:
    """Why no session can be held with this address, or ``""``."""
    if isinstance(address, IPv4Address) and address.is_link_local:
        return ""  # some clouds have their routers there
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "an address with a zone"
    if isinstance(address, IPv6Address) and address.is_link_local:
        return "a link-local address, which needs its interface named instead"
    return unusable_address(address.packed)


def parse_cidr(text: str) -> Network:
    """A CIDR; bits below the prefix are dropped, as Go's ParseCIDR does."""
    address, slash, length = text.partition("/")
    # Python would read a bare address, a netmask or a host mask as a network, too.
    if slash and _LENGTH.fullmatch(length) and "%" not in address:
        try:
            return ip_network(f"{address}/{int(length)}", strict=False)
        except ValueError:
            pass
    raise ValueError("is not a CIDR; write it like 10.0.0.0/16 or fd00::/64")


def parse_interface(text: str) -> str:
    """The name of an interface, as far as FRR takes it and takes it for nothing else."""
    if _INTERFACE.fullmatch(text) and text not in (".", ".."):
        try:
            ip_address(text)
        except ValueError:
            return text
    raise ValueError("is not the name of an interface that FRR takes; rename the interface")
