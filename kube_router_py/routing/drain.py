"""Drain a node of Services: who asks for it, and what is done when. Pure: time is an argument.

First everything is announced with the graceful-shutdown community (RFC 8326), so that routers move
on to other nodes while this one still serves; then Services are withdrawn. Routes to Pods and all
sessions stay: the Pods that are left, and the node itself, go on being reached. When nobody asks
any more, everything is announced as before at once.
"""

from enum import StrEnum

from msgspec import Struct

from kube_router_py.cluster.objects import Node
from kube_router_py.node_drain import DRAIN_ANNOTATION, node_drain_cause
from kube_router_py.problem import Problem
from kube_router_py.routing.settings import RoutingSettings

__all__ = ["DRAIN_ANNOTATION", "Stage", "Step", "drain_cause", "drain_stage", "drain_steps"]


class Stage(StrEnum):
    """How far the draining of this node is."""

    SERVING = "serving"
    MARKED = "marked"
    WITHDRAWN = "withdrawn"


class Step(Struct, frozen=True):
    """A stage, and how long after the first request for draining it begins (s)."""

    after_s: float
    stage: Stage


def drain_steps(settings: RoutingSettings) -> tuple[Step, ...]:
    """What is done to drain this node, in order."""
    return Step(0.0, Stage.MARKED), Step(settings.drain_delay_s, Stage.WITHDRAWN)


def drain_stage(elapsed_s: float | None, settings: RoutingSettings) -> tuple[Stage, float | None]:
    """The stage ``elapsed_s`` after the first request, and in how many seconds the next one begins.

    None as the time: nobody asks. None as the seconds: no stage comes after this one by itself.
    """
    if elapsed_s is None:
        return Stage.SERVING, None
    stage = Stage.SERVING
    for step in drain_steps(settings):
        if elapsed_s < step.after_s:
            return stage, step.after_s - elapsed_s
        stage = step.stage
    return stage, None


def drain_cause(
    node: Node | None,
    settings: RoutingSettings,
    *,
    is_exiting: bool = False,
) -> tuple[str, tuple[Problem, ...]]:
    """Why this node is to drain, for the log, or ``""``; and what is wrong with its annotation.

    ``is_exiting``: the agent was told to stop, which without ``--withdraw-on-exit`` means that it
    comes back.
    """
    cause = ""
    problems: tuple[Problem, ...] = ()
    if node is not None:
        cause, problems = node_drain_cause(node, on_cordon=settings.drain_on_cordon)
    if not cause and is_exiting and settings.withdraw_on_exit:
        cause = "the agent stops (--withdraw-on-exit)"
    return cause, problems
