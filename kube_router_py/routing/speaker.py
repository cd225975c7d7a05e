"""The BGP speaker of this node: what Nodes and Services say, kept as FRR's configuration.

    Nodes, flags, annotations -> Neighborhood  (when one of them changes)
    a Service, its slices     -> Announcements (that Service alone)
    pools, this Node's labels -> the same, of Services with addresses that a load balancer gave
    both                      -> RouterConfig -> FrrConfig -> commands, by ``FrrSync``

Everything runs in the thread of the route controller's loop. Nothing is removed for want of
knowledge: where this node is not to be found, or has no identity, FRR is left as it runs.
"""

from collections.abc import Iterable, Set

from msgspec import Struct

from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.kernel.ports_frr import Frr
from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import Member, parse_member
from kube_router_py.routing.announcements import Announcements
from kube_router_py.routing.compile import Neighborhood, compile_neighborhood, compile_router
from kube_router_py.routing.drain import Stage, drain_cause, drain_stage
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_sections import FrrConfig
from kube_router_py.routing.frr_sync import FrrSync
from kube_router_py.routing.imports import service_ranges
from kube_router_py.routing.model import Address
from kube_router_py.routing.peers import external_peers, secret_refs
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings, with_pools
from kube_router_py.routing.telling import Telling
from kube_router_py.services import load_balanced

# For Secrets that cannot be asked for at the start, before FRR of an earlier agent loses a session.
_WAIT_S = 30.0


class Spoken(Struct, frozen=True):
    """What a turn came to. ``is_settled``: FRR runs what is wanted, as far as that is known.
    ``wake_after_s``: call again after so many seconds (a drain, a start that has to wait).
    ``stage``: how far the draining is that FRR was told of."""

    is_settled: bool
    problems: tuple[Problem, ...]
    wake_after_s: float | None = None
    stage: Stage = Stage.SERVING


