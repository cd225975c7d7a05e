"""Direct server return on this node: pod sides, marks and policy routing, in the order of safety.

Within a turn of the service proxy:

    adapt          a compiled Service gets its direct servers; the pod sides of this node's pods
                   are made, and only those that stand, or that their own node says stand, count
    before_grow    routing, then marks: a mark without its virtual server changes nothing yet
    after_shrink   marks, pod sides and routing that nothing needs any more go

Nothing here raises for one pod or one Service: what fails becomes a Problem of that Service, which
is tried again. What pods of this node are ready for is told to the others (``DsrReady``).
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Pod, Service
from kube_router_py.errors import KernelError, KubeRouterError
from kube_router_py.kernel.ports import DsrPorts, HostPorts, TableRules
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.dsr import (
    CHAIN,
    DSR_ANNOTATION,
    TABLE,
    Backend,
    DirectReturn,
    DirectServer,
    compile_dsr,
    compile_marks,
    with_direct_servers,
)
from kube_router_py.proxy.dsr_pods import PodSides
from kube_router_py.proxy.dsr_ready import DsrReady, NobodyReady
from kube_router_py.proxy.model import IpvsTable, Vip, VirtualServerKey
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.services import FAMILY_NAMES

_log = logging.getLogger(__name__)

# The dirty key of everything that other nodes' word decides.
OTHER_NODES = "direct server return: other nodes"

SLOPPY_TCP = "net/ipv4/vs/sloppy_tcp"
_MAGLEV = "mh"


class Dsr:
    """Used by the service proxy's loop, in its thread. ``open_ports`` is called when first needed.

    ``is_isolated`` tells whether a NetworkPolicy isolates a pod, by UID, for ingress.
    """

    def __init__(
        self,
        node_name: str,
        open_ports: Callable[[], DsrPorts] | None = None,
        ready: DsrReady | None = None,
        is_isolated: Callable[[str], bool] = lambda uid: False,
    ) -> None:
        self._node_name = node_name
        self._open_ports = open_ports
        self._ready = ready or NobodyReady()
        self._is_isolated = is_isolated
        self.ports: DsrPorts | None = None
        self._forget()

    def _forget(self) -> None:
        self._services: dict[str, DirectReturn] = {}
        self._schedulers: dict[str, str] = {}
        self._asked: dict[Vip, set[str]] = {}
        self._pods = PodSides()
        self._problems: dict[str, list[Problem]] = {}
        self._failed: set[str] = set()
        self._host_problems: tuple[Problem, ...] = ()
        self._rules: dict[str, TableRules] = {}
        self._marked: dict[VirtualServerKey, DirectServer] = {}
        self._routed: frozenset[int] = frozenset()
        self._loosened: set[tuple[int, bytes]] = set()
        self._set_sloppy = False
        self._started = False
        self._full = True

    def close(self) -> None:
        """Close the adapters and forget what was known; the kernel keeps everything."""
        ports, self.ports = self.ports, None
        if ports is not None:
            ports.close()
        self._forget()

    # --- in a turn -----------------------------------------------------------------------------

    def begin(self, dirty: frozenset[Hashable], *, full: bool) -> frozenset[Hashable]:
        """A turn begins; returns its dirty keys, those that other nodes' word makes dirty included.

        In a full turn nothing is taken for granted: every pod side is looked at again.
        """
        self._full = full
        if full:
            self._pods.doubt()
        if OTHER_NODES in dirty:
            dirty = (dirty - {OTHER_NODES}) | self._services.keys()
        return dirty

    def adapt(
        self,
        given: Service | str,
        cache: Cache,
        compiled: CompiledService | None,
        node: ThisNode,
        desired: Desired,
    ) -> CompiledService | None:
        """The compiled Service (``given``: the Service, or the key of one that is gone) with its
        direct servers. Costs nothing where none was asked for."""
        service = None if isinstance(given, str) else given
        key = given if isinstance(given, str) else given.metadata.key
        annotated = service is not None and service.metadata.annotation(DSR_ANNOTATION) is not None
        if not annotated and key not in self._services:
            return compiled
        direct = DirectReturn()
        if annotated and service is not None and compiled is not None:

            def is_shared(vip: Vip) -> bool:
                others = desired.vip_claimants(vip) - self._asked.get(vip, set()) - {key}
                return bool(others)

            direct = compile_dsr(
                service,
                cache.slices_of(key),
                compiled,
                node,
                is_shared=is_shared,
                pod_of=lambda name: cache.get(Pod, name) if Pod in cache.kinds else None,
                is_isolated=self._is_isolated,
            )
        self._take(key, direct, compiled)
        if compiled is None:
            return None
        ready = self._prepare(key, direct)
        return with_direct_servers(
            compiled, direct, lambda server, backend: (server.address, backend.uid) in ready
        )

    def affected(self, vips: Iterable[Vip]) -> set[str]:
        """The Services to look at again when other Services' claims on these VIPs have changed."""
        if not self._asked:
            return set()
        return {key for vip in vips for key in self._asked.get(vip, ())}

    def _take(self, key: str, direct: DirectReturn, compiled: CompiledService | None) -> None:
        old = self._services.pop(key, DirectReturn())
        for vip in old.asked - direct.asked:
            keys = self._asked.get(vip, set())
            keys.discard(key)
            if not keys:
                self._asked.pop(vip, None)
        for vip in direct.asked:
            self._asked.setdefault(vip, set()).add(key)
        self._problems.pop(key, None)
        self._failed.discard(key)
        self._schedulers.pop(key, None)
        if direct != DirectReturn():
            self._services[key] = direct
            if compiled is not None and direct.servers:
                state = compiled.virtual_servers[direct.servers[0].address]
                self._schedulers[key] = state.config.scheduler

    def _prepare(self, key: str, direct: DirectReturn) -> set[tuple[VirtualServerKey, str]]:
        """Make the pod sides on this node; returns (VIP:port, pod) for all that are ready."""
        ready: set[tuple[VirtualServerKey, str]] = set()
        for server in direct.servers:
            for backend in server.backends:
                if backend.node != self._node_name:
                    if self._ready.elsewhere(backend.node, backend.uid, str(server.vip)):
                        ready.add((server.address, backend.uid))
                    else:
                        reason = (
                            f"node {backend.node or '(none)'} has not said yet that it is ready "
                            f"for {server.vip}"
                        )
                        self._report(key, backend, reason)
                    continue
                try:
                    tunnels = self._opened().tunnels
                    self._pods.ensure(tunnels, backend.uid, backend.real.address, server.vip)
                    ready.add((server.address, backend.uid))
                except KubeRouterError as error:
                    self._report(key, backend, str(error))
                    self._failed.add(key)
        return ready

    def _report(self, key: str, backend: Backend, reason: str) -> None:
        text = f"pod {backend.pod} gets no connections by direct server return: {reason}"
        problem = Problem(f"Service {key}", f"metadata.annotations[{DSR_ANNOTATION}]", text)
        found = self._problems.setdefault(key, [])
        if problem not in found:
            found.append(problem)

    def _opened(self) -> DsrPorts:
        if self.ports is None:
            if self._open_ports is None:
                raise KernelError("direct server return has no access to this host")
            self.ports = self._open_ports()
        return self.ports

    def address_of(self, key: VirtualServerKey) -> VirtualServerKey | None:
        """The address and port behind a virtual server of a fwmark. For any thread."""
        server = self._marked.get(key)
        return None if server is None else server.address

    def before_grow(self, ports: HostPorts, desired: Desired) -> None:
        """Make routing and marks stand, those of direct servers that will go later on included."""
        wanted = self._wanted(desired)
        self._host_problems = ()
        if not wanted:
            return
        try:
            self._route(ports, wanted)
            self._put_marks(ports, {**self._marked, **wanted})
            self._settle_sloppy(ports)
            self._marked.update(wanted)
        except KubeRouterError as error:
            self._host_failed(error)

    def after_shrink(self, ports: HostPorts, desired: Desired, standing: IpvsTable) -> None:
        """Remove what nothing needs any more; tell the other nodes what stands."""
        is_first, self._started = not self._started, True
        if is_first:
            self._pods.adopt(self._ready.formerly())
        if not (self._services or self._marked or self._pods):
            if is_first:
                self._clear_leftovers(ports)
            self._ready.publish({}, check=self._full)
            return
        wanted = self._wanted(desired)
        try:
            gone = {key: each for key, each in self._marked.items() if key not in wanted}
            still = {key: each for key, each in gone.items() if key in standing}
            if self._pods:
                tunnels, needed = self._opened().tunnels, self._needed(standing)
                # After a restart nobody knows which pods those are whose connections still end.
                spare = any(
                    not real.weight
                    for key in self._marked.keys() & standing.keys()
                    for real in standing[key].real_servers.values()
                )
                self._pods.prune(tunnels, needed, everything=self._full, spare_adopted=spare)
            self._put_marks(ports, {**wanted, **still})
            self._marked = {**wanted, **still}
            if not self._marked:
                self._opened().routing.remove(FAMILY_NAMES)
                self._routed = frozenset()
            self._settle_sloppy(ports)
        except KubeRouterError as error:
            self._host_failed(error)
        self._ready.publish(self._pods.ready(), check=self._full)

    # --- what went wrong -----------------------------------------------------------------------

    def failed(self) -> frozenset[str]:
        """Services to try again."""
        return frozenset(self._failed)

    def problems(self) -> tuple[Problem, ...]:
        """What keeps pods from getting connections, and this node from marking them."""
        found = {problem for each in self._problems.values() for problem in each}
        return tuple(sorted(found.union(self._host_problems)))

    def _host_failed(self, error: KubeRouterError) -> None:
        reason = f"direct server return: {error}"
        self._host_problems = (Problem(f"Node {self._node_name}", "", reason),)
        self._failed |= self._services.keys()

    # --- the host ------------------------------------------------------------------------------

    def _wanted(self, desired: Desired) -> dict[VirtualServerKey, DirectServer]:
        """Direct servers by their key in IPVS, of those Services that hold them."""
        return {
            server.key: server
            for key, direct in self._services.items()
            for server in direct.servers
            if desired.owner(server.key) == key
        }

    def _route(self, ports: HostPorts, wanted: Mapping[VirtualServerKey, DirectServer]) -> None:
        families = frozenset(key.family for key in wanted)
        routing = self._opened().routing
        if self._full or not families <= self._routed:
            routing.ensure(sorted(families))
            self._routed |= families
        # A reply comes from the VIP, by a link that is not the way to the VIP.
        if self._full:
            self._loosened.clear()
        for family, address in set(self._pods.addresses()) - self._loosened:
            self._loosened.add((family, address))
            link = routing.link_towards(family, address)
            parameter = f"net/ipv4/conf/{link}/rp_filter"
            is_strict = FAMILY_NAMES[family] == "IPv4" and link
            if is_strict and ports.sysctls.read(parameter) == "1":
                ports.sysctls.write(parameter, "2")

    def _put_marks(
        self, ports: HostPorts, servers: Mapping[VirtualServerKey, DirectServer]
    ) -> None:
        wanted = compile_marks(servers.values(), self._pods.mtu())
        for name in self._rules.keys() - wanted.keys():
            ports.iptables.remove(name, TABLE, (CHAIN,))
            del self._rules[name]
        for name, rules in wanted.items():
            if self._full or self._rules.get(name) != rules:
                for change in ports.iptables.ensure(name, TABLE, rules):
                    _log.info("direct server return family=%s change=%r", name, change)
                self._rules[name] = rules

    def _settle_sloppy(self, ports: HostPorts) -> None:
        """Maglev nodes must take over each other's TCP connections, in the middle of them."""
        needed = _MAGLEV in self._schedulers.values()
        if needed and ports.sysctls.read(SLOPPY_TCP) == "0":
            ports.sysctls.write(SLOPPY_TCP, "1")
            self._set_sloppy = True
        elif self._set_sloppy and not needed:
            ports.sysctls.write(SLOPPY_TCP, "0")
            self._set_sloppy = False

    def _needed(self, standing: IpvsTable) -> dict[tuple[str, int], frozenset[bytes]]:
        """VIPs by (pod, family) that are desired, or whose connections to the pod still drain."""
        found: dict[tuple[str, int], set[bytes]] = {}
        for direct in self._services.values():
            for server in direct.servers:
                for backend in server.backends:
                    place = (backend.uid, server.address.family)
                    found.setdefault(place, set()).add(server.address.address)
        for key, server in self._marked.items():
            state = standing.get(key)
            for real in state.real_servers if state else ():
                draining = self._pods.uid_at(real.family, real.address)
                if draining is not None:
                    found.setdefault((draining, key.family), set()).add(server.address.address)
        return {place: frozenset(vips) for place, vips in found.items()}

    def _clear_leftovers(self, ports: HostPorts) -> None:
        """Of a time before the start, when there were direct servers."""
        if self._open_ports is None:
            return
        try:
            routing = self._opened().routing
            for family, name in FAMILY_NAMES.items():
                if routing.stands(family):
                    ports.iptables.remove("inet6" if name == "IPv6" else "inet", TABLE, (CHAIN,))
                    routing.remove((family,))
        except KernelError as error:
            _log.warning("leftovers of direct server return stay reason=%r", str(error))
