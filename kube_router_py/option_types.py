"""Kinds of flag values: how a text becomes a value, and how the value is shown again.

A kind raises ``ValueError`` whose text says what is wrong and what would be right; the caller adds
the flag's name and the value. Accepted spellings are those of Go's pflag, which kube-router uses.
"""

import base64
import binascii
import csv
import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")

# As kube-proxy.
DEFAULT_HEALTHZ_PORT = 10256

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6}
_UNITS_NS |= {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
# Of the names that the kernel takes for an interface, those that FRR takes as one word.
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*|0[xX][0-9a-fA-F]+)")
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How one flag's text is read (``parse``), named in help (``word``) and shown (``show``).

    ``is_switch``: the flag may stand without a value (``--flag``) and then means true.
    ``is_list``: repeated flags and commas add up; ``parse`` gets all of them joined by commas.
    """

    word: str
    parse: Callable[[str], T]
    show: Callable[[T], str] = str
    is_switch: bool = False
    is_list: bool = False


def parse_duration(text: str) -> float:
    """Seconds of a duration written as Go writes it: ``1m30s``, ``500ms``, ``1.5h``, ``0``."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total_ns = 0.0
    position = 0
    while match := _DURATION_PART.match(rest, position):
        total_ns += float(match[1]) * _UNITS_NS[match[2]]
        position = match.end()
    if not rest or position != len(rest):
        raise ValueError("is not a duration; write numbers with units, like 30s, 1m30s or 500ms")
    return sign * total_ns / 1e9


