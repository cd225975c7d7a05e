"""The iptables rules of the firewall, as text. Pure.

Where they stand (table filter, each of the first three jumps first in its chain):

    INPUT    KUBE-ROUTER-INPUT     what local pods send to this node; what they send to a Service
                                   is judged behind IPVS, by the address it was sent on to
    FORWARD  KUBE-ROUTER-FORWARD   between pods, and between pods and elsewhere
    OUTPUT   KUBE-ROUTER-OUTPUT    what IPVS sent on; what this node sends itself is exempt from
                                   ingress policies, but for nothing else
    FORWARD, last  KUBE-ROUTER-ACCEPT-FWD   what concerns local pods and nobody objected to

    KUBE-ROUTER-EGRESS, -INGRESS   entered by packets from and to isolated pods
      KUBE-POD-OUT-x, -IN-x        dispatch by the low bits of the address
        KUBE-POD-FW-*              one pod, one direction: does one of its policies admit this?
          KUBE-NWPLCY-*            one policy, one direction
    KUBE-NWPLCY-TAIL-OUT, -IN      with --netpol-default-deny: pods that are not programmed yet

A policy admits a packet by a mark, which the pod's chain looks at and clears. A direction that no
policy is about has no chain; its packets do not get past looks into two sets.

What a pod's chain ends with, if no policy admits the packet:

    isolated   NFLOG "KUBE-POD-FW-x ingress policy "   10 a minute
               REJECT                                  counts all that is refused
    audited    NFLOG "KUBE-POD-FW-x ingress audit "    10 a minute
               RETURN, "would be refused"              counts all that would be

A pod is audited in a direction where all policies that isolate it in it are (annotation
``kube-router.io/audit``); beside one that is not, audited policies admit like others. ``counters``
says which rules of a chain count what. Packets that conntrack does not know are refused to isolated
pods only ("ingress invalid "), and logged for audited ones ("ingress audit-invalid "). A pod
that is isolated for egress is refused Services with direct server return ("egress dsr ").
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.firewall.model import (
    ALL_PODS,
    Block,
    Direction,
    Peer,
    PodFacts,
    Policy,
    Port,
    PortName,
    PortRange,
    Selection,
)
from kube_router_py.firewall.names import (
    block_set,
    comment,
    pod_chain,
    policy_chain,
    port_set,
    selection_set,
)
from kube_router_py.kernel.ipset_text import canonical_entries
from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.marks import ADMITTED

DIRECTION_CHAINS = {
    Direction.INGRESS: "KUBE-ROUTER-INGRESS",
    Direction.EGRESS: "KUBE-ROUTER-EGRESS",
}
DISPATCH_CHAINS = {Direction.INGRESS: "KUBE-POD-IN-", Direction.EGRESS: "KUBE-POD-OUT-"}
ALLOW = "KUBE-NWPLCY-ALLOW"

_ADMITTED = f"{ADMITTED:#x}/{ADMITTED:#x}"
_CLEARED = f"0x0/{ADMITTED:#x}"
# A pod that is refused a lot is logged now and then; the group is the one of kube-router.
_NFLOG = "-m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-prefix {} --nflog-group 100"
REJECT = {
    "inet": "-j REJECT --reject-with icmp-port-unreachable",
    "inet6": "-j REJECT --reject-with icmp6-port-unreachable",
}
_ADMIT = f"-j MARK --set-xmark {_ADMITTED}"
TAKE_BACK = f"-j MARK --set-xmark {_CLEARED}"
"""Without this rule what comes before it in a policy's chain would admit more than it may."""

# As many addresses are compared one by one; more are told apart by four bits at a time.
_BUCKET = 16
_DIGITS_IN_A_NAME = 28 - max(map(len, DISPATCH_CHAINS.values()))
# Peers times ports up to which each pair has a rule of its own. With more, named ports are those of
# all pods, which is the same unless two pods claim one address. A policy of 40 KiB has room for so
# many peers and ports that no node could hold a rule for each pair.
_PAIRS_MOST = 64


