"""What ``--policy-drop-log`` tells unasked: lines of the log, and Kubernetes Events on pods.

Both are bounded, however much is refused: the log says the same flow once a minute, ten lines a
second at most and what it left out; a pod has few Events, and each of them once an hour.
"""

import logging
from collections.abc import Hashable, Sequence

from kube_router_py.cluster.objects import Pod
from kube_router_py.drops.limits import Bucket, Repeats
from kube_router_py.drops.record import AUDITED, DropRecord, End
from kube_router_py.observe.event_writer import EventWriter, Tiding
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

REFUSED_REASON, AUDITED_REASON = "PolicyRefused", "PolicyAudited"
EVENT_SPACING_S = 1.0
EVENTS_WAITING = 64

_SAME_S = 60.0
_SAME_ROOM = 4096
_LINES_PER_S, _LINES_BURST = 10.0, 50.0
_SUPPRESSED_S = 10.0
_POD_EVENTS_BURST, _POD_EVENTS_PER_S = 5.0, 1 / 600
_PODS_MOST = 4096
_NAMED_IN_EVENT = 5
# Who may write policies and Services may write thousands about one pod.
_NAMED_IN_LINE = 20


class DropLog:
    """``tell`` each record, and ``tick`` now and then. For one thread; ``now`` in seconds."""

    def __init__(self) -> None:
        self._repeats = Repeats(_SAME_S, _SAME_ROOM)
        self._bucket = Bucket(_LINES_PER_S, _LINES_BURST)
        self._suppressed = 0
        self._told_at = 0.0

    def tell(self, record: DropRecord, now: float) -> None:
        same = flow(record)
        times = self._repeats.news(same, now)
        if not times:
            return
        if not self._bucket.take(now):
            self._suppressed += 1
            return
        self._repeats.told(same, now)
        # The pods first: the journal finds the line by each of them.
        ends = (record.pod, record.source.pod, record.destination.pod)
        _log.info(
            "not allowed by policies verdict=%s pod=%s direction=%s from=%s to=%s port=%r "
            "service=%s policies=%s cause=%s times=%d",
            record.verdict,
            ",".join(dict.fromkeys(filter(None, ends))) or "-",
            record.direction,
            _named(record.source),
            _named(record.destination),
            record.port_text,
            ",".join(record.services[:_NAMED_IN_LINE]) or "-",
            _some(record.policies, ",", _NAMED_IN_LINE) or "-",
            record.cause,
            times,
        )

    def tick(self, now: float) -> None:
        """Say how many lines were left out, if any."""
        if self._suppressed and now - self._told_at >= _SUPPRESSED_S:
            _log.warning("too many packets are refused to log each suppressed=%d", self._suppressed)
            self._suppressed, self._told_at = 0, now


class DropEvents:
    """Tells pods' owners, by Events. For one thread."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._repeats = Repeats(3600.0, _SAME_ROOM)
        self._buckets: dict[str, Bucket] = {}

    @property
    def dropped(self) -> int:
        """How many Events had no room. For any thread."""
        return self._events.dropped

    def tell(self, record: DropRecord, now: float) -> None:
        same = flow(record)
        if not record.pod or not self._repeats.news(same, now):
            return
        if not self._bucket(record.pod).take(now):
            return
        self._repeats.told(same, now)
        is_audit = record.verdict == AUDITED
        self._events.tell(
            Tiding(
                Pod,
                record.pod,
                AUDITED_REASON if is_audit else REFUSED_REASON,
                Problem(f"Pod {record.pod}", "", sentence(record)),
                type="Normal" if is_audit else "Warning",
            )
        )

    def tick(self, now: float) -> None:
        """Nothing waits here."""

    def stop(self, timeout_s: float) -> None:
        self._events.stop(timeout_s)

    def _bucket(self, pod: str) -> Bucket:
        found = self._buckets.get(pod)
        if found is None:
            if len(self._buckets) >= _PODS_MOST:
                del self._buckets[next(iter(self._buckets))]
            found = self._buckets[pod] = Bucket(_POD_EVENTS_PER_S, _POD_EVENTS_BURST)
        return found


def flow(record: DropRecord) -> Hashable:
    """What is the same in all packets of the same attempt, whatever port it came from."""
    return (
        *(record.direction, record.verdict, record.cause, record.pod, record.protocol),
        *(record.source.address, record.destination.address, record.destination.port),
    )


def sentence(record: DropRecord) -> str:
    """For an Event: what happened, as a person would say it."""
    does = "would be refused" if record.verdict == AUDITED else "was refused"
    meant = _some(record.services, ", ", _NAMED_IN_EVENT)
    is_guess = record.meant is None and record.destination.pod
    through = f" ({'behind ' if is_guess else ''}service {meant})" if meant else ""
    named = _some(record.policies, ", ", _NAMED_IN_EVENT)
    by = f" (isolated by {named})" if named else ""
    way = f"from {_named(record.source)} to {_named(record.destination)}"
    return f"{record.direction} {way}{through}, {record.port_text}, {does}: {record.reason}{by}"


def _some(names: Sequence[str], separator: str, most: int) -> str:
    left = len(names) - most
    return separator.join(names[:most]) + (f" and {left} more" if left > 0 else "")


def _named(end: End) -> str:
    is_node = end.node and not end.is_in_pod_range
    return end.pod or (f"node/{end.node}" if is_node else end.address or "-")
