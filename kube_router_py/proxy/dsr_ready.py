"""Which pods are ready for direct server return: each node tells of its own, by a Lease.

Only a pod's own node can make its pod side, and only it knows when that stands. Its agent writes
the Lease ``kube-router-py-NODE`` in the agent's namespace; the annotation
``kube-router.io/dsr-ready`` holds a line per pod, sorted: the UID and the VIPs it answers for.

    7d0f3f0c-... 192.0.2.10 2001:db8::10

It is written when that changes and at no other time (there is nothing to renew), and not at all on
a node that never had anything to tell. The writing is done by a thread of its own: the kernel does
not wait for the API server.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.node_lease import NodeLease
from kube_router_py.cluster.objects import Lease, Service
from kube_router_py.proxy.dsr import DSR_ANNOTATION

_log = logging.getLogger(__name__)

ANNOTATION = "kube-router.io/dsr-ready"
LABEL, LABEL_VALUE = "app.kubernetes.io/name", "kube-router-py"
NAME_PREFIX = "kube-router-py-"
# The API server takes 256 KiB of annotations; a node has a few hundred pods.
MOST_BYTES = 128 << 10

# Without Leases a start would take every real server of another node away.
_PATIENCE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0

Ready = Mapping[str, Sequence[str]]
"""VIPs (as text) by pod UID."""


class DsrReady(Protocol):
    """What nodes tell each other. Methods may be called from one thread, and never block."""

    def elsewhere(self, node: str, uid: str, vip: str) -> bool:
        """Whether another node has said that its pod is ready for a VIP."""

    def publish(self, ready: Ready, *, check: bool = False) -> None:
        """Tell what this node's pods are ready for; with ``check`` also see that it is told."""

    def formerly(self) -> frozenset[str]:
        """Pods (UIDs) of this node that were ready according to what it told last."""


class NobodyReady:
    """``DsrReady`` where nodes do not tell each other anything."""

    def elsewhere(self, node: str, uid: str, vip: str) -> bool:
        del node, uid, vip
        return False

    def publish(self, ready: Ready, *, check: bool = False) -> None:
        """Nobody listens."""

    def formerly(self) -> frozenset[str]:
        return frozenset()


def write_ready(ready: Ready) -> str:
    """The annotation's text; what does not fit into MOST_BYTES is left out, whole lines of it."""
    lines: list[str] = []
    size = 0
    for uid in sorted(ready):
        if ready[uid]:
            line = " ".join((uid, *sorted(ready[uid])))
            size += len(line) + 1
            if size > MOST_BYTES:
                break
            lines.append(line)
    return "\n".join(lines)


@lru_cache(maxsize=1024)
def read_ready(text: str) -> Mapping[str, frozenset[str]]:
    """The annotation's content. Others may have written it: lines that are none are skipped."""
    found: dict[str, frozenset[str]] = {}
    for line in text[:MOST_BYTES].splitlines():
        uid, *vips = line.split()[:65] or [""]
        if uid:
            found[uid] = frozenset(vips)
    return found


class LeaseReady:
    """``DsrReady`` by Leases in ``namespace``, as ``leases`` has them and the client writes them.

    ``cache`` holds Services and this Node; ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        cache: Cache,
        leases: Cache,
        client: Client,
        node: str,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._leases, self._clock = cache, leases, clock
        self._patient_until: float | None = None
        self._node, self._namespace = node, namespace
        self._lease = NodeLease(client, cache, namespace, f"{NAME_PREFIX}{node}", node)
        self._changed = threading.Condition()
        self._wanted: str | None = None
        self._written: str | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None

    def is_known(self) -> bool:
        """Whether the loop may start: the Leases are listed, or nobody needs them, or they could
        not be listed for so long that the other Services have waited enough. For any thread."""
        if self._leases.is_synced():
            return True
        services = self._cache.list(Service)
        if not any(each.metadata.annotation(DSR_ANNOTATION) for each in services):
            return True
        if self._patient_until is None:
            self._patient_until = self._clock() + _PATIENCE_S
        return self._clock() >= self._patient_until

    def elsewhere(self, node: str, uid: str, vip: str) -> bool:
        """Whether another node's Lease says so."""
        return vip in read_ready(self._told(node) or "").get(uid, ())

    def formerly(self) -> frozenset[str]:
        """Pods named in this node's own Lease."""
        return frozenset(read_ready(self._told(self._node) or ""))

    def publish(self, ready: Ready, *, check: bool = False) -> None:
        """Have the Lease written if it says something else."""
        text = write_ready(ready)
        with self._changed:
            if self._wanted is None or (check and self._wanted == self._written):
                self._written = self._told(self._node)
                if self._written is None and not text:
                    return  # nothing was ever told, and there is nothing to tell
            self._wanted = text
            if text == self._written:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="dsr-ready", daemon=True)
                thread.start()  # may fail, for want of threads; then the next turn tries again
                self._thread = thread
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """End the thread; what is not written by then is written after the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _told(self, node: str) -> str | None:
        lease = self._leases.get(Lease, f"{self._namespace}/{NAME_PREFIX}{node}")
        return None if lease is None else lease.metadata.annotation(ANNOTATION) or ""

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if pause_s:
                    self._changed.wait_for(lambda: self._stopping, pause_s)
                else:
                    self._changed.wait_for(lambda: self._stopping or self._is_behind())
                if self._stopping:
                    return
                text = self._wanted or ""
            try:
                self._write(text)
            except Exception as error:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
                _log.warning("readiness not told retry_s=%.0f reason=%r", pause_s, repr(error))
                continue
            pause_s = 0.0
            with self._changed:
                self._written = text

    def _is_behind(self) -> bool:
        return self._wanted is not None and self._wanted != self._written

    def _write(self, text: str) -> None:
        self._lease.write({LABEL: LABEL_VALUE}, {ANNOTATION: text})
