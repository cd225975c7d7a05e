"""Taking the pod network over from kube-router while packets flow.

Its tunnels are changed where they stand, and its routes into them replaced. What else it left does
no harm but one thing: it comes before ours. Its rule that masquerades what pods send goes once ours
stands; a route to the pods of another node, once that node has told us of them by BGP: zebra
installs its own at that moment.
"""

import logging
from collections.abc import Callable, Iterable

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.kube_proxy import Step
from kube_router_py.kernel.ports_frr import SessionState
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing.pod_network import PodNetwork

_log = logging.getLogger(__name__)


class RouterTakeover:
    """``steps``: what keeps packets from our rules, in words, and what removes it."""

    def __init__(self, steps: Callable[[], Iterable[Step]]) -> None:
        self._steps = steps
        self._are_rules_done = False

    def follow(self, network: PodNetwork, ports: RoutingPorts) -> None:
        """After a full turn that made everything stand. Nothing that goes wrong here is worse than
        that it stays: it is tried again after the next full turn."""
        for work in (self._remove_rules, lambda: _remove_routes(network, ports)):
            try:
                work()
            except KubeRouterError as error:
                _log.warning("left behind and not removed reason=%r", str(error))

    def _remove_rules(self) -> None:
        if self._are_rules_done:
            return
        for what, remove in self._steps():
            remove()
            _log.info("removed what was left behind what=%r", what)
        self._are_rules_done = True


def _remove_routes(network: PodNetwork, ports: RoutingPorts) -> None:
    neighbors = _speaking(ports.frr.summary().sessions)
    number = ports.overlay.routes.remove_left_by_kube_router(network.pods_behind(neighbors))
    if number:
        _log.info("removed what was left behind: routes of kube-router count=%d", number)


def _speaking(sessions: Iterable[SessionState]) -> frozenset[str]:
    """Neighbors that have told us of something."""
    return frozenset(each.neighbor for each in sessions if each.is_established and each.received)
