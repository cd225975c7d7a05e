"""The two variants of iptables, nft and legacy, of which a node uses one.

Rules of the other variant stay in force beside it.
"""

import re
from pathlib import Path

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel.program import run

VARIANTS = ("iptables", "iptables-nft", "iptables-legacy")
BACKENDS = ("auto", "nft", "legacy")

NO_NFT = "Failed to initialize nft: Protocol not supported"
"""What iptables-nft-save says where the kernel has no nf_tables."""

_TIMEOUT_S = 30.0
_LEGACY_TABLES = {"inet": "ip_tables_names", "inet6": "ip6_tables_names"}

# Chains that the kubelet and kubeadm's tools create to show which variant the node uses.
_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")


def choose_variant(names_file: str = "/proc/thread-self/net/ip_tables_names") -> str:
    """The variant whose tables the kubelet wrote to, or else the node's default, ``iptables``.

    The legacy tables are looked at only where they exist: looking would create them.
    """
    candidates = ["iptables-nft"]
    if "mangle" in _names(names_file):
        candidates.append("iptables-legacy")
    for variant in candidates:
        try:
            saved = run([f"{variant}-save", "-t", "mangle"], timeout_s=_TIMEOUT_S)
        except KernelError:  # not installed
            continue
        if any(hint in saved.stdout for hint in _HINTS):
            return variant
    return "iptables"


def variant_of(backend: str) -> str:
    """The variant for a value of --iptables-backend, one of BACKENDS."""
    return choose_variant() if backend == "auto" else f"iptables-{backend}"


def is_legacy(variant: str) -> bool:
    """Whether a variant is the legacy one; ``iptables`` may be either. Raises KernelError."""
    if variant != "iptables":
        return variant == "iptables-legacy"
    version = run([variant, "--version"], timeout_s=_TIMEOUT_S)
    # "iptables v1.8.9 (nf_tables)"; before 1.8 there was but one variant, and no word for it.
    return re.search(r"\(nf_tables\)", version.stdout) is None


def program_name(variant: str, family: str) -> str:
    """The program of a variant for a family: ``ip6tables-nft`` for (iptables-nft, inet6)."""
    return variant if family == "inet" else variant.replace("iptables", "ip6tables", 1)


def legacy_tables(family: str) -> frozenset[str]:
    """The tables of the legacy variant that exist in this network namespace."""
    return _names(f"/proc/thread-self/net/{_LEGACY_TABLES[family]}")


def _names(file: str) -> frozenset[str]:
    try:
        return frozenset(Path(file).read_text().split())
    except OSError:  # the kernel has no legacy tables
        return frozenset()


def check_masks(variant: str) -> None:
    """Raise PreflightError where masks like 0.0.0.15, by which the firewall finds a pod's chain,
    do not work: in the nft variant of iptables 1.8.7 (the kernel refuses what it makes of them)."""
    version = run([variant, "--version"], timeout_s=_TIMEOUT_S).stdout
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)\S* \(nf_tables\)", version)
    if found and tuple(map(int, found.groups())) == (1, 8, 7):
        raise PreflightError(
            f"{version.strip()} cannot match masks like 0.0.0.15; install iptables 1.8.8 or newer, "
            "or set --iptables-backend=legacy"
        )
