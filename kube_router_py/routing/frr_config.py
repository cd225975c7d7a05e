"""What FRR's daemons are told, rendered from a router's values. Pure.

    learned   session -> krp-accept-… -> krp-from-… -> table of bgpd -> zebra -> kernel, table main
    our own   line ``network`` with krp-class-… -> table of bgpd -> krp-out-… -> session

What is our own needs no route in the kernel and makes none. An aggregate is a prefix of ours like
any other: FRR's ``aggregate-address`` would put a blackhole for it in the kernel, on this node's
own way to Services and Pods.

Never rendered: ``ip forwarding`` in either sense (changes the node's sysctl), and ``bfd
check-control-plane-failure`` (a cut path stays undetected). Everything from outside that is text is
looked at once more here, since one line too many would be a command to FRR.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cmp_to_key, lru_cache

from msgspec import structs

from kube_router_py.routing.frr_policy import (
    VERSIONS,
    Policy,
    classify,
    compile_policy,
    is_internal,
)
from kube_router_py.routing.frr_sections import FrrConfig, Path, canonical
from kube_router_py.routing.model import (
    PASSWORD_MAX,
    Aggregate,
    Announcement,
    Bfd,
    Kind,
    ListenRange,
    Neighbor,
    Network,
    RouterConfig,
    Session,
    Version,
    is_word,
)
from kube_router_py.routing.prefixes import prefix_order

# FRR's own values, under the profile ``datacenter``: what equals them is not echoed.
_PORT = 179
_RESTART_S, _DEFERRAL_S = 120, 360
_LISTEN_LIMIT, _MOST_LISTENED = 100, 5000
_MOST_PATHS = 256
_BFD = Bfd(detection_multiplier=3, receive_interval_ms=300, transmit_interval_ms=300)
_BFD_TTL = 254
_HOPS_MAX = 255
_DESCRIPTION_MAX = 80
_ODD = re.compile(r"[^\x21-\x7e]+")
_DIGITLESS, _DIGITS = re.compile(r"[^0-9]*"), re.compile(r"[0-9]*")


def render_frr(config: RouterConfig) -> FrrConfig:
    """The lines for each daemon, as FRR echoes them.

    Raises ValueError where a text in the values is more than one word; its message does not quote
    passwords.
    """
    sessions = [
        *((each.key, each.session) for each in config.neighbors),
        *((str(each.network), each.session) for each in config.listen_ranges),
    ]
    for key, session in sessions:
        _check(session, key)
    for neighbor in config.neighbors:
        if neighbor.address is None and not is_word(neighbor.interface):
            raise ValueError(f"{neighbor.interface!r} is no name of an interface")
    announced = _announced(config)
    classes = classify(announced)
    policy = compile_policy(config, set(classes), sessions)
    networks = [
        (each.prefix, policy.classes[found]) for each, found in zip(announced, classes, strict=True)
    ]
    router = f"router bgp {config.asn}"
    lines: dict[Path, list[str]] = dict(policy.lines)
    lines[()] = ["bgp route-map delay-timer 1", *policy.lines[()]]
    lines[router,] = list(_router(config))
    for version in VERSIONS:
        family = f"address-family ipv{version} unicast"
        lines[router, family] = list(_family(config, version, policy, networks))
    return FrrConfig(
        zebra=canonical(_zebra(config)),
        bfdd=canonical(_bfdd(config, sessions)),
        bgpd=canonical(lines),
        listen=config.listen,
        port=config.port,
    )


# --- prefixes -------------------------------------------------------------------------------


def _announced(config: RouterConfig) -> list[Announcement]:
    """Each prefix once, in FRR's order: aggregates are there, and what they hide is hidden."""
    found: list[Announcement] = []
    for each in sorted(config.announcements, key=_announcement_order):
        # A Pod CIDR that is a Service's address, too, goes where Pod CIDRs go, which come first.
        if not found or found[-1].prefix != each.prefix:
            found.append(each)
    if config.aggregates:
        found = _aggregated(config.aggregates, found)
    # A Service's address that goes to nobody needs no line.
    return [each for each in found if each.kind is Kind.PODS or each.peers != ()]


