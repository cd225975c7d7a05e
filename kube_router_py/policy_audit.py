"""Audit mode of NetworkPolicies: what the annotation asks for. Pure.

On a policy it decides for that policy; on a Namespace for all policies in it that do not decide for
themselves. An audited policy refuses nothing; what it would refuse is logged and counted. What it
admits counts beside policies that are enforced.
"""

from kube_router_py.cluster.objects import ObjectMeta
from kube_router_py.problem import Problem
from kube_router_py.texts import annotation_field, shown

AUDIT_ANNOTATION = "kube-router.io/audit"

_VALUES = {"true": True, "false": False}


def asked_audit(meta: ObjectMeta) -> bool | None:
    """Whether to audit; None where the object does not say. Any other text enforces: who mistypes
    a switch that opens something has not opened it."""
    text = meta.annotation(AUDIT_ANNOTATION)
    return None if text is None else _VALUES.get(text, False)


def mistyped_audit(subject: str, meta: ObjectMeta) -> tuple[Problem, ...]:
    """The Problem of an annotation that is neither ``true`` nor ``false``; ``subject`` is the
    object as a Problem names it."""
    text = meta.annotation(AUDIT_ANNOTATION)
    if text is None or text in _VALUES:
        return ()
    reason = (
        f"{shown(text)} is neither 'true' nor 'false', policies are enforced; write one of them"
    )
    return (Problem(subject, annotation_field(AUDIT_ANNOTATION), reason),)
