"""Nodes that know of each other's life by Leases: the fall-back where no key signs heartbeats.

Each node renews ``kube-router-py-l2-NODE`` in the agent's namespace every 10 s and watches those of
the others; one that was not renewed for 30 s is dead. The annotation ``kube-router.io/layer2`` has
the node's standing, and the seconds of a restart's grace. The API server is asked to write one
object per node and 10 s, and sends each of these changes to every node: for 100 nodes 10 writes and
1,000 messages per second. Heartbeats are what large clusters want.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.node_lease import NodeLease
from kube_router_py.cluster.objects import Lease
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.loadbalancer.heartbeat import Standing
from kube_router_py.loadbalancer.liveness import Liveness

_log = logging.getLogger(__name__)

NAME_PREFIX = "kube-router-py-l2-"
LABEL, LABEL_VALUE = "app.kubernetes.io/component", "kube-router-py-layer2"
ANNOTATION = "kube-router.io/layer2"
RENEW_S, VALID_S = 10.0, 30
# Renewed less recently than this, others may have gone unheard for the same reason.
_CONTACT_S = 15.0
_RETRY_S = 2.0


class LeaseLife:
    """Begins when ``begin`` is called, which may be repeated; ``nodes`` has this Node, if known."""

    def __init__(
        self,
        client: Client,
        nodes: Cache,
        node: str,
        namespace: str,
        liveness: Liveness,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._node, self._clock = client, node, clock
        self._namespace, self._liveness = namespace, liveness
        self._lease = NodeLease(client, nodes, namespace, f"{NAME_PREFIX}{node}", node)
        self._cache = Cache((Lease,))
        self._cache.subscribe((Lease,), self._notice)
        self._reflector: Reflector[Lease] | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_stopping = False
        self._renewed_at = float("-inf")
        self._told = self._said = ""
        liveness.is_in_contact = self.is_in_contact

    def is_in_contact(self) -> bool:
        """Whether this node's own Lease was renewed lately."""
        return self._clock() - self._renewed_at < _CONTACT_S

    def begin(self) -> None:
        """Watch the others, and renew this node's Lease from now on."""
        if self._thread is not None:
            return
        selector = f"{LABEL}={LABEL_VALUE}"
        self._reflector = Reflector(
            self._client, self._cache, Lease, label_selector=selector, namespace=self._namespace
        )
        self._thread = threading.Thread(target=self._run, name="layer2-lease", daemon=True)
        self._reflector.start()
        self._thread.start()

    def follow(self) -> None:
        """Write the Lease now if this node's standing is another one than it says."""
        if self._text() != self._said:
            self._wake.set()

    def stop(self, timeout_s: float, *, last_word_s: float = 1.0) -> None:
        """End; what changed last is written, if that is possible soon."""
        self._is_stopping = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join(max(timeout_s, last_word_s))
        if self._reflector is not None:
            self._reflector.stop(timeout_s)

    # --- others ---------------------------------------------------------------------------------

    def _notice(self, event: Event) -> None:
        old, new = event.old, event.new
        if not isinstance(new, Lease) or not new.metadata.name.startswith(NAME_PREFIX):
            return
        if isinstance(old, Lease):
            is_alive = old.spec.renew_time != new.spec.renew_time
        else:  # listed: it may be of any age
            is_alive = _is_recent(new.spec.renew_time, datetime.now(UTC))
        if is_alive:
            name = new.metadata.name.removeprefix(NAME_PREFIX)
            self._liveness.hear_lease(name, *_read(new.metadata.annotation(ANNOTATION) or ""))

    # --- this node's ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.clear()
            is_last = self._is_stopping
            wait_s = RENEW_S
            try:
                self._write()
                self._renewed_at = self._clock()
                self._told = ""
            except Exception as error:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                wait_s = _RETRY_S
                if repr(error) != self._told:
                    self._told = repr(error)
                    _log.warning("the Lease of layer 2 is not renewed reason=%r", str(error))
            if is_last:
                return
            self._wake.wait(wait_s)

    def _write(self) -> None:
        self._said = self._text()
        spec = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": VALID_S,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        self._lease.write({LABEL: LABEL_VALUE}, {ANNOTATION: self._said}, spec)

    def _text(self) -> str:
        view = self._liveness.view
        return f"{view.standing.name.lower()} {self._liveness.grace_s:.0f}"


def _read(text: str) -> tuple[Standing, float]:
    """Others may have written it: what cannot be understood is a node that runs."""
    word, _, grace = text.partition(" ")
    try:
        return Standing[word.upper()], min(max(float(grace), 0.0), 3600.0)
    except (KeyError, ValueError):
        return Standing.RUNNING, 0.0


def _is_recent(renewed: str | None, now: datetime) -> bool:
    try:
        at = datetime.fromisoformat((renewed or "").replace("Z", "+00:00"))
        return abs(now - at) < timedelta(seconds=VALID_S)
    except (ValueError, TypeError):
        return False
