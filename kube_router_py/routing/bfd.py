"""BFD within what FRR does (RFC 5880): its port is fixed, and its parameters have limits. Pure."""

from kube_router_py.problem import Problem
from kube_router_py.routing.model import Bfd
from kube_router_py.routing.settings import RoutingSettings

PORT = 3784
# As bfdd of FRR 8.4 takes them: packets, milliseconds.
MULTIPLIERS = (2, 255)
INTERVALS_MS = (10, 60000)


def possible_bfd(
    multiplier: int, receive_ms: int, transmit_ms: int, names: tuple[str, str, str]
) -> tuple[Bfd, list[tuple[str, str]]]:
    """What comes nearest to these parameters, and (name, reason) of each that had to be changed."""
    given = (multiplier, receive_ms, transmit_ms)
    limits = (MULTIPLIERS, INTERVALS_MS, INTERVALS_MS)
    taken = [max(low, min(high, n)) for n, (low, high) in zip(given, limits, strict=True)]
    changed = [
        (name, f"{asked} is not possible with FRR, {used} is used; choose from {low} to {high}")
        for name, asked, used, (low, high) in zip(names, given, taken, limits, strict=True)
        if asked != used
    ]
    return Bfd(taken[0], taken[1], taken[2]), changed


def port_reason(port: int) -> str:
    """What is wrong with a port of BFD, or ``""``."""
    if port == PORT:
        return ""
    return f"{port} is not possible with FRR, {PORT} is used; leave the port out"


def flag_bfd(settings: RoutingSettings) -> tuple[Bfd, list[Problem]]:
    """BFD as the flags want it, as far as FRR can do it."""
    bfd, changed = possible_bfd(
        settings.bfd.detection_multiplier,
        settings.bfd.receive_interval_ms,
        settings.bfd.transmit_interval_ms,
        ("detection-multiplier", "required-min-rx-interval", "desired-min-tx-interval"),
    )
    if reason := port_reason(settings.bfd_port):
        changed.append(("port", reason))
    return bfd, [Problem(f"Flag --bfd-{name}", "", reason) for name, reason in changed]
