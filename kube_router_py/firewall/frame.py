"""The rules that are there whatever the policies: jumps, first chains, default deny. Pure.

See ``chains`` for the way a packet takes. The sets that these rules refer to follow this node's
pods and the cluster's Services.
"""

from collections.abc import Iterator

from kube_router_py.firewall.chains import (
    ALLOW,
    DIRECTION_CHAINS,
    DISPATCH_CHAINS,
    REJECT,
    allow_rules,
    nflog,
)
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import (
    POD_CHAIN,
    POLICY_CHAIN,
    PORT_SET,
    SOURCE_SET,
    comment,
    family_set,
)
from kube_router_py.firewall.settings import FirewallOptions, NodeFacts
from kube_router_py.kernel.ports import IpsetSpec, Jump
from kube_router_py.marks import DSR_MARK, DSR_MARK_MASK

INPUT, FORWARD, OUTPUT = "KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT"
ACCEPT = "KUBE-ROUTER-ACCEPT-FWD"
TAIL = {
    Direction.INGRESS: "KUBE-NWPLCY-TAIL-IN",
    Direction.EGRESS: "KUBE-NWPLCY-TAIL-OUT",
}

JUMPS = (
    Jump("INPUT", f"-j {INPUT}", "first"),
    Jump("FORWARD", f"-j {FORWARD}", "first"),
    Jump("OUTPUT", f"-j {OUTPUT}", "first"),
    Jump("FORWARD", f"-j {ACCEPT}", "last"),
)

_LOCAL_PODS = "kube-router-local-pods"
_ISOLATED = {
    Direction.INGRESS: "kube-router-pods-in",
    Direction.EGRESS: "kube-router-pods-out",
}
_AUDITED = {
    Direction.INGRESS: "kube-router-audited-in",
    Direction.EGRESS: "kube-router-audited-out",
}
_SERVICES = "kube-router-services"
_NODE_PORTS = "kube-router-node-ports"
_SETS = {_LOCAL_PODS, *_ISOLATED.values(), *_AUDITED.values(), _SERVICES, _NODE_PORTS}

_KNOWN = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
# Errors that concern a connection, pings as in kube-router, and what IPv6 finds its neighbours,
# routers and addresses by (RFC 4890, 4.3 and 4.4).
_NEIGHBOURS = {
    "inet": [],
    "inet6": [f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind}" for kind in range(133, 138)],
}
_ICMP = {
    "inet": [f"-p icmp -m icmp --icmp-type {kind}" for kind in (3, 8, 11)],
    "inet6": [
        *(f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind}" for kind in (1, 2, 3, 4, 128, 129)),
        *_NEIGHBOURS["inet6"],
    ],
}


def local_pods(family: str) -> IpsetSpec:
    """The addresses of this node's pods that are programmed."""
    return family_set(_LOCAL_PODS, "hash:ip", family)


def isolated_pods(direction: Direction, family: str) -> IpsetSpec:
    """The addresses of those that policies isolate in a direction."""
    return family_set(_ISOLATED[direction], "hash:ip", family)


def audited_pods(direction: Direction, family: str) -> IpsetSpec:
    """The addresses of those that policies would isolate, were they not all audited."""
    return family_set(_AUDITED[direction], "hash:ip", family)


def services(family: str) -> IpsetSpec:
    """Addresses and ports of Services."""
    return family_set(_SERVICES, "hash:ip,port", family)


def node_ports(family: str) -> IpsetSpec:
    """NodePorts, each with all addresses there are (a type that needs no list of the node's); the
    rule says which of the node's own they are served at."""
    return family_set(_NODE_PORTS, "hash:net,port", family)


def frame_sets(family: str) -> tuple[IpsetSpec, ...]:
    """The sets that the rules here refer to."""
    isolated = (isolated_pods(direction, family) for direction in Direction)
    audited = (audited_pods(direction, family) for direction in Direction)
    return (local_pods(family), *isolated, *audited, services(family), node_ports(family))


def is_own_set(name: str) -> bool:
    """Whether a set is the firewall's, by its name; so are those that kube-router left."""
    plain = name.removeprefix("inet6:")
    return plain in _SETS or plain.startswith((SOURCE_SET, PORT_SET))


def is_marker_set(name: str) -> bool:
    """Whether a set tells that this agent's firewall was here: kube-router has no such name."""
    return name.removeprefix("inet6:") in _ISOLATED.values()


def is_own_chain(name: str) -> bool:
    """The same for a chain of table filter."""
    return name in (INPUT, FORWARD, OUTPUT, ACCEPT, *DIRECTION_CHAINS.values()) or name.startswith(
        (POD_CHAIN, POLICY_CHAIN, *DISPATCH_CHAINS.values())
    )


