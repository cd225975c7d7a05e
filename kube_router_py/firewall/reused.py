"""Addresses of pods that have changed hands: what conntrack remembers of them is forgotten.

The rules let pass what belongs to a known connection. Where an address goes from one pod to the
next, the old pod's connections would go with it, and with them the verdict on the old pod.

When: once the rules have been written that know of the change. Before, the old rules could admit
the same connection again. Where something of that turn failed, this is done at once all the same,
and again when everything stands. A change of policies is no reason: connections outlive it.
"""

import logging

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.firewall.owners import Owners
from kube_router_py.kernel.ports_conntrack import Conntrack, FlowFailure
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)


class ReusedAddresses:
    """Used by the firewall's loop, in its thread.

    ``owners`` is to be told of the pods. ``problems``: what went wrong; ``is_settled``: there is
    nothing to be tried again.
    """

    def __init__(self, node_name: str) -> None:
        self.owners = Owners()
        self._node = f"Node {node_name}"
        # Of these addresses something may be remembered; of those in ``_passing`` only what the
        # rules have admitted since, which may not be as they should be.
        self._pending: set[str] = set()
        self._passing: set[str] = set()
        self._failures: list[str] = []
        self._lacking = ""

    @property
    def problems(self) -> list[Problem]:
        told = [*self._failures, *([self._lacking] if self._lacking else [])]
        return [Problem(self._node, "", f"policies: reused addresses: {each}") for each in told]

    @property
    def is_settled(self) -> bool:
        return not self._failures

    def forget(self, conntrack: Conntrack, *, stands: bool) -> None:
        """To be called when the rules have been written; ``stands``: nothing of it failed."""
        changed = self.owners.settle()
        self._pending |= changed
        self._passing -= changed
        self._failures = []
        due = self._pending if stands else self._pending - self._passing
        if not due:
            return
        written = conntrack.writes
        try:
            failures = conntrack.forget(due)
        except PreflightError as error:
            # Nothing to try again: it takes a module, and by then these are somebody's own.
            if not self._lacking:
                _log.warning("cannot forget connections reason=%r", str(error))
            self._lacking = str(error)
            self._pending.clear()
            self._passing.clear()
            return
        except KernelError as error:
            self._failures = [str(error)]
            return
        self._lacking = ""
        self._failures = [f"{each.address}: {each.message}" for each in failures]
        self._note(due, failures, stands=stands)
        _log.debug(
            "forgot connections addresses=%d entries=%d", len(due), conntrack.writes - written
        )

    def _note(self, due: set[str], failures: list[FlowFailure], *, stands: bool) -> None:
        done = due - {each.address for each in failures}
        if stands:
            self._pending -= done
            self._passing -= done
        else:
            self._passing |= done
