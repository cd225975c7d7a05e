"""Events about what is wrong with BGP and the pod network: on this Node, and on Services.

Other Nodes are told of by their own agents, which find the same. What no object is to blame for
(flags, files) is told of this Node.
"""

from collections.abc import Sequence

from kube_router_py.cluster.objects import Node, Service
from kube_router_py.observe.event_writer import EventWriter, Tiding
from kube_router_py.problem import Problem

BAD_ANNOTATION = "BadRoutingAnnotation"
OTHERWISE = "RoutingProblem"
SPACING_S = 1.0
"""Texts may change with every attempt: so often, at most, is an Event written."""
_ANNOTATIONS = "metadata.annotations"


class ProblemEvents:
    """Tells of Problems as they come, of each once as long as it stays."""

    def __init__(self, events: EventWriter, node: str) -> None:
        self._events, self._node = events, node
        self._seen: Sequence[Problem] = ()
        self._told: set[Problem] = set()

    @property
    def dropped(self) -> int:
        """How many Events had no room so far. For any thread."""
        return self._events.dropped

    def follow(self, problems: Sequence[Problem]) -> None:
        """These are all Problems there are; what had no room is tried again each time."""
        if problems is self._seen and len(self._told) == len(problems):
            return
        self._seen = problems
        self._told.intersection_update(problems)
        for problem in problems:
            if problem not in self._told:
                tiding = self._tiding(problem)
                if tiding is None or self._events.tell(tiding):
                    self._told.add(problem)

    def stop(self, timeout_s: float) -> None:
        """What waits is forgotten."""
        self._events.stop(timeout_s)

    def _tiding(self, problem: Problem) -> Tiding | None:
        """None for what others tell of."""
        kind, _, key = problem.object.partition(" ")
        reason = BAD_ANNOTATION if problem.field.startswith(_ANNOTATIONS) else OTHERWISE
        if kind == "Service":
            return Tiding(Service, key, reason, problem)
        if kind != "Node":
            return Tiding(Node, self._node, reason, Problem("", "", str(problem)))
        return Tiding(Node, key, reason, problem) if key == self._node else None
