"""The agent's answer to ``explain``: a flow traced in what the agent knows, and its node's kernel.

In a thread of the agent's socket: of the loops nothing is used but frozen values, and the kernel is
read by adapters made for one answer. What the cache lacks, since no part that runs needs it, is
asked of the API server.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from ipaddress import ip_address
from typing import Any, TypeVar

from msgspec import ValidationError, convert, structs, to_builtins

from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.listing import list_all
from kube_router_py.cluster.objects import (
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.errors import ApiError, ConfigurationError, KubeRouterError
from kube_router_py.firewall.evaluate import FlowError
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.flow.compare import compare
from kube_router_py.flow.compare_rules import Remedies
from kube_router_py.flow.expectations import NodeState, expectations
from kube_router_py.flow.firewall_state import firewall_of
from kube_router_py.flow.flag_notes import flag_notes
from kube_router_py.flow.model import Answer, Comparison, Question, Trace
from kube_router_py.flow.objects import ClusterObjects, FlowSettings, flow_settings
from kube_router_py.flow.trace import Tracer
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.kernel.ports_reading import KernelReading
from kube_router_py.options import Options
from kube_router_py.proxy.model import KUBE_PROXY_LINK
from kube_router_py.proxy.service_rules import compile_rules
from kube_router_py.proxy.settings import this_node
from kube_router_py.proxy.surroundings import Surroundings
from kube_router_py.routing.overlay import node_links
from kube_router_py.routing.settings import with_pools

T = TypeVar("T")
OpenKernel = Callable[[], KernelReading]

_WAIT_S = 20.0
# All lists of one answer: who asks waits for a minute (``agent_client``).
_LIST_S = 15.0
_KINDS: tuple[type, ...] = (Service, EndpointSlice, Pod, Namespace, NetworkPolicy, Node)
# A change of the cluster may be on its way into the kernel: a difference is looked at again.
_AGAIN_S = (0.5, 1.5)


class FlowAnswers:
    """One explanation at a time: who comes meanwhile waits. For any thread.

    ``cache`` is the agent's own, ``client`` may be asked in any thread. ``pools`` are those that
    hold now. ``open_kernel`` and ``read_addresses`` read the node's kernel.
    """

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        pools: Callable[[], AddressPools],
        open_kernel: OpenKernel | None = None,
        read_addresses: Callable[[], tuple[NodeAddress, ...]] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options, self._cache, self._client, self._node = options, cache, client, node
        self._pools, self._pause = pools, pause
        self._open_kernel = open_kernel or self._open
        self._read_addresses = read_addresses or _addresses
        self._busy = threading.Lock()

    def explain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A ``model.Question`` in, a ``model.Answer`` out, both as JSON has them.

        Raises ConfigurationError for what is no question, KubeRouterError where others are being
        answered for too long.
        """
        try:
            question = convert(dict(asked), Question)
        except ValidationError as error:
            raise ConfigurationError(f"that is no flow: {error}") from None
        if not self._busy.acquire(timeout=_WAIT_S):
            raise KubeRouterError("other flows are being explained here; try again")
        try:
            answer = self._answer(question)
        finally:
            self._busy.release()
        found: dict[str, Any] = to_builtins(answer)
        return found

    def _answer(self, question: Question) -> Answer:
        addresses, missing = self._own_addresses()
        notes: list[str] = []
        asked = self._ask_for_all(notes)
        told = len(notes)
        for pause_s in (*_AGAIN_S, 0.0):
            del notes[told:]
            objects = self._objects(asked, notes)
            settings = self._settings(objects, addresses)
            try:
                trace = Tracer(objects, settings).trace(question)
            except FlowError as error:
                return Answer(error=str(error), notes=tuple(notes))
            kernel: Comparison | None = None
            if not missing:
                kernel, missing = self._compare(trace, objects, settings, addresses)
            if kernel is None or kernel.agrees or not pause_s:
                break
            self._pause(pause_s)
        notes += flag_notes(settings, (trace,))
        return Answer(trace, "", kernel, missing, tuple(notes))

    # --- what is known --------------------------------------------------------------------------

    def _objects(self, asked: Mapping[type, tuple[Any, ...]], notes: list[str]) -> ClusterObjects:
        """Of the cache as it is now, and ``asked`` of the API server."""
        return ClusterObjects(
            services=self._list(Service, asked, notes),
            slices=self._list(EndpointSlice, asked, notes),
            pods=self._list(Pod, asked, notes),
            namespaces=self._list(Namespace, asked, notes),
            policies=self._list(NetworkPolicy, asked, notes),
            nodes=self._list(Node, asked, notes),
        )

    def _list(
        self, kind: type[T], asked: Mapping[type, tuple[Any, ...]], notes: list[str]
    ) -> tuple[T, ...]:
        if kind in asked:
            return asked[kind]
        stats = self._cache.stats()[kind]
        if stats.failing:
            notes.append(f"{kind.__name__}s may be out of date: {stats.failing}")
        elif not stats.synced:
            notes.append(f"{kind.__name__}s are not all known yet")
        return tuple(self._cache.list(kind))

    def _ask_for_all(self, notes: list[str]) -> dict[type, tuple[Any, ...]]:
        """What the cache lacks, once for an answer, however often it is looked again: nothing that
        this node has programmed depends on it."""
        deadline = time.monotonic() + _LIST_S
        found: dict[type, tuple[Any, ...]] = {}
        for kind in _KINDS:
            # Without the firewall the cache has but the pods that concern the service proxy.
            if kind in self._cache.kinds and (kind is not Pod or self._options.run_firewall):
                continue
            try:
                found[kind] = tuple(
                    list_all(self._client, kind, deadline=deadline).objects.values()
                )
            except ApiError as error:
                notes.append(
                    f"{kind.__name__}s are not known: no part that runs here needs them, and the "
                    f"API server does not tell: {error}"
                )
                is_cached = kind in self._cache.kinds
                found[kind] = tuple(self._cache.list(kind)) if is_cached else ()
        return found

    def _own_addresses(self) -> tuple[tuple[NodeAddress, ...], str]:
        try:
            return self._read_addresses(), ""
        except (KubeRouterError, OSError) as error:
            return (), f"the kernel cannot be read: {error}"

    def _settings(
        self, objects: ClusterObjects, addresses: tuple[NodeAddress, ...]
    ) -> FlowSettings:
        """The flags, with the pools and the links of this node as they are now."""
        pools = self._pools()
        options = dataclasses.replace(
            self._options,
            loadbalancer_ip_range=load_balancer_ranges(self._options.loadbalancer_ip_range, pools),
        )
        settings = flow_settings(options)
        own = next((each for each in objects.nodes if each.metadata.name == self._node), None)
        labels = (own.metadata.labels if own is not None else None) or {}
        view = objects.views.get(self._node)
        return structs.replace(
            settings,
            routing=with_pools(settings.routing, pools, labels),
            links={self._node: node_links(view, addresses, {})} if view else {},
            addresses={self._node: tuple((each.link, each.address) for each in addresses)},
        )

    # --- the kernel -----------------------------------------------------------------------------

    def _open(self) -> KernelReading:
        from kube_router_py.kernel.iptables_variant import variant_of
        from kube_router_py.kernel.reading import NodeReading

        return NodeReading(variant_of(self._options.iptables_backend), self._options.proc_sys_path)

    def _compare(
        self,
        trace: Trace,
        objects: ClusterObjects,
        settings: FlowSettings,
        addresses: tuple[NodeAddress, ...],
    ) -> tuple[Comparison | None, str]:
        """What the kernel has; or why that cannot be told."""
        state = self._state(trace, objects, settings, addresses)
        try:
            with closing(self._open_kernel()) as kernel:
                expected = expectations(trace, state)
                return compare(self._node, expected, kernel, self._remedies()), ""
        except (KubeRouterError, OSError) as error:
            return None, f"the kernel cannot be read: {error}"

    def _state(
        self,
        trace: Trace,
        objects: ClusterObjects,
        settings: FlowSettings,
        addresses: tuple[NodeAddress, ...],
    ) -> NodeState:
        firewall = proxy = None
        if self._options.run_firewall:
            options = firewall_options(self._options)
            ranges = settings.proxy.load_balancer_ranges
            options = structs.replace(options, load_balancer_ranges=ranges)
            firewall = firewall_of(objects, self._node, options, trace)
        if self._options.run_service_proxy and self._node in objects.views:
            view = objects.views[self._node]
            # Only the rules that are the same whatever the node's addresses are looked at.
            found, _ = compile_rules(
                this_node(view, settings.proxy), Surroundings(), settings.proxy, random_fully=True
            )
            proxy = {each.family: dict(each.tables) for each in found}
        own = frozenset(str(ip_address(each.address)) for each in addresses)
        return NodeState(self._node, own, firewall, proxy, self._options.run_router)

    def _remedies(self) -> Remedies:
        options = self._options
        watch = "status and journalctl -t kube-router-py tell what it repairs again and again"
        return Remedies(
            rules=_repair("--iptables-sync-period", options.iptables_sync_period, watch),
            ipvs=_repair("--ipvs-sync-period", options.ipvs_sync_period, watch),
            routes=_repair("--routes-sync-period", options.routes_sync_period, watch),
            others="not the agent's: look who made it, delete it, or let it spare this flow",
        )


def _repair(flag: str, seconds: float, watch: str) -> str:
    return f"the agent repairs it within {seconds:g} s ({flag}); {watch}"


def _addresses() -> tuple[NodeAddress, ...]:
    """Those on this node's links; kube-proxy's are those of Services."""
    from kube_router_py.kernel.links import NetlinkLinks

    with closing(NetlinkLinks()) as links:
        return tuple(each for each in links.node_addresses() if each.link != KUBE_PROXY_LINK)
