"""The state of all nodes in one table: each agent writes a Lease, ``status --cluster`` reads them.

The Lease ``kube-router-py-status-NODE``, in the agents' namespace (``lease_name`` where that is too
long), has a summary of less than a kilobyte in the annotation ``kube-router.io/status`` and goes
with its Node. A summary that is like the one before is written again every third time, so that a
node which is silent can be told from one where nothing happens: for 1,000 nodes and 60 s between
summaries that is less than six writes a second while nothing happens, and 17 at most.
"""

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.listing import list_all
from kube_router_py.cluster.node_lease import NodeLease
from kube_router_py.cluster.objects import Lease, Node
from kube_router_py.observe.summary import NodeSummary, decode, encode, summarize

_log = logging.getLogger(__name__)

NAME_PREFIX = "kube-router-py-status-"
LABEL, LABEL_VALUE = "app.kubernetes.io/component", "kube-router-py-status"
ANNOTATION = "kube-router.io/status"
AGAIN = 3
"""Every so many intervals a summary is written that is like the one before."""
_SLACK = 1.5
# Whoever gives milliseconds does not mean that many writes to the API server.
_LEAST_S = 1.0
# Clocks differ by less. A summary from later than that hides for how long its node has been silent.
_CLOCKS_S = 60.0
_NAME_MOST = 253
_STOP_S = 2.0


class StatusWriter:
    """Writes this node's summary every ``interval_s`` (not below 1), from ``start`` to ``stop``.

    ``nodes`` is a cache with this Node, ``status`` gives what the agent says of itself.
    """

    def __init__(
        self,
        client: Client,
        nodes: Cache,
        namespace: str,
        node: str,
        status: Callable[[], Mapping[str, Any]],
        interval_s: float,
    ) -> None:
        self._lease = NodeLease(client, nodes, namespace, lease_name(node), node)
        self._node, self._status = node, status
        self._interval_s = max(_LEAST_S, interval_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-status", daemon=True)
        self._written: NodeSummary | None = None
        self._age = 0
        self._told = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End; the last summary stays, and grows old."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.write()
                self._told = ""
            except Exception as error:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                if repr(error) != self._told:
                    self._told = repr(error)
                    _log.warning("no summary for status --cluster reason=%r", str(error))

    def write(self) -> None:
        """Write the summary, unless it is the one that stands there and is not old. Raises
        KubeRouterError."""
        summary = summarize(self._status())
        self._age += 1
        if summary == self._written and self._age < AGAIN:
            return
        spec = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": math.ceil(self._interval_s * AGAIN * _SLACK),
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        self._lease.write({LABEL: LABEL_VALUE}, {ANNOTATION: encode(summary)}, spec)
        self._written, self._age = summary, 0


def lease_name(node: str) -> str:
    """A Node's name may be as long as a Lease's (RFC 1123, as Kubernetes has it): 253 letters."""
    name = f"{NAME_PREFIX}{node}"
    if len(name) <= _NAME_MOST:
        return name
    digest = hashlib.sha256(node.encode()).hexdigest()[:16]
    return f"{name[: _NAME_MOST - 1 - len(digest)].rstrip('.-')}-{digest}"


def _node_of(lease: Lease) -> str:
    holder = lease.spec.holder_identity or ""
    if lease.metadata.name == lease_name(holder):
        return holder
    return lease.metadata.name.removeprefix(NAME_PREFIX)


def read_rows(client: Client, namespace: str, now: datetime) -> list[dict[str, Any]]:
    """A row for each Node and each summary, by name; those of agents in ``namespace``. Raises
    ApiError."""
    nodes = list_all(client, Node).objects
    selector = f"{LABEL}={LABEL_VALUE}"
    leases = list_all(client, Lease, namespace=namespace, label_selector=selector).objects
    return [*rows(nodes, leases.values(), now)]


def rows(nodes: Iterable[str], leases: Iterable[Lease], now: datetime) -> Iterator[dict[str, Any]]:
    """The table: ``state`` is ready, not ready, silent (its summary is too old), clock ahead
    (its summary is from the future), unreadable, or no summary; ``node`` of a summary whose Node is
    gone has a star."""
    found = {
        _node_of(lease): lease for lease in leases if lease.metadata.name.startswith(NAME_PREFIX)
    }
    known = {*nodes}
    for name in sorted(known | found.keys()):
        shown = name if name in known else f"{name}*"
        lease = found.get(name)
        summary = decode(lease.metadata.annotation(ANNOTATION) or "") if lease else None
        if lease is None or summary is None:
            state = "unreadable" if lease else "no summary"
            yield _row(shown, state, NodeSummary(), None)
            continue
        age_s = _age_s(lease, now)
        yield _row(shown, _state(lease, summary, age_s), summary, age_s)


def _state(lease: Lease, summary: NodeSummary, age_s: float | None) -> str:
    if age_s is None or age_s > (lease.spec.lease_duration_seconds or 0):
        return "silent"
    if age_s < -_CLOCKS_S:
        return "clock ahead"
    return "ready" if summary.ready else "not ready"


def _row(name: str, state: str, summary: NodeSummary, age_s: float | None) -> dict[str, Any]:
    bgp = None
    if summary.sessions is not None:
        bgp = f"{summary.established}/{summary.sessions}"
    return {
        "node": name,
        "state": state,
        "version": summary.version,
        "virtual_servers": summary.virtual_servers,
        "policy_chains": summary.policy_chains,
        "bgp": bgp,
        "announced": summary.announced,
        "answered": summary.answered,
        "repaired": summary.repaired if summary.version else None,
        "problems": summary.problems if summary.version else None,
        "seen_s": None if age_s is None else round(age_s),
        "reason": summary.reason,
    }


def _age_s(lease: Lease, now: datetime) -> float | None:
    try:
        at = datetime.fromisoformat((lease.spec.renew_time or "").replace("Z", "+00:00"))
        return (now - at).total_seconds()
    except (ValueError, TypeError):
        return None
