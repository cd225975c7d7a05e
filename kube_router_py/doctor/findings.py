"""Finding: one thing that is wrong with a node, and what to do about it. Pure."""

from collections.abc import Iterable, Iterator

from msgspec import Struct, structs

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

# What each code is called, for ever, and how bad it mostly is. docs/doctor.md says what they mean.
CODES = {
    # what doctor itself could not do
    "could-not-look": WARNING,
    "wrong-network-namespace": ERROR,
    # the agent
    "agent-not-running": WARNING,
    "agent-silent": ERROR,
    "agent-not-ready": ERROR,
    "agent-behind": WARNING,
    "agent-problem": WARNING,
    "agent-flags-differ": NOTE,
    "agent-version-differs": NOTE,
    "file-descriptors-short": WARNING,
    # the kernel and the programs
    "capability-missing": ERROR,
    "program-missing": ERROR,
    "kernel-module-missing": ERROR,
    "sysctl-wrong": WARNING,
    "sysctl-read-only": ERROR,
    "conntrack-small": WARNING,
    "conntrack-full": ERROR,
    # rules and sets
    "iptables-unusable": ERROR,
    "iptables-variant-mismatch": ERROR,
    "own-chains-in-both-variants": WARNING,
    "own-jump-missing": ERROR,
    "own-jump-not-first": WARNING,
    "own-set-missing": ERROR,
    "foreign-drop": WARNING,
    "policy-drop": WARNING,
    "xtables-lock-private": WARNING,
    # who else is, or was, here
    "kube-proxy-running": ERROR,
    "kube-proxy-leftovers": WARNING,
    "kube-router-leftovers": WARNING,
    "other-cni": WARNING,
    "other-policy-engine": WARNING,
    # BGP
    "frr-missing": ERROR,
    "frr-unsupported": ERROR,
    "frr-not-running": ERROR,
    "bgp-second-daemon": ERROR,
    "bgp-session-down": WARNING,
    "bgp-password-wrong": ERROR,
    # the pod network
    "mtu-too-large": WARNING,
    "path-mtu-small": WARNING,
    "cni-missing": ERROR,
    "cni-invalid": ERROR,
    "cni-stale": ERROR,
    "cni-shadowed": ERROR,
    "cni-plugin-missing": ERROR,
    # the cluster
    "api-not-configured": ERROR,
    "api-unreachable": ERROR,
    "api-unauthorized": ERROR,
    "api-through-cluster-ip": ERROR,
    "clock-skew": WARNING,
    "rbac-missing": ERROR,
    "node-missing": ERROR,
    "pod-cidr-missing": ERROR,
    "service-range-wrong": ERROR,
    "external-ip-refused": WARNING,
    "lb-ip-refused": WARNING,
    "pool-full": WARNING,
}


# Under --preflight only these are errors: the agent ends by itself, or is given up, and would do so
# again. All else it tells, retries or waits for, while the node serves what it served before.
PREFLIGHT_ERRORS = frozenset(
    (
        *("api-not-configured", "api-through-cluster-ip", "capability-missing"),
        *("iptables-unusable", "kernel-module-missing", "program-missing"),
    )
)
# Of the modules without which the agent cannot do all of its work, the one without which it ends.
_ENDS_WITHOUT = "module ip_vs"


class Finding(Struct, frozen=True, order=True):
    """``object`` is what is wrong (``"sysctl net/ipv4/ip_forward"``, ``"Service default/web"``),
    ``what`` a sentence about it, ``remedy`` what to do. ``severity`` is one of SEVERITIES."""

    code: str
    object: str
    what: str
    remedy: str
    severity: str


def found(code: str, object: str, what: str, remedy: str, severity: str = "") -> Finding:
    """A finding; how bad it is its code says, unless told otherwise."""
    return Finding(code, object, what, remedy, severity or CODES[code])


def before_start(findings: Iterable[Finding]) -> Iterator[Finding]:
    """As --preflight tells them: an init container that fails keeps the agent from starting."""
    for each in findings:
        ends = each.code in PREFLIGHT_ERRORS and (
            each.code != "kernel-module-missing" or each.object == _ENDS_WITHOUT
        )
        if each.severity == ERROR and not ends:
            each = structs.replace(each, severity=WARNING)
        yield each


def by_weight(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each once, what is worst first."""
    return tuple(sorted(set(findings), key=lambda each: (SEVERITIES.index(each.severity), each)))


def is_bad(findings: Iterable[Finding]) -> bool:
    """Whether any is an error."""
    return any(each.severity == ERROR for each in findings)
