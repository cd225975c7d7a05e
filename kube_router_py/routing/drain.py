"""Drain a node of Services: who asks for it, and what is done when. Pure: time is an argument.

First everything is announced with the graceful-shutdown community (RFC 8326), so that routers move
on to other nodes while this one still serves; then Services are withdrawn. Routes to Pods and all
sessions stay: the Pods that are left, and the node itself, go on being reached. When nobody asks
any more, everything is announced as before at once.
"""

from enum import StrEnum

from msgspec import Struct

from kube_router_py.cluster.objects import Node
from kube_router_py.problem import Problem
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import annotation_field, parse_boolean, shown

DRAIN_ANNOTATION = "kube-router.io/drain"
# What the kubelet says in the condition Ready from the first moment of a graceful node shutdown
# (KEP-2000, pkg/kubelet/nodeshutdown); nothing else tells it from a node that is merely unwell.
_SHUTDOWN = "node is shutting down"


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
    cause, problems = _asked_by(node, settings) if node is not None else ("", ())
    if not cause and node is not None and _is_shutting_down(node):
        cause = "the node shuts down"
    if not cause and is_exiting and settings.withdraw_on_exit:
        cause = "the agent stops (--withdraw-on-exit)"
    return cause, problems


def _is_shutting_down(node: Node) -> bool:
    conditions = (node.status.conditions if node.status else None) or ()
    return any(
        each.type == "Ready" and each.status != "True" and _SHUTDOWN in each.message
        for each in conditions
    )


def _asked_by(node: Node, settings: RoutingSettings) -> tuple[str, tuple[Problem, ...]]:
    problems: tuple[Problem, ...] = ()
    text = node.metadata.annotation(DRAIN_ANNOTATION)
    is_asked = parse_boolean(text.strip()) if text is not None else False
    if is_asked:
        return f"annotation {DRAIN_ANNOTATION}", ()
    if is_asked is None and text is not None:
        reason = f"{shown(text)} is neither true nor false; it counts as false"
        field = annotation_field(DRAIN_ANNOTATION)
        problems = (Problem(f"Node {node.metadata.name}", field, reason),)
    if node.spec.unschedulable and settings.drain_on_cordon:
        return "the node is cordoned (--drain-on-cordon)", problems
    return "", problems
