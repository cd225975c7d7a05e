"""How often a status that somebody else writes, too, is written anew. Pure.

Another allocator that takes a Service for its own puts its address where ours was. If both repair
that at once, they and the API server do nothing else any more, and all who follow the status are
told of either address in turn.
"""

from kube_router_py.cluster.objects import Service
from kube_router_py.loadbalancer.decisions import Reason, Told
from kube_router_py.loadbalancer.ingress import Ingress, as_text, present_ingress
from kube_router_py.problem import Problem

_MOST = 5


class Repairs:
    """Counts them, from one full turn of the loop to the next. For one thread."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._told: dict[str, Told] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of Services with too many since the last full turn but one."""
        return tuple(each.problem for each in self._told.values())

    def begin_anew(self) -> None:
        """A full turn begins."""
        self._told = {key: each for key, each in self._told.items() if self._is_over(key)}
        self._counts.clear()

    def refuse(self, service: Service, wanted: Ingress) -> Told | None:
        """The status is not as it was written. None: write it again; else why this has to wait for
        the next full turn."""
        key = service.metadata.key
        self._counts[key] = self._counts.get(key, 0) + 1
        if not self._is_over(key):
            return None
        reason = (
            f"somebody else lists {as_text(present_ingress(service)) or 'none'} instead of "
            f"{as_text(wanted) or 'none'}, again and again; end the other allocator, or give the "
            "Service the loadBalancerClass of one of the two"
        )
        problem = Problem(f"Service {key}", "status.loadBalancer.ingress", reason)
        return self._told.setdefault(key, Told(Reason.OVERWRITTEN, problem))

    def _is_over(self, key: str) -> bool:
        return self._counts.get(key, 0) > _MOST
