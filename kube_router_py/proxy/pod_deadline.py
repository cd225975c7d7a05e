"""When a pod that is being deleted will be killed. Pure.

``metadata.deletionTimestamp`` is the time of the deletion with the grace period added (Kubernetes
API reference, ObjectMeta). It was written by the clock of the API server, so the grace period
bounds what is left by ours.
"""

from collections.abc import Iterable
from datetime import datetime

from kube_router_py.cluster.objects import Pod
from kube_router_py.proxy.surroundings import FINISHED


def seconds_to_live(pods: Iterable[Pod], wall_s: float) -> float | None:
    """What is left to the pod that goes last; None if one of them stays, or there are none.

    ``wall_s``: seconds since the epoch.
    """
    left: list[float] = []
    for pod in pods:
        meta = pod.metadata
        if meta.deletion_timestamp is None:
            if pod.status is not None and pod.status.phase in FINISHED:
                continue  # it had the address before
            return None
        try:
            when = datetime.fromisoformat(meta.deletion_timestamp)
            seconds = when.timestamp() - wall_s
        except (ValueError, OverflowError):
            return None
        if meta.deletion_grace_period_seconds is not None:
            seconds = min(seconds, float(meta.deletion_grace_period_seconds))
        left.append(max(0.0, seconds))
    return max(left, default=None)