class SetSource(Struct, frozen=True):
    """A set that a rule refers to, and what is in it: ``networks``, or of the pods of a selection
    the addresses (with the number of the port that they call ``port``)."""

    spec: IpsetSpec
    selection: Selection | None = None
    port: PortName | None = None
    networks: tuple[str, ...] = ()

    def entries(self, pod: PodFacts) -> tuple[str, ...]:
        """What one pod of the selection gives the set."""
        addresses = pod.addresses.get(self.spec.family, ())
        if self.port is None:
            return addresses
        number = pod.ports.get((self.port.protocol, self.port.name))
        if number is None:
            return ()
        return tuple(f"{address},{self.port.protocol}:{number}" for address in addresses)


def policy_rules(
    policy: Policy, direction: Direction, family: str
) -> tuple[tuple[str, ...], tuple[SetSource, ...]]:
    """The rules of a policy's chain, and the sets they refer to.

    Peers of the other family, and what matches nothing, have no rule.
    """
    lines: list[str] = []
    sources: dict[SetSource, None] = {}

    def add(title: str, peer: Peer | None, port: Port | None, does: str, *where: str) -> None:
        used, matches = _matches(policy, direction, family, peer, port)
        sources.update(dict.fromkeys(used))
        says = comment(f"{title}{_described(peer, port)}")
        lines.append(" ".join((*where, *matches, says, does)))

    for rule in policy.rules[direction]:
        title = f"{policy.key} {direction} rule {rule.index}"
        peers = [each for each in rule.peers or () if _concerns(each, family)]
        ports = rule.ports or ()
        if len(peers) * len(ports) > _PAIRS_MOST:
            # Ports admit for the moment; what is not from one of the peers does not keep it.
            for port in ports:
                add(title, None, port, _ADMIT)
            for peer in peers:
                add(title, peer, None, "-j RETURN", f"-m mark --mark {_ADMITTED}")
            lines.append(TAKE_BACK)
            continue
        for each in peers if rule.peers is not None else (None,):
            for its in ports if rule.ports is not None else (None,):
                add(title, each, its, f"-g {ALLOW}")
    return tuple(lines), tuple(sources)


def _concerns(peer: Peer, family: str) -> bool:
    return not isinstance(peer, Block) or (peer.family == family and bool(peer.networks))


def _matches(
    policy: Policy,
    direction: Direction,
    family: str,
    peer: Peer | None,
    port: Port | None,
) -> tuple[list[SetSource], list[str]]:
    side = "src" if direction is Direction.INGRESS else "dst"
    used: list[SetSource] = []
    found: list[str] = []
    if isinstance(port, PortRange):
        found.append(f"-p {port.protocol}")
        if (port.first, port.last) != (0, 65535):
            ports = f"{port.first}" if port.first == port.last else f"{port.first}:{port.last}"
            found.append(f"-m {port.protocol} --dport {ports}")
    elif port is not None:
        # The name is the destination's own: in ingress the target's, in egress the peer's.
        if direction is Direction.INGRESS:
            owner = policy.target or ALL_PODS
        else:
            owner = peer if isinstance(peer, Selection) else ALL_PODS
        source = SetSource(port_set(owner, port, family), owner, port)
        used.append(source)
        found.append(f"-m set --match-set {source.spec.name} dst,dst")
        if direction is Direction.EGRESS and isinstance(peer, Selection):
            return used, found  # who is in that set is a peer
    if isinstance(peer, Block):
        spec = block_set(peer)
        networks = sorted(canonical_entries(spec.type, peer.networks))  # /0 as two halves
        source = SetSource(spec, networks=tuple(networks))
    elif peer is not None:
        source = SetSource(selection_set(peer, family), peer)
    else:
        return used, found
    used.append(source)
    found.append(f"-m set --match-set {source.spec.name} {side}")
    return used, found


def _described(peer: Peer | None, port: Port | None) -> str:
    words = ""
    if isinstance(peer, Block):
        words += f": {peer.text}"
    elif peer is not None:
        words += f": {peer}"
    if isinstance(port, PortName):
        words += f" port {port.name}/{port.protocol}"
    return words