def _announcement_order(each: Announcement) -> tuple[tuple[int, bytes, int], bool]:
    return prefix_order(each.prefix), each.kind is Kind.SERVICE


def _aggregated(
    aggregates: tuple[Aggregate, ...], announced: list[Announcement]
) -> list[Announcement]:
    covers = _Covers(aggregates)
    found: dict[Network, Announcement] = {}
    standing: set[Aggregate] = set()
    for each in announced:
        found[each.prefix] = each
        aggregate = covers.closest(each.prefix)
        if each.kind is Kind.SERVICE and aggregate is not None:
            standing.update(covers.all(each.prefix))
            shown = set(aggregate.specific_to)
            if each.peers is not None:
                shown &= set(each.peers)
            found[each.prefix] = structs.replace(each, peers=tuple(sorted(shown)))
    for one in standing:
        found.setdefault(one.prefix, Announcement(prefix=one.prefix, kind=Kind.SERVICE))
    return sorted(found.values(), key=_announcement_order)


class _Covers:
    """Which aggregates a prefix is inside of, found by its leading bits."""

    def __init__(self, aggregates: Iterable[Aggregate]) -> None:
        self._found = {_bits(each.prefix, each.prefix.prefixlen): each for each in aggregates}
        lengths = {(each.prefix.version, each.prefix.prefixlen) for each in aggregates}
        self._lengths = sorted(lengths, reverse=True)

    def all(self, prefix: Network) -> Iterator[Aggregate]:
        """The longest first; one is not inside of itself."""
        for version, length in self._lengths:
            if version == prefix.version and length < prefix.prefixlen:
                aggregate = self._found.get(_bits(prefix, length))
                if aggregate is not None:
                    yield aggregate

    def closest(self, prefix: Network) -> Aggregate | None:
        return next(self.all(prefix), None)


def _bits(prefix: Network, length: int) -> tuple[int, int, int]:
    shifted = int(prefix.network_address) >> (prefix.max_prefixlen - length)
    return prefix.version, length, shifted


# --- bgpd -----------------------------------------------------------------------------------


def _router(config: RouterConfig) -> Iterator[str]:
    yield f"bgp router-id {config.router_id}"
    yield "no bgp default ipv4-unicast"
    if config.cluster_id is not None:
        yield f"bgp cluster-id {config.cluster_id}"
    # While FRR 8.4 waits for more to tell a neighbor that has just come up (1 s and more), it loses
    # withdrawals: what is gone stays announced (fixed by its pull request 17667, later).
    yield "coalesce-time 0"
    if config.drain:
        # Towards our own AS it sets the local preference to 0 besides (RFC 8326, 4.1).
        yield "bgp graceful-shutdown"
    restart = config.graceful_restart
    if restart is not None:
        if restart.deferral_s != _DEFERRAL_S:
            yield f"bgp graceful-restart select-defer-time {restart.deferral_s}"
        if restart.restart_s != _RESTART_S:
            yield f"bgp graceful-restart restart-time {restart.restart_s}"
        yield "bgp graceful-restart"
        yield "bgp graceful-restart preserve-fw-state"
    yield "bgp bestpath as-path multipath-relax"
    yield "no bgp network import-check"
    ranges = sorted(config.listen_ranges, key=_group)
    for each in ranges:
        yield f"neighbor {_group(each)} peer-group"
        yield f"neighbor {_group(each)} remote-as {each.session.remote_as}"
        yield from _session(config, _group(each), each.session)
    for neighbor in sorted(config.neighbors, key=_neighbor_order):
        kind = " interface" if neighbor.address is None else ""
        yield f"neighbor {neighbor.key}{kind} remote-as {neighbor.session.remote_as}"
        yield from _session(config, neighbor.key, neighbor.session, is_link=bool(kind))
    limit = min(sum(each.limit for each in ranges), _MOST_LISTENED)
    if ranges and limit != _LISTEN_LIMIT:
        yield f"bgp listen limit {limit}"
    for each in ranges:
        yield f"bgp listen range {each.network} peer-group {_group(each)}"


