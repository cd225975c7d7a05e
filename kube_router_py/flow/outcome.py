"""What a flow comes to, from its paths, in one sentence. Pure."""

from collections import Counter
from collections.abc import Sequence

from kube_router_py.flow.model import Backend, Outcome, OutReason, Path

_WORDS: dict[OutReason, str] = {
    "not-ready": "not ready",
    "terminating": "terminating",
    "traffic-policy": "on other nodes (policy Local)",
    "hints": "meant for others (topology hints)",
    "weight": "of weight 0",
    "dsr": "not reached by direct server return",
    "family": "of the other address family",
    "unusable": "unusable",
}


def outcome_of_path(path: Path, what: str) -> tuple[Outcome, str]:
    """Of a flow that no Service is concerned with; ``what`` leads to it in words."""
    if not path.allowed:
        return "denied", path.reasons[0]
    if path.route.kind == "none":
        return "unreachable", path.route.why
    return "allowed", f"the policies allow {what}"


def outcome_of_backends(backends: Sequence[Backend], key: str) -> tuple[Outcome, str]:
    """Of a flow to a Service, whose backends that are in have their paths."""
    paths = [each.path for each in backends if each.path is not None]
    if not paths:
        return "unreachable", _nobody(backends, key)
    good = [each for each in paths if each.allowed and each.route.kind != "none"]
    denied = [each for each in paths if not each.allowed]
    if len(good) == len(paths):
        return "allowed", f"{_count(len(paths), 'backend')} of Service {key} can be reached"
    bad = [each for each in paths if each not in good]
    reason = denied[0].reasons[0] if denied else bad[0].route.why
    if good:
        number = f"{len(bad)} of {_count(len(paths), 'backend')} of Service {key}"
        return "partly", f"{number} cannot be reached: {reason}"
    return ("denied" if denied else "unreachable"), reason


def _nobody(backends: Sequence[Backend], key: str) -> str:
    if not backends:
        return f"Service {key} has no endpoint for this port"
    counts = Counter(_WORDS[each.out] for each in backends if each.out)
    listed = ", ".join(f"{number} {words}" for words, number in counts.items())
    return f"no endpoint of Service {key} takes new connections: {listed}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
