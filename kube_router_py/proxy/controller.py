"""The service proxy's loop: Services and EndpointSlices to IPVS.

Packet path. A packet to a service address is local to the node (a ``local`` route, or an address,
on kube-dummy-if), so the kernel hands it to IPVS in INPUT (OUTPUT for the node's own). IPVS picks
a real server and rewrites the destination; on its way out through nat POSTROUTING the source is
rewritten too where the reply would otherwise go past this node (see ``masquerade``). What must
not get that far is stopped in filter INPUT (see ``service_rules``).

Kernel objects owned: every IPVS virtual server outside ``--excluded-cidrs``; the link
kube-dummy-if and the routes or addresses of Services on it; the chains of ``service_rules`` with
their jumps; the sets of ``packet_sets``; the values named in ``sysctls``.

Start: nothing is written before the caches have synced. Then the kernel is read, what is right is
adopted, and only differences are written: with nothing to change there is no write.
Crash: the kernel goes on with what it has; the next start takes it over, connections included.
Stop: as a crash. Nothing is removed; ``cleanup`` does that.

What happens in a turn: compile the dirty Services -> diff with what stands -> plan -> apply: sets
grow, rules, IPVS and addresses (in the order of ``plan``), sets shrink. A refused write returns its
Service to the dirty keys and makes the next turn read the kernel back.
"""

import logging
import socket
import time
from collections.abc import Callable, Hashable, Iterable