def frame_chains(
    family: str, node: NodeFacts, options: FirewallOptions
) -> dict[str, tuple[str, ...]]:
    """All but the chains of a direction, which ``direction_rules`` gives."""
    egress = _entrances(Direction.EGRESS, family)
    ingress = _entrances(Direction.INGRESS, family)
    out = [f"-j {TAIL[Direction.EGRESS]}"] if options.default_deny else []
    tails = [*out, f"-j {TAIL[Direction.INGRESS]}"] if options.default_deny else []
    return {
        # Not the other tail: the address of a bridge lies in a pod CIDR, and is no pod's.
        INPUT: (_KNOWN, *_input(family, node, options), *out),
        FORWARD: (_KNOWN, *egress, *ingress, *tails),
        OUTPUT: (
            _KNOWN,
            *egress,
            # Probes of the kubelet, and whatever else this node sends itself. Source NAT comes
            # later: nothing else has a local source here.
            "-m addrtype --src-type LOCAL -j RETURN",
            *ingress,
            *tails,
        ),
        ACCEPT: tuple(
            f"-m set --match-set {local_pods(family).name} {side} -j ACCEPT"
            for side in ("src", "dst")
        ),
        ALLOW: allow_rules(),
        **_tails(family, node, options),
    }


def direction_rules(
    direction: Direction, family: str, dispatch: tuple[str, ...]
) -> tuple[str, ...]:
    """The chain that packets from (or to) isolated and audited pods enter."""
    invalid = "-m conntrack --ctstate INVALID"
    isolated = f"{invalid} {_among(isolated_pods(direction, family), direction)}"
    return (
        *(f"{each} -j RETURN" for each in _ICMP[family]),
        f"{isolated} {nflog(f'{direction} invalid')}",
        f"{isolated} -j DROP",
        f"{invalid} {nflog(f'{direction} audit-invalid')}",
        f"{invalid} {comment('would be refused')} -j RETURN",
        *dispatch,
    )


def _input(family: str, node: NodeFacts, options: FirewallOptions) -> Iterator[str]:
    source = _among(isolated_pods(Direction.EGRESS, family), Direction.EGRESS)
    # Direct server return wraps the packet: behind IPVS nobody could tell whose it is.
    wrapped = f"{source} -m mark --mark {DSR_MARK:#x}/{DSR_MARK_MASK:#x}"
    yield f"{wrapped} {nflog(f'{Direction.EGRESS} dsr')}"
    yield (
        f"{wrapped} {comment('egress policies cannot follow direct server return')} "
        f"{REJECT[family]}"
    )
    if options.allow_own_node:
        return
    yield f"-m set --match-set {services(family).name} dst,dst -j RETURN"
    for where in _node_port_addresses(family, node, options):
        yield (
            f"{where}-m addrtype --dst-type LOCAL "
            f"-m set --match-set {node_ports(family).name} dst,dst -j RETURN"
        )
    yield from _entrances(Direction.EGRESS, family)


def _node_port_addresses(family: str, node: NodeFacts, options: FirewallOptions) -> Iterator[str]:
    """Where the proxy serves NodePorts (``proxy.settings.this_node``). At other addresses of the
    node such a port is one of a process of the node, and judged like it."""
    version = 4 if family == "inet" else 6
    ranges = [each for each in options.node_port_ranges if each.version == version]
    if ranges:
        # iptables(8) does not print a destination that is everything.
        yield from (f"-d {each} " if each.prefixlen else "" for each in ranges)
    elif options.node_ports_everywhere:
        yield ""
    elif family in node.addresses:
        address = node.addresses[family]
        yield f"-d {address}/{32 if version == 4 else 128} "


def _entrances(direction: Direction, family: str) -> tuple[str, str]:
    isolated, audited = isolated_pods(direction, family), audited_pods(direction, family)
    enters = f"-j {DIRECTION_CHAINS[direction]}"
    # Of two pods with one address one may be audited: its packets enter once, and count once.
    once = _among(isolated, direction, "! ")
    return (
        f"{_among(isolated, direction)} {enters}",
        f"{_among(audited, direction)} {once} {enters}",
    )


def _among(pods: IpsetSpec, direction: Direction, unless: str = "") -> str:
    side = "dst" if direction is Direction.INGRESS else "src"
    return f"-m set {unless}--match-set {pods.name} {side}"


def _tails(family: str, node: NodeFacts, options: FirewallOptions) -> dict[str, tuple[str, ...]]:
    """What has an address of this node's pods, but belongs to no pod that is programmed."""
    if not options.default_deny:
        return {}
    name = local_pods(family).name
    found: dict[str, tuple[str, ...]] = {}
    for direction, option, side in (
        (Direction.EGRESS, "-s", "src"),
        (Direction.INGRESS, "-d", "dst"),
    ):
        lines = [f"{each} -j RETURN" for each in _NEIGHBOURS[family]]
        for network in node.pod_networks.get(family, ()):
            match = f"{option} {network} -m set ! --match-set {name} {side}"
            lines.append(f"{match} {nflog(f'{direction} default-deny')}")
            lines.append(f"{match} {comment('not programmed yet')} {REJECT[family]}")
        found[TAIL[direction]] = tuple(lines)
    return found
