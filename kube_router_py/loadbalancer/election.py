"""Which agent of the cluster gives addresses: the one that holds the Lease ``kube-router-lballoc``.

The Lease, its fields and its times are kube-router's (client-go's LeaseLock), so that there is one
leader in a mixed cluster, too. Whoever holds it renews it every two seconds. The others look, and
take it when they have seen it unchanged for as long as it says it lasts: by their own clocks, since
clocks differ. All writes are compare-and-swap by resourceVersion. Who has lost campaigns again.

What makes two writers impossible: a holder counts from *before* it sent its last renewal that was
answered, a candidate from *after* it saw that renewal. So all that the holder sends reaches its end
before anyone else may begin, if it begins at least its own time limit before the end of the Lease
(``may_write``). Its clock runs on while the process or the host sleeps.
Source: k8s.io/client-go/tools/leaderelection.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct

from kube_router_py.cluster import decode
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.objects import Lease
from kube_router_py.errors import ApiError

_log = logging.getLogger(__name__)

LEASE = "kube-router-lballoc"
_LEASES = decode.ObjectDecoder(Lease)
LONGEST_ANNOTATION = 200_000
"""Bytes; the API server takes 256 KiB of annotations together."""

# A Lease that is written by two at the same moment is looked at and tried again at once.
_ATTEMPTS = 3
_LONGEST_PAUSE_S = 15.0
_LONGEST_REQUESTED_PAUSE_S = 60.0


class Timing(Struct, frozen=True):
    """Seconds. ``lease_s`` a Lease lasts without being renewed; after ``renew_s`` without a renewal
    its holder does not count on it any more. ``retry_s`` is between two looks or renewals, and
    ``request_s`` is the limit of each request."""

    lease_s: int = 15
    renew_s: float = 10.0
    retry_s: float = 2.0
    request_s: float = 4.0


class Seen(Struct, frozen=True):
    """The Lease as it was last seen; ``at``: since when, by the clock of who looks."""

    lease: Lease
    at: float

    @property
    def holder(self) -> str:
        return self.lease.spec.holder_identity or ""


class Move(Enum):
    """What a candidate does next."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def see(lease: Lease, known: Seen | None, now: float) -> Seen:
    """What is known after a look. Annotations may change without the Lease being renewed."""
    is_same = known is not None and known.lease.spec == lease.spec
    return Seen(lease, known.at if known is not None and is_same else now)


def decide(seen: Seen | None, now: float, identity: str, timing: Timing) -> Move:
    """What to do about a Lease; None: there is none. Two candidates may decide the same: the API
    server takes what comes first."""
    if seen is None:
        return Move.CREATE
    if seen.holder == identity:
        return Move.RENEW
    lasts_s = seen.lease.spec.lease_duration_seconds or timing.lease_s
    if not seen.holder or now >= seen.at + lasts_s:
        return Move.TAKE
    return Move.WAIT