class Speaker:
    """See the module docstring."""

    def __init__(
        self,
        cache: Cache,
        settings: RoutingSettings,
        node_name: str,
        frr: Frr,
        passwords: PasswordSources,
    ) -> None:
        self._cache = cache
        # The flags, and what pools make of them.
        self._flags = self._settings = settings
        self._node_name = node_name
        self._passwords = passwords
        self._sync = FrrSync(frr, node_name, self._count)
        # What FRR was told, by the types that kube-router counts. For any thread.
        self.advertisements = dict.fromkeys(("pod-route", "advertise-vip", "withdraw-vip"), 0)
        self._services = Announcements(node_name, settings)
        self._telling = Telling(self._services.services_at)
        self._members: dict[str, Member] = {}
        # This node as it was last seen: that it is gone for a moment ends no drain.
        self._node: Node | None = None
        self._own: NodeView | None = None
        self._around: Neighborhood | None = None
        # The last one that was made. For any thread.
        self.neighborhood: Neighborhood | None = None
        self._drain_since_s: float | None = None
        self._waits_until_s: float | None = None
        self.drain_cause = ""
        # Told by whoever ends the agent; see ``drain``.
        self.is_exiting = False

    @property
    def drift(self) -> int:
        """Commands that put right what others had changed in FRR."""
        return self._sync.drift

    @property
    def starts(self) -> int:
        """How often FRR's daemons had to be started."""
        return self._sync.starts

    @property
    def announced(self) -> int:
        """How many Service addresses this node announces. For any thread."""
        return self._services.number

    def _count(self, command: str) -> None:
        """A command that bgpd took; those that announce are ``[no] network PREFIX ...``."""
        match command.split():
            case ["network", prefix, *_]:
                is_pods = self._own is not None and prefix in map(str, self._own.pod_cidrs)
                self.advertisements["pod-route" if is_pods else "advertise-vip"] += 1
                if not is_pods:
                    self._telling.note(prefix, is_announced=True)
            case ["no", "network", prefix, *_]:
                if self._own is None or prefix not in map(str, self._own.pod_cidrs):
                    self.advertisements["withdraw-vip"] += 1
                    self._telling.note(prefix, is_announced=False)

    def services_known(self) -> Set[str]:
        """Keys of the Services that are held; what is not in the cache any more is to be followed
        once more."""
        return self._services.keys()

    def follow_service(self, key: str) -> None:
        """Take a Service and its slices from the cache as they are now."""
        self._services.update(key, self._cache.get(Service, key), self._cache.slices_of(key))

    def follow_node(self, name: str) -> None:
        """Take a Node from the cache as it is now."""
        node = self._cache.get(Node, name)
        view = node_view(node)[0] if node is not None else None
        if name == self._node_name:
            if node is not None:
                self._node = node
            if view is not None and view != self._own:
                self._own, self._around = view, None
            return
        member = parse_member(view)[0] if view is not None else None
        if member != self._members.get(name):
            self._around = None
            if member is not None:
                self._members[name] = member
            else:
                del self._members[name]

    def follow_pools(self, pools: AddressPools) -> frozenset[str]:
        """Take the pools, or other labels of this node. Returns the Services to follow again."""
        labels = (self._node.metadata.labels if self._node is not None else None) or {}
        before, settings = self._settings, with_pools(self._flags, pools, labels)
        if settings == before:
            return frozenset()
        self._settings = settings
        if service_ranges(settings) != service_ranges(before):
            self._around = None
        self._services.follow_settings(settings)
        return load_balanced(self._cache.list(Service))

    def follow_programmed(self, programmed: Set[Address] | None) -> None:
        """The addresses that this node's proxy serves; None: it has no proxy."""
        self._services.follow_programmed(programmed)

    def change_programmed(self, added: Iterable[Address], removed: Iterable[Address]) -> None:
        """The proxy serves some addresses from now on, and others no more."""
        self._services.change_programmed(added, removed)

    def settle(self, *, full: bool, local: Iterable[Address], now_s: float) -> Spoken:
        """Bring FRR to what has been followed. ``local`` are the addresses on this node's links.

        ``full``: passwords are read anew and FRR is asked what it runs.
        """
        if full or self._passwords.again_in_s() == 0.0:
            self._around = None
        if self._own is None:
            reason = "is not among the objects of the API server: BGP is left as it is"
            return Spoken(is_settled=False, problems=(Problem(self._subject, "", reason),))
        around = self._around = self._around or self._look_around(self._own)
        self.neighborhood = around
        again_s = self._passwords.again_in_s()
        if self._waits_until_s is None:
            self._waits_until_s = now_s + _WAIT_S
        if again_s is not None and now_s < self._waits_until_s:
            return Spoken(False, self._passwords.problems, again_s)
        self._waits_until_s = now_s
        self._services.follow_peers(around.peers)
        stage, wake_s, wrong = self._drain(now_s)
        config, found = compile_router(
            self._settings,
            around,
            self._services.current(),
            self._services.outside_ranges(),
            stage=stage,
            local=frozenset(local),
        )
        problems = {*wrong, *found, *self._passwords.problems, *self._services.problems()}
        wanted: FrrConfig | None = None
        if config is not None:
            try:
                wanted = render_frr(config)
            except ValueError as error:
                problems.add(Problem(self._subject, "", f"BGP is left as it is: {error}"))
        if wanted is None:
            return Spoken(False, tuple(sorted(problems)), wake_s)
        synced = self._sync.sync(wanted, full=full)
        self._telling.tell()
        waits = [each for each in (wake_s, again_s, synced.wake_after_s) if each is not None]
        return Spoken(
            is_settled=not synced.problems,
            problems=tuple(sorted({*problems, *synced.problems})),
            wake_after_s=min(waits, default=None),
            stage=stage,
        )

    def _look_around(self, own: NodeView) -> Neighborhood:
        specs, _ = external_peers(own, self._settings)
        return compile_neighborhood(
            own,
            self._members.values(),
            self._settings,
            password_list=self._passwords.password_list(),
            secrets=self._passwords.secrets(secret_refs(specs)),
        )

    def _drain(self, now_s: float) -> tuple[Stage, float | None, tuple[Problem, ...]]:
        self.drain_cause, problems = drain_cause(
            self._node,
            self._settings,
            is_exiting=self.is_exiting,
        )
        if not self.drain_cause:
            self._drain_since_s = None
        elif self._drain_since_s is None:
            self._drain_since_s = now_s
        since = self._drain_since_s
        stage, wait_s = drain_stage(None if since is None else now_s - since, self._settings)
        return stage, wait_s, problems

    @property
    def _subject(self) -> str:
        return f"Node {self._node_name}"
