"""Direct server return (annotation ``kube-router.io/service.dsr: tunnel``), the pure part.

The node passes a client's packet on as it is, inside a packet to the pod; the pod answers from the
VIP straight to the client. Replies never pass the balancing node again, and the pod sees the
client's address.

    mangle PREROUTING, OUTPUT    a packet to VIP:port gets the mark of that VIP:port, whole
    ip rule, table 78            what has such a mark is local: IPVS sees it in INPUT
    IPVS                         one virtual server per mark; real servers by tunnel
    pod                          a tunnel device with the VIP takes the packet out

A VIP served this way must not be local to any node: a reply passes its pod's node with the VIP as
its source, and Linux drops packets whose source is its own ("martian"). So it gets no route on the
VIP link, and a VIP that another Service uses without DSR, or that is a node's own address, is
served without DSR, and a Problem says so. ClusterIPs and NodePorts are never served by DSR.

MSS: what the tunnel makes longer is the request, and how long the client's segments may be is said
by the pod's SYN-ACK. So that is clamped, on the pod's node, by the outer header. Pure.
"""

import hashlib
import socket
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct, structs

from kube_router_py.cluster.objects import Endpoint, EndpointSlice, Pod, Service
from kube_router_py.kernel.ports import Jump, TableRules
from kube_router_py.marks import DSR_MARK, DSR_MARK_TCP
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.model import (
    PROTOCOL_NAMES,
    Forward,
    Guard,
    RealServerKey,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.service_addresses import Kind
from kube_router_py.services import parse_address

DSR_ANNOTATION = "kube-router.io/service.dsr"
_FIELD = f"metadata.annotations[{DSR_ANNOTATION}]"
_TUNNEL = "tunnel"

TABLE = "mangle"
CHAIN = "KUBE-ROUTER-DSR"
_JUMPS = (
    Jump("PREROUTING", f"-j {CHAIN}", "last"),
    Jump("OUTPUT", f"-j {CHAIN}", "last"),
)
# What the tunnel adds, with the headers that the MSS does not count (RFC 9293, 3.7.1).
_OVERHEAD = {int(socket.AF_INET): 20 + 40, int(socket.AF_INET6): 40 + 60}
_FAMILIES = {int(socket.AF_INET): "inet", int(socket.AF_INET6): "inet6"}
_ICMP = {int(socket.AF_INET): "icmp", int(socket.AF_INET6): "ipv6-icmp"}
_TCP = 6


def dsr_mark(server: VirtualServerKey) -> int:
    """The mark of packets to a VIP:port, the same on every node and after every restart.

    0x7d, a bit that says TCP (only TCP drains), and 23 bits of a hash.
    """
    text = f"{server.family} {server.protocol} {server.address.hex()} {server.port}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    tcp = DSR_MARK_TCP if server.protocol == _TCP else 0
    return DSR_MARK | tcp | int.from_bytes(digest, "big") & (DSR_MARK_TCP - 1)


class Backend(Struct, frozen=True, order=True):
    """A pod that answers for a VIP: ``pod`` is ``namespace/name``, ``node`` where it runs."""

    real: RealServerKey
    pod: str
    uid: str
    node: str


class DirectServer(Struct, frozen=True):
    """A VIP:port served by DSR. ``sources``: the CIDRs that may connect, None for all."""

    address: VirtualServerKey
    mark: int
    backends: tuple[Backend, ...]
    sources: tuple[str, ...] | None = None

    @property
    def key(self) -> VirtualServerKey:
        """The virtual server in IPVS."""
        return VirtualServerKey(self.address.family, 0, b"", 0, self.mark)

    @property
    def vip(self) -> Vip:
        return Vip(self.address.family, self.address.address)


class DirectReturn(Struct, frozen=True):
    """What DSR makes of one Service. ``asked``: every VIP it was asked for, served by it or not.

    ``dropped`` are virtual servers that stand for nothing (a mark taken twice).
    """

    asked: frozenset[Vip] = frozenset()
    servers: tuple[DirectServer, ...] = ()
    dropped: tuple[VirtualServerKey, ...] = ()
    problems: tuple[Problem, ...] = ()


def wants_dsr(service: Service) -> bool:
    """Whether a Service asks for DSR in a way that is understood."""
    return service.metadata.annotation(DSR_ANNOTATION) == _TUNNEL


def compile_dsr(
    service: Service,
    slices: Iterable[EndpointSlice],
    compiled: CompiledService,
    node: ThisNode,
    *,
    is_shared: Callable[[Vip], bool],
    pod_of: Callable[[str], Pod | None],
    is_isolated: Callable[[str], bool],
) -> DirectReturn:
    """Which virtual servers of a compiled Service become direct ones, and who answers for them.

    ``is_shared``: another Service needs the VIP without DSR. ``pod_of``: a Pod by key, as far as
    it is known. ``is_isolated``: a NetworkPolicy isolates the pod (by UID, of this node) for
    ingress; of pods elsewhere their own node knows, and does not make them ready.
    """
    value = service.metadata.annotation(DSR_ANNOTATION)
    if value is None:
        return DirectReturn()
    name = f"Service {compiled.key}"
    if value != _TUNNEL:
        reason = f"{value!r} is not {_TUNNEL}; the Service is served without DSR"
        return DirectReturn(problems=(Problem(name, _FIELD, reason),))
    problems: list[Problem] = []

    def report(reason: str, field: str = _FIELD) -> None:
        problems.append(Problem(name, field, reason))

    listed = _endpoints(slices)
    servers: dict[int, DirectServer] = {}
    dropped: list[VirtualServerKey] = []
    asked: set[Vip] = set()
    for key in sorted(compiled.virtual_servers):
        if compiled.origins[key].kind not in (Kind.EXTERNAL_IP, Kind.LOAD_BALANCER_IP):
            continue
        vip = Vip(key.family, key.address)
        asked.add(vip)
        if key.address in node.addresses.values():
            report(f"{vip} is an address of this node, where it is served without DSR")
        elif is_shared(vip):
            report(
                f"{vip} is served without DSR, because another Service uses it so: annotate that "
                "one too, or give this one an address of its own"
            )
        elif (mark := dsr_mark(key)) in servers:
            taken = servers[mark].address
            report(f"{key} is not served: its mark {mark:#x} is that of {taken}; take another port")
            dropped.append(key)
        else:
            real = compiled.virtual_servers[key].real_servers
            backends = _Backends(key, listed, node, pod_of, is_isolated, report)
            chosen = tuple(backend for each in sorted(real) for backend in backends.choose(each))
            sources = _sources(compiled.guards.get(key), key.family, node)
            servers[mark] = DirectServer(key, mark, chosen, sources)
    if not asked:
        report("there is no external or load balancer IP, and DSR is for these only")
    found = tuple(servers[mark] for mark in sorted(servers))
    return DirectReturn(frozenset(asked), found, tuple(dropped), tuple(sorted(set(problems))))


class _Backends:
    """The choice of backends for one VIP:port."""

    def __init__(
        self,
        server: VirtualServerKey,
        listed: dict[RealServerKey, Endpoint],
        node: ThisNode,
        pod_of: Callable[[str], Pod | None],
        is_isolated: Callable[[str], bool],
        report: Callable[[str, str], None],
    ) -> None:
        self._server, self._listed, self._node = server, listed, node
        self._pod_of, self._is_isolated, self._report = pod_of, is_isolated, report

    def choose(self, real: RealServerKey) -> Sequence[Backend]:
        """The backend behind a real server, or none and a Problem."""
        endpoint = self._listed.get(RealServerKey(real.family, real.address, 0))
        target = endpoint.target_ref if endpoint else None
        reason = ""
        if target is None or target.kind not in ("Pod", "") or not target.uid:
            reason = "no pod stands behind it"
        elif real.port != self._server.port:
            reason = (
                f"the pod listens on port {real.port}, not {self._server.port}: a tunnel does not "
                "change ports, so port and targetPort have to be equal"
            )
        elif self._has_host_network(f"{target.namespace}/{target.name}", real):
            reason = "its pod is in the host's network, where the VIP may not be local"
        elif endpoint and endpoint.node_name == self._node.name and self._is_isolated(target.uid):
            reason = (
                "a NetworkPolicy isolates its pod for ingress (or NetworkPolicies cannot be read), "
                "and could not be enforced on packets inside a tunnel"
            )
        if reason or target is None or endpoint is None:
            self._report(f"endpoint {real} is not used for {self._server}: {reason}", _FIELD)
            return ()
        pod = f"{target.namespace}/{target.name}"
        return (Backend(real, pod, target.uid, endpoint.node_name or ""),)

    def _has_host_network(self, key: str, real: RealServerKey) -> bool:
        if real.address in self._node.addresses.values():
            return True
        pod = self._pod_of(key)
        return bool(pod is not None and pod.spec.host_network)


def _endpoints(slices: Iterable[EndpointSlice]) -> dict[RealServerKey, Endpoint]:
    """Endpoints by address (port 0), those with a pod preferred."""
    found: dict[RealServerKey, Endpoint] = {}
    for each in slices:
        for endpoint in each.endpoints or ():
            parsed = parse_address(endpoint.addresses[0]) if endpoint.addresses else None
            if parsed is None:
                continue
            key = RealServerKey(parsed[0], parsed[1], 0)
            known = found.get(key)
            if known is None or known.target_ref is None:
                found[key] = endpoint
    return found


def _sources(guard: Guard | None, family: int, node: ThisNode) -> tuple[str, ...] | None:
    """Who may connect. Packets to a DSR VIP are judged where they are marked, by rules.

    externalTrafficPolicy Local without a local endpoint: the pods and addresses of this node.
    """
    if guard is None:
        return None
    if guard.everyone:
        return ()
    if guard.outsiders:
        own = node.addresses.get(family)
        here = (f"{socket.inet_ntop(family, own)}/{len(own) * 8}",) if own else ()
        return (*node.pod_cidrs.get(family, ()), *here)
    return guard.source_ranges


def with_direct_servers(
    compiled: CompiledService,
    direct: DirectReturn,
    is_ready: Callable[[DirectServer, Backend], bool],
) -> CompiledService:
    """The Service with its direct servers in place of the ordinary ones; VIPs lose their route.

    Backends that are not ready are left out; those that only wait for their pod side stay where
    they stand (``paused``), so that nothing is cut while a node's word is outstanding.
    """
    if not direct.servers and not direct.dropped and not direct.problems:
        return compiled
    servers = dict(compiled.virtual_servers)
    origins = dict(compiled.origins)
    paused, terminating = dict(compiled.paused), dict(compiled.terminating)
    guards = dict(compiled.guards)
    vips = {each.vip for each in direct.servers}
    for key in direct.dropped:
        for table in (servers, origins, paused, terminating, guards):
            table.pop(key, None)
    for each in direct.servers:
        old, key = each.address, each.key
        state = servers.pop(old)
        chosen = {
            backend.real: structs.replace(
                state.real_servers[backend.real], forward=int(Forward.TUNNEL)
            )
            for backend in each.backends
            if is_ready(each, backend)
        }
        servers[key] = VirtualServerState(state.config, chosen)
        origins[key] = origins.pop(old)
        guards.pop(old, None)
        for table in (paused, terminating):
            if old in table:
                table[key] = table.pop(old)
    return structs.replace(
        compiled,
        virtual_servers=servers,
        origins=origins,
        paused=paused,
        terminating=terminating,
        guards=guards,
        vips=frozenset(vip for vip in compiled.vips if vip not in vips),
        problems=tuple(sorted({*compiled.problems, *direct.problems})),
    )


def compile_marks(servers: Iterable[DirectServer], mtu: dict[Vip, int]) -> dict[str, TableRules]:
    """The mangle rules by family (``inet``, ``inet6``) for direct servers.

    ``mtu``: of the links of this node's pods that answer for a VIP; without one no SYN-ACK of that
    VIP begins here. ICMP to the VIP is marked as a whole: IPVS passes errors on by what they quote.
    """
    marks: dict[str, list[str]] = {}
    others: dict[str, dict[str, None]] = {}
    for each in sorted(servers, key=lambda found: found.address):
        family, vip = each.address.family, each.vip
        name = _FAMILIES[family]
        host = f"{vip}/{128 if family == socket.AF_INET6 else 32}"
        protocol = PROTOCOL_NAMES[each.address.protocol]
        to = f"-d {host} -p {protocol} -m {protocol} --dport {each.address.port}"
        mark = f"-j MARK --set-xmark {each.mark:#x}/0xffffffff"
        rules = marks.setdefault(name, [])
        if each.sources is None:
            rules.append(f"{to} {mark}")
        else:
            rules += (f"-s {source} {to} {mark}" for source in each.sources)
            rules.append(f"{to} -m mark ! --mark {each.mark:#x} -j DROP")
        rest = others.setdefault(name, {})
        errors = f"-j MARK --set-xmark {DSR_MARK:#x}/0xffffffff"
        rest[f"-d {host} -p {_ICMP[family]} {errors}"] = None
        if each.address.protocol == _TCP and vip in mtu:
            size = mtu[vip] - _OVERHEAD[family]
            rest[
                f"-s {host} -p tcp -m tcp --sport {each.address.port} "
                f"--tcp-flags SYN,ACK SYN,ACK -j TCPMSS --set-mss {size}"
            ] = None
    return {
        name: TableRules({CHAIN: (*rules, *others[name])}, _JUMPS) for name, rules in marks.items()
    }
