"""Both ends' policies of one way, where source NAT comes between them. Pure.

The client's node judges what the client sends, before source NAT. The backend's node judges what
arrives: on the node that rewrites the source that is the source as it was, since rewriting comes
last, and on another one the source as it is by then.
"""

from msgspec import Struct, structs

from kube_router_py.firewall.evaluate import Evaluator, Flow, Side, Verdict


class Judged(Struct, frozen=True):
    """``reasons`` as of ``Verdict``."""

    allowed: bool
    egress: Side
    ingress: Side
    reasons: tuple[str, ...]


class Egress(Struct, frozen=True):
    """What becomes of the egress of an isolated (or audited) pod, whatever rules its policies have,
    and why."""

    allowed: bool
    why: str


def judge(evaluator: Evaluator, sent: Flow, arriving: Flow, egress: Egress | None = None) -> Judged:
    """The verdict of a way that begins as ``sent`` and arrives as ``arriving``; ``egress``: what is
    so in place of the client's verdict. Raises FlowError."""
    first = evaluator.evaluate(sent)
    if egress is not None and first.egress.policies:
        first = _instead(first, sent.source, egress)
    elif sent == arriving:
        return Judged(first.allowed, first.egress, first.ingress, first.reasons)
    last = evaluator.evaluate(arriving)
    allowed = first.egress.allowed and last.ingress.allowed
    parts: list[str] = []
    if allowed or not first.egress.allowed:
        parts += _reasons(first, "egress of ")
    if allowed or not last.ingress.allowed:
        parts += _reasons(last, "ingress of ")
    return Judged(allowed, first.egress, last.ingress, tuple(dict.fromkeys(parts)))


def _instead(verdict: Verdict, source: str, egress: Egress) -> Verdict:
    side = verdict.egress
    # One that is but audited gets through.
    is_let_be = not egress.allowed and not side.isolated
    side = structs.replace(
        side,
        allowed=egress.allowed or is_let_be,
        decided_by=None,
        would_refuse=is_let_be,
    )
    more = ", it would be refused" if is_let_be else ""
    reason = f"egress of {source}: {_held_by(side)}, {egress.why}{more}"
    return structs.replace(verdict, egress=side, reasons=(reason,))


def _reasons(verdict: Verdict, side: str) -> list[str]:
    """What a verdict says of one direction; where the other one denied, it says no more than
    whether this one is isolated."""
    found = [each for each in verdict.reasons if each.startswith(side)]
    if found:
        return found
    judged = verdict.egress if side.startswith("egress") else verdict.ingress
    colon = ":" if judged.policies else " is"
    return [f"{side}the pod{colon} {held(judged)}"]


def held(side: Side) -> str:
    """What policies make of one direction that they let pass, where no reason tells it: ``isolated
    by ...``, ``audited by ...``. Which of several are but audited is told by reasons alone."""
    if not side.policies:
        return "not isolated"
    by = _held_by(side)
    if side.would_refuse:
        return f"{by}, none admits it, it would be refused"
    if side.decided_by is not None:
        return f"{by}, rule {side.decided_by.rule} of {side.decided_by.policy} admits"
    return f"{by}, but exempt" if side.allowed else by


def _held_by(side: Side) -> str:
    return f"{'isolated' if side.isolated else 'audited'} by {', '.join(side.policies)}"
