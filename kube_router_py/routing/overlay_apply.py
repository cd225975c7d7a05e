"""The order in which the overlay changes: nothing goes that is needed before its successor stands.

Devices first, then the routes that lead into them, then the devices that nothing leads into any
more. What fails for one stops no other: a device into which a route still leads, because it could
not be moved, stays until it can.
"""

from kube_router_py.kernel.overlay_ports import Overlay, OverlayFailure, OverlayPorts
from kube_router_py.problem import Problem


def apply_overlay(ports: OverlayPorts, desired: Overlay, node_name: str) -> tuple[Problem, ...]:
    """Bring tunnels, routes and rules to what is desired; what could not be is told.

    Raises KernelError where the kernel could not be asked at all.
    """
    failures = ports.links.put(desired.tunnels, desired.neighbours)
    failures += ports.routes.apply(desired.routes, desired.rules)
    keep = {*desired.tunnels}
    if failures:
        keep |= {each.link for each in ports.routes.read()[0]}
    failures += ports.links.prune(keep)
    return tuple(sorted({_problem(each, node_name) for each in failures}))


def remove_overlay(ports: OverlayPorts, node_name: str) -> tuple[Problem, ...]:
    """Remove all that is ours, and nothing of a kube-router that runs here (cleanup)."""
    failures = ports.routes.apply((), ())
    failures += ports.links.remove_own()
    return tuple(sorted({_problem(each, node_name) for each in failures}))


def _problem(failure: OverlayFailure, node_name: str) -> Problem:
    return Problem(f"Node {node_name}", failure.subject, failure.message)
