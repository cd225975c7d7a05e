"""What load balancers outside the cluster ask of a node (KEP-3836), as kube-proxy answers it.

``/healthz`` fails where the node is about to go (deleted, or tainted by the cluster autoscaler) or
the service proxy does not work; ``/livez`` only for the latter, which a restart may mend.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import json

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.serve import Answer, Page

TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
_NO_SNIFFING = (("X-Content-Type-Options", "nosniff"),)


def is_eligible(node: Node | None) -> bool:
    """Whether new connections may be sent to this node. One that is not known stays as it was."""
    if node is None:
        return True
    if node.metadata.deletion_timestamp is not None:
        return False
    return all(taint.key != TO_BE_DELETED for taint in node.spec.taints or ())


def is_healthy(status: LoopStatus) -> bool:
    """Whether the service proxy does its work: it turns, and has succeeded once. A Service that
    cannot be programmed is no reason to take the node away from all others."""
    return status.turning and status.turns > 0


class NodeHealth:
    """``status`` is the service proxy's; ``wall_clock`` in seconds since the epoch."""

    def __init__(
        self,
        cache: Cache,
        node_name: str,
        status: Callable[[], LoopStatus],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache, self._node_name, self._status = cache, node_name, status
        self._wall_clock = wall_clock

    def pages(self) -> dict[str, Page]:
        return {"/healthz": self.healthz, "/livez": self.livez}

    def healthz(self) -> Answer:
        return self._answer(counts_eligibility=True)

    def livez(self) -> Answer:
        return self._answer(counts_eligibility=False)

    def _answer(self, *, counts_eligibility: bool) -> Answer:
        status, now_s = self._status(), self._wall_clock()
        eligible = is_eligible(self._cache.get(Node, self._node_name))
        healthy = is_healthy(status) and (eligible or not counts_eligibility)
        # As long as everything is well, nothing had to wait for an update.
        updated_s = now_s if healthy else now_s - status.last_turn_s
        body = {
            "lastUpdated": _text(updated_s),
            "currentTime": _text(now_s),
            "nodeEligible": eligible,
        }
        return Answer(200 if healthy else 503, "application/json", json.encode(body), _NO_SNIFFING)


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