def _session(
    config: RouterConfig, name: str, session: Session, *, is_link: bool = False
) -> Iterator[str]:
    start = f"neighbor {name}"
    description = _ODD.sub(" ", session.description).strip()[:_DESCRIPTION_MAX].strip()
    if description:
        yield f"{start} description {description}"
    if session.bfd is not None:
        yield f"{start} bfd"
        yield f"{start} bfd profile {_profile(session.bfd, _bfd_ttl(config, session))}"
    if session.password:
        yield f"{start} password {session.password}"
    if session.port != _PORT:
        yield f"{start} port {session.port}"
    if session.ttl_security > 0:
        hops = 1 if is_link else min(session.ttl_security, _HOPS_MAX - 1)
        yield f"{start} ttl-security hops {hops}"
    elif session.multihop > 1 and not is_link and not is_internal(session, config.asn):
        yield f"{start} ebgp-multihop {min(session.multihop, _HOPS_MAX)}"
    if session.local_address is not None and not is_link:
        yield f"{start} update-source {session.local_address}"
    if session.hold_s is not None:
        # RFC 4271, 4.2: none, or at least three seconds.
        hold_s = max(session.hold_s, 3) if session.hold_s else 0
        yield f"{start} timers {hold_s // 3} {hold_s}"
    yield f"{start} graceful-restart{'' if session.graceful_restart else '-disable'}"


def _family(
    config: RouterConfig,
    version: Version,
    policy: Policy,
    networks: Iterable[tuple[Network, str]],
) -> Iterator[str]:
    for prefix, name in networks:
        if prefix.version == version:
            yield _network(prefix, name)
    for listen in sorted(config.listen_ranges, key=_group):
        name, key = _group(listen), str(listen.network)
        yield from _exchange(config, version, policy, name, key, listen.session)
    for neighbor in sorted(config.neighbors, key=_neighbor_order):
        yield from _exchange(config, version, policy, neighbor.key, neighbor.key, neighbor.session)
    paths = min(max(config.maximum_paths, 1), _MOST_PATHS)
    if paths != _MOST_PATHS:
        yield f"maximum-paths {paths}"
        yield f"maximum-paths ibgp {paths}"


def _exchange(
    config: RouterConfig, version: Version, policy: Policy, name: str, key: str, session: Session
) -> Iterator[str]:
    if version not in session.versions:
        return
    start = f"neighbor {name}"
    yield f"{start} activate"
    if session.reflector_client and is_internal(session, config.asn):
        yield f"{start} route-reflector-client"
    if session.next_hop_self:
        yield f"{start} next-hop-self"
    accept = policy.accept.get((key, version))
    if accept is not None:
        yield f"{start} prefix-list {accept} in"
    yield f"{start} route-map {policy.from_(key, version, session.role)} in"
    yield f"{start} route-map {policy.out[key]} out"


@lru_cache(maxsize=1 << 16)
def _network(prefix: Network, route_map: str) -> str:
    """Of thousands, most are the same as the time before."""
    return f"network {prefix} route-map {route_map}"


def _group(listen: ListenRange) -> str:
    """The name of a range's peer-group; nobody else's name begins like this."""
    return "krp-" + str(listen.network).replace("/", "-").replace(":", "_")


# --- bfdd and zebra -------------------------------------------------------------------------


def _bfdd(config: RouterConfig, sessions: Iterable[tuple[str, Session]]) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for _, session in sessions:
        if session.bfd is not None:
            bfd, ttl = _bounded(session.bfd), _bfd_ttl(config, session)
            lines = found["bfd", f"profile {_profile(session.bfd, ttl)}"] = []
            if bfd.detection_multiplier != _BFD.detection_multiplier:
                lines.append(f"detect-multiplier {bfd.detection_multiplier}")
            if bfd.transmit_interval_ms != _BFD.transmit_interval_ms:
                lines.append(f"transmit-interval {bfd.transmit_interval_ms}")
            if bfd.receive_interval_ms != _BFD.receive_interval_ms:
                lines.append(f"receive-interval {bfd.receive_interval_ms}")
            if ttl != _BFD_TTL:
                lines.append(f"minimum-ttl {ttl}")
    return found


