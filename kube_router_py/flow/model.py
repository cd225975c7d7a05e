"""The way of one flow, as values that go to people, to JSON and over the agent's socket. Pure.

Addresses are text in canonical form, ports whole numbers, protocols upper case; what does not apply
is empty (``""``, 0, ``()``, None). Reasons are sentences without a full stop.
"""

from typing import Literal

from msgspec import Struct

from kube_router_py.firewall.evaluate import Side

EndKind = Literal["pod", "service", "node", "external"]
Outcome = Literal["allowed", "denied", "partly", "unreachable"]
OutReason = Literal[
    "",
    "not-ready",  # listed, not ready, not terminating: takes no new connections
    "terminating",  # its pod is going
    "traffic-policy",  # policy Local: it is on another node
    "hints",  # topology hints mean it for other nodes or zones
    "weight",  # its node's weight is 0
    "dsr",  # cannot be reached by direct server return
    "family",  # of the other address family than the address that is connected to
    "unusable",  # the slice cannot be read as it is: no such port, an impossible address
]
NatReason = Literal[
    "none",  # keeps its source
    "hairpin",  # a pod that reaches itself through its own Service
    "masquerade-all",
    "off-node",  # neither the client nor the backend is here: the reply has to come back
    "off-cluster",  # from a pod through a Service to an address that knows no way to pods
    "pod-egress",  # from a pod out of the cluster
    "direct",  # direct server return: the backend sees the client and answers it itself
    "unknown",  # another proxy decides
]
RouteKind = Literal[
    "inside",  # stays inside one pod, or one node's own network
    "pod",  # to a pod of this node, by the bridge
    "node",  # to a process of this node
    "direct",  # to another node in a subnet of this one, or by its routers
    "tunnel",
    "outside",  # out of the cluster: by the node's own routes, or what its peers announce
    "none",  # there is no route
    "unknown",  # who routes here is not this agent
]


class Question(Struct, frozen=True):
    """What was asked, in the asker's words. ``node``: where to look from if the source does not
    say; ``family``: ``IPv4``, ``IPv6`` or ``""``."""

    source: str
    destination: str
    port: int
    protocol: str = "TCP"
    family: str = ""
    node: str = ""


class End(Struct, frozen=True):
    """One end of the flow. ``key``: ``namespace/name`` of the pod or Service, the name of the node.

    ``node``: where it is, as far as that is one node of the cluster. ``address``: the one that is
    judged, ``addresses``: all it has. ``what``: what the address is, in words.
    """

    written: str
    kind: EndKind
    address: str
    key: str = ""
    node: str = ""
    addresses: tuple[str, ...] = ()
    what: str = ""


class ServiceAddress(Struct, frozen=True):
    """An address of a Service on the node: ``kind`` as ``service_addresses.Kind`` is written
    (``cluster-ip``, ``external-ip``, ``load-balancer-ip``, ``node-port``); ``why_not``: why it is
    not served there."""

    kind: str
    address: str
    port: int
    why_not: str = ""


class Server(Struct, frozen=True):
    """The virtual server in IPVS. ``fwmark`` > 0: it is found by mark (direct server return), and
    address, port and protocol are what gets the mark. ``flags`` are words (``mh-fallback``)."""

    address: str
    port: int
    protocol: str
    scheduler: str
    flags: tuple[str, ...] = ()
    persistence_s: int = 0
    fwmark: int = 0


class ServiceStep(Struct, frozen=True):
    """The Service whose address is connected to.

    ``node``: where its virtual server is looked for, another one than the flow's for a NodePort
    there; ``way`` leads to that one. ``server`` is None where ``why_not`` says why it is not served
    there by this agent. ``policy``: the traffic policy that holds for the address, ``Cluster`` or
    ``Local``. ``refused``: this client gets no further than the guard in front of the virtual
    server (source ranges, policy Local), and why.
    """

    key: str
    port: int
    protocol: str
    address: ServiceAddress
    port_name: str = ""
    target_port: str = ""
    addresses: tuple[ServiceAddress, ...] = ()
    policy: str = "Cluster"
    server: Server | None = None
    why_not: str = ""
    refused: str = ""
    node: str = ""
    way: "Route | None" = None


class Translation(Struct, frozen=True):
    """What becomes of the source. ``source``: as the destination sees it, where that is known (the
    kernel chooses the address of ``pod-egress`` by the link it leaves through)."""

    reason: NatReason
    is_translated: bool
    source: str
    why: str


class Route(Struct, frozen=True):
    """How packets leave the node. ``link``: a tunnel's or bridge's name; ``next_hop``: an address;
    ``peer``: the BGP peers by which it may be known; ``destination``: the prefix that decides."""

    kind: RouteKind
    why: str
    link: str = ""
    encapsulation: str = ""
    next_hop: str = ""
    destination: str = ""
    peers: tuple[str, ...] = ()


class Path(Struct, frozen=True):
    """The way from the node to one destination, behind any translation of the destination.

    ``egress_source`` and ``ingress_source``: what the policies of either end see as the source.
    ``egress_destination``: what those of the client see as the destination, where that is not
    ``address`` and ``port`` (a NodePort of another node). ``judged_at`` is the node that enforces
    ingress, ``""`` where nobody does. ``reasons`` as of ``firewall.evaluate.Verdict``.
    """

    address: str
    port: int
    protocol: str
    allowed: bool
    egress: Side
    ingress: Side
    reasons: tuple[str, ...]
    translation: Translation
    route: Route
    egress_source: str = ""
    egress_destination: str = ""
    ingress_source: str = ""
    judged_at: str = ""
    pod: str = ""
    node: str = ""


class Backend(Struct, frozen=True):
    """A listed endpoint of the Service's port. ``out`` is ``""`` where it takes new connections,
    then ``path`` is set; ``why`` says in words why it is in or out."""

    address: str
    port: int
    out: OutReason
    why: str
    pod: str = ""
    node: str = ""
    zone: str = ""
    weight: int = 0
    path: Path | None = None

    @property
    def is_in(self) -> bool:
        return not self.out


class Trace(Struct, frozen=True):
    """Everything about one flow. ``node``: where it is looked from, ``""`` outside of the cluster.

    Through a Service, ``service`` and ``backends`` are set, and ``path`` where it is not served and
    the packets go on as they are; else ``path`` alone.
    """

    question: Question
    source: End
    destination: End
    node: str
    outcome: Outcome
    reason: str
    service: ServiceStep | None = None
    backends: tuple[Backend, ...] = ()
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every way that a packet may take."""
        found = [each.path for each in self.backends if each.path is not None]
        return (*found, self.path) if self.path is not None else tuple(found)


class Check(Struct, frozen=True):
    """One thing that the node's kernel is asked for. ``agrees`` is None where it cannot be told,
    and ``found`` says why; ``remedy`` is for what does not agree."""

    what: str
    expected: str
    found: str
    agrees: bool | None
    remedy: str = ""


class Comparison(Struct, frozen=True):
    """What the kernel of ``node`` has of a flow."""

    node: str
    checks: tuple[Check, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing was found to differ."""
        return not any(each.agrees is False for each in self.checks)


class Answer(Struct, frozen=True):
    """What the agent answers, and what is printed: a trace, or why there is none. ``kernel`` only
    comes from the agent of a node; ``missing`` says why, where it could not be told."""

    trace: Trace | None = None
    error: str = ""
    kernel: Comparison | None = None
    missing: str = ""
    notes: tuple[str, ...] = ()
