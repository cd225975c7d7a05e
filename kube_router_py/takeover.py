"""Taking a node over from kube-proxy or kube-router without a lost connection.

While kube-proxy runs. In mode ipvs it deletes every virtual server that it does not know: the
agent writes nothing until it is gone. In the other modes both work side by side, kube-proxy's
rules being the first that a packet meets: the agent programs everything and says that the other
has to go. A kube-proxy whose mode cannot be found out is taken for the former.

It may come back, as an upgrade of the cluster brings it: every full turn looks again. What is
served is not given up then; full turns repair the table, and a Problem says why.

When it is gone. Its rules still lead packets to endpoints, to those of its last day. Once all
Services are programmed, what it left goes, so that IPVS sees the packets; connections that its
rules have begun live on in conntrack.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel import kube_proxy, kube_router
from kube_router_py.kernel.iptables_variant import variant_of
from kube_router_py.kernel.kube_proxy import Step
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 5.0
_TELL_AGAIN_S = 60.0
_PEACEFUL = ("iptables", "nftables")
_REMEDY = (
    "remove kube-proxy from this node: kubectl -n kube-system delete daemonset kube-proxy (k3s, "
    "RKE2: --disable-kube-proxy)"
)


def left_behind(backend: str = "auto") -> Iterator[Step]:
    """What keeps packets from the agent's rules, of kube-proxy and of kube-router; ``backend`` is
    the variant of iptables that the agent uses (--iptables-backend)."""
    yield from kube_proxy.leftovers(everything=False)
    yield from kube_router.leftovers(variant_of(backend))


class Takeover:
    """A ``Follower``, and what the loop asks before it begins. In the loop's thread.

    ``running_mode`` and ``steps`` are those of ``kernel.kube_proxy``.
    """

    def __init__(
        self,
        node_name: str,
        running_mode: Callable[[], str | None] = kube_proxy.running_mode,
        steps: Callable[[], Iterable[Step]] = left_behind,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node_name = node_name
        self._running_mode, self._steps, self._clock = running_mode, steps, clock
        # Whether what does the work of those that go stands: set by who wires it all.
        self.is_settled: Callable[[], bool] = lambda: True
        self._mode: str | None = None
        self._looked_at = self._told_at = float("-inf")
        self._may_program = self._is_done = False

    def may_program(self) -> bool:
        """Whether writing to IPVS makes sense. Looks every few seconds at most; once it does, a
        kube-proxy that comes later is for ``follow`` to tell of."""
        if self._may_program:
            return True
        self._look()
        if self._mode is None or self._mode in _PEACEFUL:
            self._may_program = True
            return True
        if self._clock() - self._told_at >= _TELL_AGAIN_S:
            self._told_at = self._clock()
            _log.error(
                "kube-proxy runs on this node and would delete what the agent makes, nothing is "
                "programmed until it is gone mode=%s remedy=%r",
                self._mode,
                _REMEDY,
            )
        return False

    def begin(self) -> None:
        """Nothing to prepare."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """Everything is programmed: nothing of what others left is needed any more."""
        del desired, node, changes
        if full:
            self._look()
            if self._mode is not None:
                self._is_done = False
            elif not self._is_done and self.is_settled():
                self._is_done = self._remove()
        if self._mode is None:
            return ()
        does = (
            "its rules come before the agent's own"
            if self._mode in _PEACEFUL
            else "it deletes what the agent makes"
        )
        reason = f"kube-proxy runs in mode {self._mode}, {does}; {_REMEDY}"
        return (Problem(f"Node {self._node_name}", "", reason),)

    def _look(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now_s
            self._mode = self._running_mode()

    def _remove(self) -> bool:
        complete = True
        try:
            for what, remove in self._steps():
                try:
                    remove()
                    _log.info("removed what was left behind what=%r", what)
                except KubeRouterError as error:
                    complete = False
                    _log.warning("left behind and not removed what=%r reason=%r", what, str(error))
        except KubeRouterError as error:
            _log.warning("cannot see what was left behind reason=%r", str(error))
            complete = False
        return complete
