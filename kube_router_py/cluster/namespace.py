"""The namespace in which the agents keep what is theirs: Leases, Secrets, a ConfigMap."""

from collections.abc import Mapping

_DEFAULT = "kube-system"


def own_namespace(environ: Mapping[str, str]) -> str:
    """That of the agent's Pod, which ``POD_NAMESPACE`` names, else kube-system."""
    return environ.get("POD_NAMESPACE", "").strip() or _DEFAULT