def _profile(bfd: Bfd, ttl: int) -> str:
    bfd = _bounded(bfd)
    times = f"{bfd.detection_multiplier}-{bfd.receive_interval_ms}-{bfd.transmit_interval_ms}"
    return f"krp-{times}-{ttl}"


def _bounded(bfd: Bfd) -> Bfd:
    """Inside of what FRR takes."""
    return Bfd(
        detection_multiplier=min(max(bfd.detection_multiplier, 2), 255),
        receive_interval_ms=min(max(bfd.receive_interval_ms, 10), 60000),
        transmit_interval_ms=min(max(bfd.transmit_interval_ms, 10), 60000),
    )


def _bfd_ttl(config: RouterConfig, session: Session) -> int:
    """The least TTL of packets of sessions over several hops (RFC 5883); others need 255."""
    if is_internal(session, config.asn):
        return 1  # how many routers are between nodes is not known
    hops = max(session.multihop, session.ttl_security)
    return min(max(_HOPS_MAX + 1 - hops, 1), _BFD_TTL)


def _zebra(config: RouterConfig) -> dict[Path, list[str]]:
    # Plain routes: the kernel drops those of a next hop object without a word when that goes.
    top = ["no zebra nexthop kernel enable", "zebra route-map delay-timer 1"]
    lines: dict[Path, list[str]] = {}
    for version in VERSIONS:
        keyword = "ip" if version == 4 else "ipv6"
        top.append(f"{keyword} nht resolve-via-default")
        source = next((each for each in config.source if each.version == version), None)
        if source is not None:
            name = "krp-source-" + str(source).replace(":", "_")
            lines[f"route-map {name} permit 10",] = [f"set src {source}"]
            top.append(f"{keyword} protocol bgp route-map {name}")
    return {(): top, **lines}


# --- order and text -------------------------------------------------------------------------


def _neighbor_order(neighbor: Neighbor) -> tuple[bool, int, object]:
    """Interfaces first, then addresses, as FRR orders them."""
    if neighbor.address is None:
        return False, 0, _by_interface(neighbor.interface)
    return True, neighbor.address.version, int(neighbor.address)


def _compare_interfaces(one: str, other: str) -> int:
    """FRR's if_cmp_name_func: numbers in names count as numbers."""
    while one and other:
        letters = [_DIGITLESS.match(each) for each in (one, other)]
        heads = [each[0] if each is not None else "" for each in letters]
        if heads[0] != heads[1]:
            return _sign(one, other) if len(heads[0]) != len(heads[1]) else _sign(*heads)
        one, other = one[len(heads[0]) :], other[len(heads[1]) :]
        if not one or not other:
            break
        digits = [_DIGITS.match(each) for each in (one, other)]
        numbers = [each[0] if each is not None else "" for each in digits]
        if int(numbers[0]) != int(numbers[1]):
            return -1 if int(numbers[0]) < int(numbers[1]) else 1
        if len(numbers[0]) != len(numbers[1]):
            return _sign(one, other)
        one, other = one[len(numbers[0]) :], other[len(numbers[1]) :]
    return _sign(one, other)


def _sign(one: str, other: str) -> int:
    return (one > other) - (one < other)


_by_interface = cmp_to_key(_compare_interfaces)


def _check(session: Session, key: str) -> None:
    """Whether FRR reads the password as the one word that it is."""
    try:
        raw = session.password.encode()
    except UnicodeEncodeError:
        raw = b" "
    if len(raw) > PASSWORD_MAX or any(byte <= 0x20 or byte == 0x7F for byte in raw):
        raise ValueError(f"the password of {key} is not at most {PASSWORD_MAX} bytes in one word")