class Leases(Protocol):
    """What is used of the client."""

    def list(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> bytes: ...

    def patch(self, path: str, body: object, *, timeout_s: float | None = None) -> bytes: ...

    def post(self, path: str, body: object, *, timeout_s: float | None = None) -> bytes: ...


def _since_boot() -> float:
    """Runs on while the host sleeps, other than time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """One candidate; see the module docstring. ``on_change`` is called, in the thread of the
    election, when it has won or lost. Methods are for any thread, but for ``campaign``."""

    def __init__(
        self,
        client: Leases,
        namespace: str,
        identity: str,
        on_change: Callable[[], None],
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = _since_boot,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.identity = identity
        self._client, self._namespace = client, namespace
        self._key = f"{namespace}/{LEASE}"
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_change = on_change
        self.timing = timing or Timing()
        self._clock, self._wall_clock, self._jitter = clock, wall_clock, jitter
        self._changed = threading.Condition()  # guards what follows, up to the thread
        self._renewed: float | None = None
        self._term = 0
        self._wanted: dict[str, tuple[str, int | None]] = {}
        self._holder = ""
        self._stopping = self._is_hurried = False
        self._seen: Seen | None = None
        self._must_look = True
        self._failures = 0
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None

    # --- for any thread ------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """A number for each time that it leads, from 1; 0: it does not lead."""
        with self._changed:
            return self._term if self._leads() else 0

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen; ``""``: nobody, or not known."""
        with self._changed:
            return self._holder

    def is_leader(self) -> bool:
        return self.term != 0

    def may_write(self, term: int) -> bool:
        """Whether a request that is limited to ``timing.request_s`` may begin in this term."""
        with self._changed:
            if term != self._term or self._renewed is None or not self._leads():
                return False
            return self._clock() + self.timing.request_s < self._renewed + self.timing.lease_s

    def annotate(self, name: str, text: str, term: int | None = None) -> None:
        """Have the Lease carry this annotation, whenever this candidate holds it, or only in this
        term. Of two the first is never there later than the second. A text that the API server
        might refuse, and the renewal with it, is left out."""
        if len(text.encode()) > LONGEST_ANNOTATION:
            _log.warning("too long for an annotation lease=%s name=%s", self._key, name)
            return
        with self._changed:
            if self._wanted.get(name) == (text, term):
                return
            self._wanted[name] = text, term
            self._is_hurried = True
            self._changed.notify_all()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float, *, release: bool) -> None:
        """End the thread, and give the Lease back: only where nothing is on its way that was begun
        as the leader."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return
        if release and self._renewed is not None:
            try:
                self._release()
            except ApiError as error:
                told = (self._key, str(error))
                _log.info("the Lease is not given back, and will expire lease=%s reason=%r", *told)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            pause_s = self.timing.retry_s
            try:
                self.campaign()
                self._failures = 0
            except ApiError as error:
                pause_s = self._after(error)
            except Exception as error:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                _log.exception("the election failed; it goes on")
                pause_s = self._after(ApiError(repr(error)))
            self._notice_loss()
            if not self.is_leader():  # as client-go; without it all would look at the same time
                pause_s *= 1 + 1.2 * self._jitter()
            with self._changed:
                # An annotation is written by whoever leads; others only remember it.
                self._changed.wait_for(
                    lambda: self._stopping or (self._is_hurried and self._leads()), pause_s
                )
                self._is_hurried = False
                if self._stopping:
                    return

    def campaign(self) -> None:
        """Look, and do what is to be done. Raises ApiError; then the next one begins anew."""
        must_look = self._must_look or self._renewed is None
        self._must_look = True
        for _ in range(_ATTEMPTS):
            if must_look:
                self._look()
            move = decide(self._seen, self._clock(), self.identity, self.timing)
            if move is Move.WAIT:
                break
            try:
                self._write(move)
                break
            except RefusedError as error:
                if error.status in (404, 409):
                    must_look = True  # somebody else was faster
                elif error.status not in (413, 422) or not self._drop_annotations(error):
                    raise
        self._must_look = False
        self._follow()

    def _follow(self) -> None:
        """It was seen who holds the Lease."""
        holder = self._seen.holder if self._seen is not None else ""
        with self._changed:
            is_news, self._holder = holder != self._holder, holder
        if is_news and holder:
            _log.info("addresses of load balancers are given by holder=%s", holder)
        if holder != self.identity:
            self._lose(f"held by {holder}" if holder else "given back")
        if self._told:
            self._told.clear()
            _log.info("the Lease can be looked at and written again lease=%s", self._key)

    def _look(self) -> None:
        query = {"fieldSelector": f"metadata.name={LEASE}"}
        page = _LEASES.page(self._client.list(self._path, query, timeout_s=self.timing.request_s))
        found = next((each for each in page.items if each.key.endswith(f"/{LEASE}")), None)
        if found is None:
            self._seen = None
        elif found.object is None:
            raise ApiError(f"the Lease cannot be read: {found.problem}")
        else:
            self._seen = see(found.object, self._seen, self._clock())

    def _write(self, move: Move) -> None:
        begun = self._clock()
        seen = self._seen
        if seen is None:
            body = self._body("", 0, is_new_holder=True)
            kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            metadata = {**body["metadata"], "name": LEASE, "namespace": self._namespace}
            answer = self._client.post(
                self._path, {**kind, **body, "metadata": metadata}, timeout_s=self.timing.request_s
            )
        else:
            is_new = move is Move.TAKE
            transitions = (seen.lease.spec.lease_transitions or 0) + is_new
            body = self._body(
                seen.lease.metadata.resource_version, transitions, is_new_holder=is_new
            )
            answer = self._client.patch(
                f"{self._path}/{LEASE}", body, timeout_s=self.timing.request_s
            )
        item = _LEASES.item(answer)
        if item.object is None:
            raise ApiError(f"the Lease as it was written cannot be read: {item.problem}")
        self._seen = see(item.object, seen, self._clock())
        self._win(begun)

    def _body(self, revision: str, transitions: int, *, is_new_holder: bool) -> dict[str, Any]:
        now = self._now()
        spec: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.timing.lease_s,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        if is_new_holder:
            spec["acquireTime"] = now
        metadata: dict[str, Any] = {"resourceVersion": revision} if revision else {}
        if changed := self._annotations():
            metadata["annotations"] = changed
        return {"metadata": metadata, "spec": spec}

    def _annotations(self) -> dict[str, str]:
        """Those that the Lease is to carry and does not."""
        lease = self._seen.lease if self._seen is not None else Lease()
        with self._changed:
            return {
                name: text
                for name, (text, term) in self._wanted.items()
                if lease.metadata.annotation(name) != text
                and (term is None or (term == self._term and self._leads()))
            }

    def _drop_annotations(self, error: RefusedError) -> bool:
        """Go without those that would be written: the API server may have no room for them beside
        those of others. Whether there are any."""
        refused = self._annotations()
        with self._changed:
            for name in refused:
                del self._wanted[name]
        if refused:
            told = (self._key, str(error))
            _log.warning("the Lease cannot carry annotations lease=%s reason=%r", *told)
        return bool(refused)

    def _now(self) -> str:
        """Kubernetes' MicroTime."""
        return self._wall_clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _release(self) -> None:
        with self._changed:
            self._renewed = None  # from here on nothing is written by this one
            self._wanted.clear()
        if self._must_look:
            self._look()
        seen = self._seen
        if seen is None or seen.holder != self.identity:
            return
        body = self._body(
            seen.lease.metadata.resource_version,
            seen.lease.spec.lease_transitions or 0,
            is_new_holder=True,
        )
        body["spec"].update(holderIdentity="", leaseDurationSeconds=1)
        self._client.patch(f"{self._path}/{LEASE}", body, timeout_s=self.timing.request_s)
        _log.info("the Lease is given back lease=%s", self._key)

    # --- having won and lost -------------------------------------------------------------------

    def _leads(self) -> bool:
        """Under the lock."""
        return self._renewed is not None and self._clock() < self._renewed + self.timing.renew_s

    def _win(self, begun: float) -> None:
        with self._changed:
            is_new = not self._leads()
            self._renewed = begun
            # Of an answer that took too long nothing can be made.
            if not self._leads():
                return
            self._term += is_new
        if is_new:
            _log.info("this agent gives addresses to load balancers identity=%s", self.identity)
            self._on_change()

    def _notice_loss(self) -> None:
        with self._changed:
            is_over = self._renewed is not None and not self._leads()
        if is_over:
            self._lose(f"not renewed for {self.timing.renew_s:g} s")

    def _lose(self, reason: str) -> None:
        with self._changed:
            was, self._renewed = self._renewed, None
        if was is not None:
            _log.warning("this agent does not give addresses any more reason=%r", reason)
            self._on_change()

    def _after(self, error: ApiError) -> float:
        """Tell of a failure, once for each reason; the pause that it makes."""
        reason = f"{error.status} {getattr(error, 'reason', '')}"
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("the Lease is out of reach lease=%s reason=%r", self._key, str(error))
        self._failures += 1
        if self.is_leader():
            return self.timing.retry_s
        asked_s = min(getattr(error, "retry_after_s", 0.0), _LONGEST_REQUESTED_PAUSE_S)
        doubled_s = self.timing.retry_s * 2.0 ** min(self._failures - 1, 10)
        return max(asked_s, min(doubled_s, _LONGEST_PAUSE_S))
