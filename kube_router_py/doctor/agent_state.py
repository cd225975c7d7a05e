"""What the agent of this node says of itself, as findings. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kube_router_py.doctor.findings import Finding, found

# Problems of the node as a whole that another finding tells of better: words in them, and codes.
_TOLD = (
    ("kube-proxy", "kube-proxy"),
    ("MTU", "mtu-"),
    ("bytes for packets of pods", "mtu-"),
    ("pod CIDR", "pod-cidr"),
    ("CNI", "cni-"),
    ("BGP", "bgp-"),
    ("BGP", "frr-"),
    ("bgpd", "bgp-"),
    ("bgpd", "frr-"),
    ("FRR", "frr-"),
    ("module", "kernel-module"),
    ("parameter", "sysctl-"),
    ("policies:", "own-"),
    ("policies:", "kernel-module"),
    ("Set cannot be", "own-set"),
    ("another program keeps putting", "own-jump"),
    ("another program keeps putting", "foreign-drop"),
    ("pool", "pool-full"),
    ("free", "pool-full"),
)


def state(status: Mapping[str, Any], version: str, others: Sequence[Finding]) -> Iterator[Finding]:
    """``status`` as the agent gives it; ``others`` is what was found already, which is not told a
    second time."""
    codes = {each.code for each in others}
    api_is_down = bool(codes & {"api-unreachable", "api-unauthorized", "rbac-missing"})
    if not status.get("ready") and not api_is_down and "node-missing" not in codes:
        yield found(
            "agent-not-ready",
            "agent",
            f"it is not ready: {status.get('reason') or 'it does not say why'}",
            "its log says more: journalctl -t kube-router-py, or kubectl logs",
        )
    if not api_is_down:
        for kind, cache in (status.get("behind") or {}).items():
            yield found(
                "agent-behind",
                f"list of {kind}",
                f"the agent does not hear of changes: {cache.get('failing')}",
                "look at the API server and at what the agent may read",
            )
    theirs = status.get("version")
    if theirs and theirs != version:
        text = f"the agent is of version {theirs}, doctor of {version}"
        yield found("agent-version-differs", "agent", text, "use the agent's own program")
    for problem in status.get("problems") or ():
        if not _is_told(problem, others):
            field = f" {problem['field']}" if problem.get("field") else ""
            yield found(
                "agent-problem",
                f"{problem.get('object')}{field}",
                str(problem.get("reason")),
                "as the agent says; kube-router-py status shows all of its Problems",
            )


def _is_told(problem: Mapping[str, Any], others: Iterable[Finding]) -> bool:
    subject, reason = str(problem.get("object")), str(problem.get("reason"))
    field = str(problem.get("field") or "")
    for each in others:
        if each.object == subject or (field and each.object.endswith(f" {field}")):
            return True
        if any(word in reason and each.code.startswith(code) for word, code in _TOLD):
            return True
    return False


def absent(reason: str, *, is_silent: bool) -> Finding:
    """``reason``: why it could not be asked, with the socket's path; ``is_silent``: one runs."""
    what = reason.partition("; ")[0]
    if is_silent:
        return found(
            "agent-silent",
            "agent",
            f"an agent runs here, but does not answer: {what}",
            "give --agent-socket as the agent has it, or restart the agent",
        )
    return found(
        "agent-not-running",
        "agent",
        what,
        "start it; before its first start look with --preflight",
    )


def differing(given: Mapping[str, str], agents: Mapping[str, str]) -> Iterator[Finding]:
    """Flags that doctor was given and that the agent has otherwise."""
    for name, text in sorted(given.items()):
        theirs = agents.get(name)
        if theirs is not None and theirs != text:
            yield found(
                "agent-flags-differ",
                f"Flag --{name}",
                f"doctor was given {text!r}, the agent runs with {theirs!r}, which counts",
                "give the agent's manifest the flag that is meant, or leave it out here",
            )