def pod_rules(
    key: str,
    direction: Direction,
    family: str,
    addresses: Iterable[str],
    policies: Sequence[str],
    *,
    is_audited: bool = False,
) -> tuple[str, ...]:
    """The rules of the chain of a pod that is isolated, or audited; ``policies`` by key, sorted."""
    name = pod_chain(key, direction)
    lines = [
        f"-s {_host(each)} -d {_host(each)} {comment(f'{key} reaches itself')} -j RETURN"
        for each in addresses
    ]
    lines.append(f"{comment(f'{direction} of pod {key}')} {TAKE_BACK}")
    for index, policy in enumerate(policies):
        unless = f"-m mark ! --mark {_ADMITTED} " if index else ""
        lines.append(f"{unless}{comment(policy)} -j {policy_chain(policy, direction)}")
    unless = f"-m mark ! --mark {_ADMITTED}"
    # What nobody admitted goes back without the mark: it opens no other chain of the address.
    does = f"{comment('would be refused')} -j RETURN" if is_audited else REJECT[family]
    why = "audit" if is_audited else "policy"
    lines += (f"{unless} {nflog(f'{name} {direction} {why}')}", f"{unless} {does}", TAKE_BACK)
    return tuple(lines)


def allow_rules() -> tuple[str, ...]:
    """Entered by -g from a policy's chain: it returns into the pod's chain."""
    return (_ADMIT,)


def dispatch_top(direction: Direction, family: str, digits: Iterable[int]) -> tuple[str, ...]:
    """From the chain of a direction to the buckets that there are."""
    name = DISPATCH_CHAINS[direction]
    return tuple(
        f"{_match_digit(direction, family, digit, 0)} -j {name}{digit:X}"
        for digit in sorted(digits)
    )


def dispatch_bucket(
    direction: Direction, family: str, digit: int, chains: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The chains of one bucket: pod chains by address, all addresses ending in ``digit``.

    Two pods may claim an address for a moment: each of their chains has a say then.
    """
    found: dict[str, tuple[str, ...]] = {}
    _split(found, direction, family, f"{digit:X}", chains)
    return found


def _split(
    found: dict[str, tuple[str, ...]],
    direction: Direction,
    family: str,
    path: str,
    chains: Mapping[str, Sequence[str]],
) -> None:
    name = DISPATCH_CHAINS[direction] + path
    depth = len(path)
    if len(chains) <= _BUCKET or depth >= _digits(family):
        side = _side(direction)
        found[name] = tuple(
            f"-{side} {_host(address)} -j {chain}"
            for address in sorted(chains, key=ipaddress.ip_address)
            for chain in chains[address]
        )
        return
    parts: dict[int, dict[str, Sequence[str]]] = {}
    for address, value in chains.items():
        parts.setdefault(address_digit(address, depth), {})[address] = value
    found[name] = tuple(
        f"{_match_digit(direction, family, digit, depth)} -j {name}{digit:X}"
        for digit in sorted(parts)
    )
    for digit, part in parts.items():
        _split(found, direction, family, f"{path}{digit:X}", part)


def address_digit(address: str, depth: int) -> int:
    """A hexadecimal digit of an address, counted from its end: neighbours differ there."""
    return int(ipaddress.ip_address(address)) >> 4 * depth & 0xF


def _digits(family: str) -> int:
    """How many are told apart: of IPv6 no more than a chain's name has room for."""
    return 8 if family == "inet" else _DIGITS_IN_A_NAME


def _match_digit(direction: Direction, family: str, digit: int, depth: int) -> str:
    kind = ipaddress.IPv4Address if family == "inet" else ipaddress.IPv6Address
    value, mask = kind(digit << 4 * depth), kind(0xF << 4 * depth)
    return f"-{_side(direction)} {value}/{mask}"


def _side(direction: Direction) -> str:
    return "d" if direction is Direction.INGRESS else "s"


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def nflog(prefix: str) -> str:
    """Log a packet that is about to be refused, or would be (the kernel has room for 63 bytes of a
    prefix: NF_LOG_PREFIXLEN in linux/netfilter/nf_log.h)."""
    return _NFLOG.format(f'"{prefix} "')
