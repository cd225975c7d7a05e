"""One refused packet as people understand it, and what a rule's log prefix says. Pure."""

from msgspec import Struct

from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import POD_CHAIN

REFUSED, AUDITED = "refused", "audited"
POLICY, INVALID, DEFAULT_DENY, DSR = "policy", "invalid", "default-deny", "dsr"
WHY = {
    POLICY: "no policy that isolates the pod allows it",
    INVALID: "it belongs to no connection that conntrack knows",
    DEFAULT_DENY: "no pod with this address is programmed yet (--netpol-default-deny)",
    DSR: "egress policies cannot follow direct server return",
}
_AUDIT = "audit"


class Prefix(Struct, frozen=True):
    """What the firewall's rules write before a packet. ``chain``: the isolated pod's, if it is its
    policies that refuse."""

    direction: Direction
    verdict: str
    cause: str
    chain: str = ""


class End(Struct, frozen=True, omit_defaults=True):
    """Source or destination of a packet. ``pod`` is ``namespace/name``, empty for what is none (or
    not any more); ``node`` is the pod's, or that whose address it is. ``is_in_pod_range``: it is
    only one of those that this node gives to pods, its bridge's or that of a pod that is gone or
    not known yet. ``services`` are those that have this address (a Service's own), or this address
    and port as an endpoint. ``address`` is empty where the kernel handed over no IP header."""

    address: str
    port: int | None = None
    pod: str = ""
    node: str = ""
    services: tuple[str, ...] = ()
    is_in_pod_range: bool = False

    @property
    def namespace(self) -> str:
        return self.pod.partition("/")[0]


class DropRecord(Struct, frozen=True, omit_defaults=True):
    """A packet that was refused, or with ``verdict`` ``audited`` would have been.

    ``time`` as in RFC 3339, in UTC. ``pod`` is the one whose policies were asked, ``policies``
    those that isolate it in this direction, by key, at the time of the record. ``cause`` is one of
    the keys of ``WHY`` and ``reason`` says it in words. ``meant`` is where the client sent it to,
    where that is known and something else: the address of a Service. ``icmp`` is type and code.
    """

    time: str
    node: str
    direction: Direction
    verdict: str
    cause: str
    reason: str
    protocol: str
    source: End
    destination: End
    pod: str = ""
    policies: tuple[str, ...] = ()
    chain: str = ""
    meant: End | None = None
    icmp: tuple[int, int] | None = None
    is_fragment: bool = False

    def concerns(self, namespace: str) -> bool:
        """Whether one of its ends is in a namespace, or a Service of it was meant."""
        services = (*self.destination.services, *(self.meant.services if self.meant else ()))
        spaces = (self.source.pod, self.destination.pod, self.pod, *services)
        return any(each.partition("/")[0] == namespace for each in spaces if each)

    @property
    def services(self) -> tuple[str, ...]:
        """Those that were meant, where that is known (it may have been none); otherwise those that
        may have been."""
        return (self.meant or self.destination).services

    @property
    def port_text(self) -> str:
        """The destination's port and protocol as ``explain`` takes them: ``80/TCP``."""
        name = self.protocol.upper()
        if self.destination.port is not None:
            return f"{self.destination.port}/{name}"
        if self.icmp is not None:
            return f"{name} type {self.icmp[0]}"
        return f"{name} fragment" if self.is_fragment else name


def read_prefix(prefix: str) -> Prefix | None:
    """None for the prefix of a rule that is not the firewall's: others may use the group, too."""
    words = prefix.split()
    chain = words.pop(0) if words and words[0].startswith(POD_CHAIN) else ""
    if not words or words[0] not in list(Direction):
        return None
    direction, rest = Direction(words[0]), words[1:]
    if len(rest) != 1:
        return None
    # "audit" is what "policy" would be, "audit-invalid" what "invalid" would.
    is_audit = rest[0].partition("-")[0] == _AUDIT
    cause = rest[0].removeprefix(_AUDIT).removeprefix("-") or POLICY if is_audit else rest[0]
    if cause not in WHY:
        return None
    return Prefix(direction, AUDITED if is_audit else REFUSED, cause, chain)