from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Pod, Service
from kube_router_py.delta import diff
from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.loop import Outcome
from kube_router_py.problem import Problem
from kube_router_py.proxy.applied import Applied
from kube_router_py.proxy.compile import compile_service
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.dirty_keys import (
    LEAVING_PODS,
    NOT_SERVICES,
    OWN_NODE,
    POOLS,
    Marks,
    subscribe,
)
from kube_router_py.proxy.drain import Draining
from kube_router_py.proxy.dsr_host import Dsr
from kube_router_py.proxy.follower import Follower
from kube_router_py.proxy.host import ThisHost
from kube_router_py.proxy.live_options import LiveOptions
from kube_router_py.proxy.model import (
    IpvsTable,
    RealServerKey,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.plan import Plan, plan
from kube_router_py.proxy.pod_deadline import seconds_to_live
from kube_router_py.proxy.service_sets import ServiceSets
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.telling import Telling
from kube_router_py.services import is_inside, load_balanced

_log = logging.getLogger(__name__)


class ServiceProxy:
    """See the module docstring. Everything but ``subscribe`` runs in the loop's thread."""

    name = "service-proxy"

    def __init__(
        self,
        cache: Cache,
        options: ProxyOptions,
        node_name: str,
        ports: Callable[[], HostPorts],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        dsr: Dsr | None = None,
        followers: Iterable[Follower] = (),
        before: Callable[[Plan], None] = lambda planned: None,
        pools: Callable[[], AddressPools] = AddressPools,
    ) -> None:
        self._cache = cache
        self._dsr = dsr or Dsr(node_name)
        self._followers = tuple(followers)
        # Told what is about to be written to IPVS and to the addresses; may take a moment.
        self._before = before
        self._given_options, self._pools, self._node_name = options, pools, node_name
        self._make_ports = ports
        self._clock, self._wall_clock = clock, wall_clock
        # Open between open() and close(); its write counter tells what a restart cost.
        self.ports: HostPorts | None = None
        self._forget()

    def _forget(self) -> None:
        options = self._given_options
        self._live = LiveOptions(options, self._pools)
        self._host = ThisHost(self._node_name, self._cache, options)
        self._sets = ServiceSets(self._node_name, options.families)
        self._desired = Desired()
        self._telling = Telling(self._desired)
        self._draining = Draining(
            enabled=options.graceful_termination, grace_s=options.graceful_period_s
        )
        self._applied = Applied()
        self._broken: dict[str, Problem] = {}
        self._followers_problems: tuple[Problem, ...] = ()
        # What stood at the start and may belong to something that could not be read so far.
        self._held: set[VirtualServerKey | Vip] = set()

    def subscribe(self, cache: Cache, loop: Marks) -> None:
        """Have every event mark what it can change."""
        subscribe(cache, loop, self._node_name)

    @property
    def virtual_servers(self) -> int:
        """How many virtual servers stand in the kernel, as far as we know. For any thread."""
        return len(self._applied.servers)

    @property
    def addresses(self) -> int:
        """How many addresses of Services stand in the kernel, as far as we know. For any thread."""
        return len(self._applied.vips)

    @property
    def repaired(self) -> int:
        """How often what others had changed of both has been put right. For any thread."""
        return self._applied.repaired

    @property
    def rules_stand(self) -> bool:
        """Whether kernel parameters, rules and sets are as they should be. In the loop's thread."""
        return self._host.is_settled and not self._sets.problems

    @property
    def standing(self) -> IpvsTable:
        """The virtual servers in the kernel, as far as we know. In the loop's thread."""
        return self._applied.servers

    def is_local(self, address: bytes) -> bool:
        """Whether the node takes an address for its own, put or had. In the loop's thread."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        return Vip(family, address) in self._applied.vips or self.is_of_node(address)

    def is_of_node(self, address: bytes) -> bool:
        """Whether the node has an address anyway. In the loop's thread."""
        return address in self._host.addresses

    def served_by(self, key: VirtualServerKey) -> tuple[str, VirtualServerKey] | None:
        """The Service that holds a virtual server, and the address and port it is served at (its
        own, or that behind its fwmark). For any thread."""
        owner = self._desired.owner(key)
        address = self._dsr.address_of(key) if key.fwmark else key
        return None if owner is None or address is None else (owner, address)

    def open(self) -> None:
        """Create the adapters; called again after a crash, and then nothing is trusted."""
        self.close()
        self._forget()
        self.ports = self._make_ports()
        options = self._given_options
        timeouts = (options.tcp_timeout_s, options.tcp_fin_timeout_s, options.udp_timeout_s)
        if any(timeouts):
            self.ports.ipvs.set_timeouts(*timeouts)

    def close(self) -> None:
        """Close the adapters; the kernel keeps everything."""
        self._dsr.close()
        ports, self.ports = self.ports, None
        if ports is not None:
            ports.close()

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """One turn, over the dirty keys or (``full``) over everything, read from the kernel."""
        if self.ports is None:
            raise RuntimeError("reconcile before open")
        try:
            self._turn(self.ports, dirty, full or not self._applied.is_known)
        except KernelError as error:
            # Replies were lost, or the kernel cannot be asked: everything is read back next time.
            self._applied.is_known = False
            problem = Problem(f"Node {self._node_name}", "", str(error))
            return Outcome(dirty | {OWN_NODE}, (problem, *self._problems()))
        return Outcome(
            failed=self._failed(),
            problems=self._problems(),
            wake_after_s=self._draining.wake_after_s(self._clock()),
        )

    def _turn(self, ports: HostPorts, dirty: frozenset[Hashable], full: bool) -> None:
        now_s = self._clock()
        for follower in self._followers:
            follower.begin()
        has_moved = self._host.follow(ports, dirty, full=full)
        # What was held can now be judged, by one look at the kernel.
        full = full or bool(self._held and self._is_complete())
        everything = full or has_moved
        keys = self._dsr.begin(dirty, full=full) - NOT_SERVICES
        if (full or POOLS in dirty) and self._live.follow_pools():
            keys |= load_balanced(self._cache.list(Service))
        changes = self._compile(self._all_keys() if everything else map(str, keys))
        if again := self._dsr.affected(changes.vips):
            changes = Changes.of_all((changes, self._compile(again)))
        servers, vips = set(changes.servers), set(changes.vips)
        if full:
            self._read(ports)
            servers = {*self._desired.servers(), *self._applied.servers}
        if everything or OWN_NODE in dirty:
            vips = {*self._desired.vips(), *self._applied.vips}
        servers |= self._draining.poll(ports.ipvs.read_connections, now_s) | self._sets.withheld
        if LEAVING_PODS in dirty:
            servers |= self._draining.servers()
        servers = self._applied.take_up(servers)
        vips = (vips | self._applied.withheld) - self._applied.refused_vips.keys()
        if vips:
            self._host.look_at_links(ports)
        targets = self._targets(servers, now_s)
        sources = {vip: self._source(vip) for vip in vips if self._is_wanted(vip)}
        planned = plan(
            diff(targets, self._applied.servers, servers),
            self._applied.servers,
            diff(sources, self._applied.vips, vips),
        )
        if full:
            self._applied.tell(planned, self._telling)
        planned = self._sets.before(
            ports.ipsets,
            planned,
            self._desired,
            changes,
            self._applied.servers,
            self._applied.vips.keys(),
            full=full,
            only_grow=bool(self._held),
        )
        if not self._host.settle_rules(ports, dirty, full=full):
            self._sets.doubt()
        if full or changes.services:
            self._host.check_hairpins(ports, self._sets.hairpins())
        self._dsr.before_grow(ports, self._desired)
        if planned:
            self._tell_before(planned)
            self._live.learn(self._applied.apply(ports, planned, targets))
            self._telling.programmed(planned, self._applied.refused, full=full)
        self._sets.after(ports.ipsets)
        self._dsr.after_shrink(ports, self._desired, self._applied.servers)
        if full:
            self._applied.share(targets)
        self._tell_followers(changes, full=full)

    def _tell_before(self, planned: Plan) -> None:
        try:
            self._before(planned)
        except Exception:  # noqa: BLE001 - who only has to be told must not stop the proxy
            _log.exception("what is about to be written was not told")

    def _tell_followers(self, changes: Changes, *, full: bool) -> None:
        found: list[Problem] = []
        for follower in self._followers:
            try:
                found += follower.follow(self._desired, self._host.node, changes, full=full)
            except Exception:  # noqa: BLE001 - who only looks on must not stop the proxy
                _log.exception("not followed by=%s", type(follower).__name__)
        self._followers_problems = tuple(found)

    def _read(self, ports: HostPorts) -> None:
        """Read the kernel back; the first time, take over no more than can be judged.

        A Node that is not there yet, or a Service that cannot be understood, may be what a virtual
        server is for that nothing else asks for: it is held as it is, until everything is there.
        """
        if self._is_complete():
            self._held.clear()
        may_hold = not self._applied.was_read and not self._is_complete()

        def is_ours(key: VirtualServerKey) -> bool:
            if self._desired.owner(key) is not None:
                self._held.discard(key)
            elif may_hold:
                self._held.add(key)
            return self._is_ours(key)

        def is_our_vip(vip: Vip) -> bool:
            if self._desired.vip_claimants(vip):
                self._held.discard(vip)
            elif may_hold:
                self._held.add(vip)
            return vip not in self._held

        self._applied.read(ports, is_ours, is_our_vip)
        if may_hold:
            self._telling.held(len(self._held))

    def _is_complete(self) -> bool:
        """Whether all is known that could ask for a virtual server."""
        unread = any(each.object.startswith("Service ") for each in self._cache.problems())
        return not (unread or self._broken) and bool(self._host.node.addresses)

    # --- desired -------------------------------------------------------------------------------

    def _all_keys(self) -> set[str]:
        listed = {service.metadata.key for service in self._cache.list(Service)}
        return listed.union(self._desired.services())

    def _compile(self, keys: Iterable[str]) -> Changes:
        """Bring the desired state of these Services up to date; returns what may have changed."""
        found: list[Changes] = []
        for key in sorted(keys):
            self._broken.pop(key, None)
            service = self._cache.get(Service, key)
            try:
                compiled = None
                if service is not None:
                    slices = self._cache.slices_of(key)
                    options = self._live.current
                    compiled = compile_service(service, slices, self._host.node, options)
                compiled = self._dsr.adapt(
                    service or key, self._cache, compiled, self._host.node, self._desired
                )
            except Exception as error:  # noqa: BLE001 - one Service must not stop the others
                _log.exception("cannot compile service=%s", key)
                reason = f"cannot be compiled ({error!r}); what it had is kept"
                self._broken[key] = Problem(f"Service {key}", "", reason)
                continue
            found.append(self._desired.update(key, compiled))
            self._telling.note(key, found[-1])
        return Changes.of_all(found)

    def _is_ours(self, key: VirtualServerKey) -> bool:
        """What is in --excluded-cidrs, or held, is none of ours unless a Service asks for it."""
        if self._desired.owner(key) is not None:
            return True
        return key not in self._held and not is_inside(
            key.address, self._live.current.excluded_cidrs
        )

    def _targets(
        self, keys: Iterable[VirtualServerKey], now_s: float
    ) -> dict[VirtualServerKey, VirtualServerState]:
        """What should stand under these keys, draining real servers included."""
        found: dict[VirtualServerKey, VirtualServerState] = {}
        for key in keys:
            target = self._draining.target(
                key,
                self._desired.state(key),
                self._applied.servers.get(key),
                self._desired.paused(key),
                now_s,
                lambda real: self._killed_s(real, now_s),
            )
            if target is not None:
                found[key] = target
            elif not self._is_ours(key):
                self._applied.servers.pop(key, None)
        return found

    def _killed_s(self, real: RealServerKey, now_s: float) -> float | None:
        """When the pod behind a real server will be killed, by our clock."""
        if Pod not in self._cache.kinds:
            return None
        keys = self._cache.pods_of_ip(socket.inet_ntop(real.family, real.address))
        pods = (self._cache.get(Pod, key) for key in keys)
        left_s = seconds_to_live((pod for pod in pods if pod), self._wall_clock())
        return None if left_s is None else now_s + left_s

    def _is_wanted(self, vip: Vip) -> bool:
        """An address that the node has anyway gets IPVS entries only."""
        return bool(self._desired.vip_claimants(vip)) and vip.address not in self._host.addresses

    def _source(self, vip: Vip) -> bytes:
        """The node's address, for the node's own connections: else the VIP would be their source.
        A cloud's Node may name an address that no link has, and that the kernel would refuse."""
        address = self._host.node.addresses.get(vip.family, b"")
        return address if address in self._host.addresses else b""

    # --- what went wrong -----------------------------------------------------------------------

    def _failed(self) -> frozenset[Hashable]:
        failed: set[Hashable] = {*self._broken, *self._dsr.failed()}
        for key in (*self._applied.refused, *self._sets.withheld):
            failed.add(self._desired.owner(key) or OWN_NODE)
        for vip in self._applied.refused_vips:
            failed |= self._desired.vip_claimants(vip) or {OWN_NODE}
        if self._sets.problems or not self._host.is_settled:
            failed.add(OWN_NODE)
        return frozenset(failed)

    def _problems(self) -> tuple[Problem, ...]:
        found = {*self._host.problems, *self._sets.problems, *self._broken.values()}
        found.update(self._followers_problems)
        found.update(self._desired.problems(), self._dsr.problems())
        for key, failure in self._applied.refused.items():
            owner = self._desired.owner(key)
            subject = f"Service {owner}" if owner else f"Node {self._node_name}"
            found.add(Problem(subject, "", failure.message))
        for vip, message in self._applied.refused_vips.items():
            for claimant in self._desired.vip_claimants(vip) or {""}:
                subject = f"Service {claimant}" if claimant else f"Node {self._node_name}"
                found.add(Problem(subject, "", message))
        return tuple(sorted(found))
