"""Who asks for a node to be drained of Services. Pure.

Shared by the parts that announce addresses, so that all of them leave a node for the same reasons.
"""

from kube_router_py.cluster.objects import Node
from kube_router_py.problem import Problem
from kube_router_py.texts import annotation_field, parse_boolean, shown

DRAIN_ANNOTATION = "kube-router.io/drain"
# What the kubelet says in the condition Ready from the first moment of a graceful node shutdown
# (KEP-2000, pkg/kubelet/nodeshutdown); nothing else tells it from a node that is merely unwell.
_SHUTDOWN = "node is shutting down"


def node_drain_cause(node: Node, *, on_cordon: bool) -> tuple[str, tuple[Problem, ...]]:
    """Why a node is to be drained, for the log, or ``""``; and what is wrong with its annotation.

    ``on_cordon``: --drain-on-cordon.
    """
    cause, problems = _asked_by(node, on_cordon=on_cordon)
    if not cause and _is_shutting_down(node):
        cause = "the node shuts down"
    return cause, problems


def _is_shutting_down(node: Node) -> bool:
    conditions = (node.status.conditions if node.status else None) or ()
    return any(
        each.type == "Ready" and each.status != "True" and _SHUTDOWN in each.message
        for each in conditions
    )


def _asked_by(node: Node, *, on_cordon: bool) -> tuple[str, tuple[Problem, ...]]:
    problems: tuple[Problem, ...] = ()
    text = node.metadata.annotation(DRAIN_ANNOTATION)
    is_asked = parse_boolean(text.strip()) if text is not None else False
    if is_asked:
        return f"annotation {DRAIN_ANNOTATION}", ()
    if is_asked is None and text is not None:
        reason = f"{shown(text)} is neither true nor false; it counts as false"
        field = annotation_field(DRAIN_ANNOTATION)
        problems = (Problem(f"Node {node.metadata.name}", field, reason),)
    if node.spec.unschedulable and on_cordon:
        return "the node is cordoned (--drain-on-cordon)", problems
    return "", problems
