"""What load balancers outside the cluster ask of a node (KEP-3836), as kube-proxy answers it.

``/healthz`` fails where the node is about to go (deleted, or tainted by the cluster autoscaler) or
the service proxy does not work; ``/livez`` only for the latter, which a restart may mend.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from msgspec import json

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.serve import Answer, Page
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode

TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
# As long as kube-proxy waits with its defaults: twice its sync period.
_PATIENCE_S = 60.0
_NO_SNIFFING = (("X-Content-Type-Options", "nosniff"),)


def is_eligible(node: Node | None) -> bool:
    """Whether new connections may be sent to this node. One that is not known stays as it was."""
    if node is None:
        return True
    if node.metadata.deletion_timestamp is not None:
        return False
    return all(taint.key != TO_BE_DELETED for taint in node.spec.taints or ())


class ProxyHealth:
    """A ``Follower``: whether the service proxy does its work. It turns, it has programmed the
    kernel once, and does so again soon after it has begun to. A Service that cannot be programmed
    is no reason to take the node away from all others.

    ``status`` is the service proxy's; what is asked here may be asked by any thread.
    """

    def __init__(
        self, status: Callable[[], LoopStatus], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._status, self._clock = status, clock
        self._begun_at: float | None = None
        self._programmed_at: float | None = None
        self._made_at = clock()

    def begin(self) -> None:
        """A turn that fails is begun again: the first attempt counts."""
        if self._begun_at is None:
            self._begun_at = self._clock()

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """The kernel was programmed."""
        del desired, node, changes, full
        self._programmed_at = self._clock()
        self._begun_at = None
        return ()

    def is_healthy(self) -> bool:
        """Whether connections sent here will find what the cluster wants."""
        begun_at = self._begun_at
        is_late = begun_at is not None and self._clock() - begun_at > _PATIENCE_S
        return self._programmed_at is not None and not is_late and self._status().turning

    def age_s(self) -> float:
        """Seconds since the kernel was programmed, or since there is something to wait for."""
        since = self._made_at if self._programmed_at is None else self._programmed_at
        return self._clock() - since


class NodeHealth:
    """``wall_clock``: seconds since the epoch."""

    def __init__(
        self,
        cache: Cache,
        node_name: str,
        proxy: ProxyHealth,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache, self._node_name, self._proxy = cache, node_name, proxy
        self._wall_clock = wall_clock

    def pages(self) -> dict[str, Page]:
        return {"/healthz": self.healthz, "/livez": self.livez}

    def healthz(self) -> Answer:
        return self._answer(counts_eligibility=True)

    def livez(self) -> Answer:
        return self._answer(counts_eligibility=False)

    def _answer(self, *, counts_eligibility: bool) -> Answer:
        now_s = self._wall_clock()
        eligible = is_eligible(self._cache.get(Node, self._node_name))
        healthy = self._proxy.is_healthy() and (eligible or not counts_eligibility)
        # As long as everything is well, nothing had to wait for an update.
        updated_s = now_s if healthy else now_s - self._proxy.age_s()
        body = {
            "lastUpdated": _text(updated_s),
            "currentTime": _text(now_s),
            "nodeEligible": eligible,
        }
        return Answer(200 if healthy else 503, "application/json", json.encode(body), _NO_SNIFFING)


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