def show_duration(seconds: float) -> str:
    """A duration as Go would take it, in its shortest form: ``1m30s``, ``500ms``, ``0s``."""
    if seconds <= 0 or seconds != int(seconds):
        milliseconds = f"{seconds * 1000:.6f}".rstrip("0").rstrip(".")
        return f"{milliseconds}ms" if seconds else "0s"
    hours, rest = divmod(int(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (whole, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def parse_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("is not a whole number")
    return int(text, 0)


def _parse_switch(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("is not a boolean; write true or false")


def _split(text: str) -> list[str]:
    """Items of a comma list; an item may be quoted as in CSV. An empty text has no items."""
    if not text:
        return []
    try:
        return [item.strip() for item in next(csv.reader([text], skipinitialspace=True))]
    except csv.Error as error:
        raise ValueError(f"is not a comma-separated list ({error})") from None


def integer(low: int, high: int, word: str = "NUMBER") -> Kind[int]:
    def parse(text: str) -> int:
        number = parse_integer(text)
        if not low <= number <= high:
            raise ValueError(f"is out of range; choose a number from {low} to {high}")
        return number

    return Kind(word, parse)


def duration(low_s: float = 0.0, high_s: float = math.inf, *, above: bool = False) -> Kind[float]:
    """A duration from ``low_s`` to ``high_s`` seconds; ``above`` excludes ``low_s`` itself."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < low_s or seconds > high_s or (above and seconds == low_s):
            least = "more than" if above else "at least"
            most = f" and at most {show_duration(high_s)}" if high_s < math.inf else ""
            raise ValueError(f"is out of range; it must be {least} {show_duration(low_s)}{most}")
        return seconds

    return Kind("DURATION", parse, show_duration)


def whole_seconds(high_s: int) -> Kind[float]:
    """A duration that the kernel counts in whole seconds, from 0 to ``high_s``."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < 0 or seconds > high_s or seconds != int(seconds):
            raise ValueError(
                f"must be whole seconds from 0s to {show_duration(high_s)}; 0s changes nothing"
            )
        return seconds

    return Kind("DURATION", parse, show_duration)


def choice(*allowed: str) -> Kind[str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"is unknown; choose {' or '.join(allowed)}")
        return text

    return Kind("|".join(allowed), parse)


def string(word: str, check: Callable[[str], None] | None = None) -> Kind[str]:
    def parse(value: str) -> str:
        if check is not None and value:
            check(value)
        return value

    return Kind(word, parse)


def listed(
    word: str,
    parse_item: Callable[[str], T],
    show_item: Callable[[T], str] = str,
    *,
    hide: bool = False,
) -> Kind[tuple[T, ...]]:
    """A list: comma-separated, repeatable. Errors name the item at fault, by number to hide it."""

    def parse(value: str) -> tuple[T, ...]:
        items: list[T] = []
        for number, item in enumerate(_split(value), 1):
            try:
                items.append(parse_item(item))
            except ValueError as error:
                name = f"number {number}" if hide else repr(item)
                raise ValueError(f"has the item {name}, which {error}") from None
        return tuple(items)

    def show(items: Iterable[T]) -> str:
        return ",".join(show_item(item) for item in items)

    return Kind(f"{word},...", parse, show, is_list=True)


# --- items and checks ---------------------------------------------------------------------------


def parse_network(text: str) -> IPNetwork:
    """A CIDR; bits below the prefix are dropped, as Go's ParseCIDR does."""
    if "/" not in text:
        raise ValueError("is not a CIDR; write a prefix length too, like 10.0.0.0/16 or fd00::/64")
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not a CIDR; write it like 10.0.0.0/16 or fd00::/64") from None


def parse_aggregate(text: str) -> IPNetwork:
    """A CIDR that addresses can be gathered in: neither everything nor a single address."""
    network = parse_network(text)
    if not 0 < network.prefixlen < network.max_prefixlen:
        raise ValueError(
            f"gathers nothing; its prefix length must be from 1 to {network.max_prefixlen - 1}"
        )
    return network


def parse_peer(text: str) -> str:
    """What BGP neighbors are named by: an address, the interface of an unnumbered one, or the
    network that dynamic ones come from."""
    try:
        if "/" in text:
            return str(parse_network(text))
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv4Address):
            return str(address)
        if address.scope_id is None:
            return str(address.ipv4_mapped or address)
    except ValueError:
        if _INTERFACE.fullmatch(text):
            return text
    raise ValueError("is not a router; write its IP address, or the name of its interface")


def parse_address(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address; write it like 192.0.2.1 or 2001:db8::1") from None


def parse_port(text: str) -> int:
    number = parse_integer(text)
    if not 1 <= number <= 65535:
        raise ValueError("is not a port; choose a number from 1 to 65535")
    return number


def parse_cluster_asn(text: str) -> int:
    """An ASN of the private ranges (RFC 6996), or 0 for the default."""
    number = parse_integer(text)
    if number and not (64512 <= number <= 65535 or 4200000000 <= number <= 4294967294):
        raise ValueError(
            "is not a private AS number; choose one from 64512 to 65535 "
            "or from 4200000000 to 4294967294, or 0 for 64512"
        )
    return number


def parse_peer_asn(text: str) -> int:
    """An ASN that may stand on the wire: none of those reserved by RFC 5398, 6793, 7300, 7607."""
    number = parse_integer(text)
    reserved = (
        number in (0, 23456, 65535, 4294967295)
        or 64000 <= number <= 64511
        or 65536 <= number <= 131071
    )
    if reserved or not 0 < number < 2**32:
        raise ValueError(
            "is reserved or not an AS number; write the AS number that the peer really uses"
        )
    return number


def parse_password(text: str) -> str:
    """A password given in base64; an empty item is a peer without password."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError(
            "is not base64; encode the password: printf %s PASSWORD | base64"
        ) from None


def parse_port_range(text: str) -> tuple[int, int]:
    """``a-b`` or ``a:b``, both included."""
    parts = re.fullmatch(r"(\d{1,5})[-:](\d{1,5})", text)
    low, high = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if not 0 < low < high <= 65535:
        raise ValueError("is not a port range; write it like 30000-32767, the lower port first")
    return low, high


def parse_bind_address(text: str) -> tuple[str, int]:
    """Address (empty: all of them) and port; the port may be left out, or 0 for off."""
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(\d{1,5}))?", text.strip())
    if not found or int(found[2] or 0) > 65535:
        raise ValueError("is not ADDRESS:PORT ([ADDRESS]:PORT for IPv6); :0 switches it off")
    address = found[1].strip("[]")
    if address:
        check_address(address)
    if not text.strip():
        return "", 0
    return address, int(found[2]) if found[2] else DEFAULT_HEALTHZ_PORT


def show_bind_address(value: tuple[str, int]) -> str:
    address, port = value
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def check_urls(text: str) -> None:
    """Addresses of API servers, separated by commas; the scheme may be left out."""
    for item in text.split(","):
        if not re.fullmatch(r"(https?://)?[^\s/?#]+(?<!:)(/[^\s?#]*)?", item.strip()):
            raise ValueError("is not a URL; write it like https://192.0.2.1:6443")


def check_address(text: str) -> None:
    parse_address(text)


def check_node_name(text: str) -> None:
    if len(text) > 253 or not _NODE_NAME.fullmatch(text):
        raise ValueError("is not a node name; use the name that `kubectl get nodes` shows")


def check_router_id(text: str) -> None:
    if text == "generate":
        return
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError("is not a router id; write an IPv4 address, or generate") from None


def check_http_path(text: str) -> None:
    if not re.fullmatch(r"/[^\s?#]*", text):
        raise ValueError("is not a path; it must begin with a slash, like /metrics")


def check_absolute_path(text: str) -> None:
    if not text.startswith("/"):
        raise ValueError("is not an absolute path; it must begin with a slash")


def check_unix_socket(text: str) -> None:
    if not re.fullmatch(r"(unix://)?/\S+", text):
        raise ValueError(
            "is not a unix socket; write it like unix:///run/containerd/containerd.sock"
        )


SWITCH: Kind[bool] = Kind(
    "BOOL", _parse_switch, lambda value: "true" if value else "false", is_switch=True
)
PERIOD = duration(above=True)
PORT = integer(1, 65535, "PORT")
PORT_OR_OFF = integer(0, 65535, "PORT")
NETWORKS = listed("CIDR", parse_network)
ADDRESS = string("ADDRESS", check_address)
