"""Kernel modules that the agent needs, looked for before the first write."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_TIMEOUT_S = 20.0

# Module: what cannot be had without it; of the service proxy and of the firewall.
PROXY = {
    "ip_vs": "any Service",
    "ip_vs_rr": "any Service",
    "nf_conntrack": "source NAT",
    "xt_ipvs": "source NAT",
    "xt_set": "the service firewall, source ranges and traffic policies",
    "ip_set_hash_ip": "the service firewall",
    "ip_set_hash_ipport": "the service firewall",
    "ip_set_hash_ipportip": "hairpin connections",
    "ip_set_hash_ipportnet": "source ranges",
    "ip_set_hash_net": "source NAT",
    "dummy": "service addresses",
}
FIREWALL = {
    "nf_conntrack": "policies",
    "nf_conntrack_netlink": "addresses that go from one pod to the next",
    "xt_set": "policies",
    "xt_conntrack": "policies",
    "ip_set_hash_ip": "policies",
    "ip_set_hash_ipport": "named ports",
    "ip_set_hash_net": "ipBlocks",
    "ip_set_hash_netport": "Services and policies",
    "br_netfilter": "policies between pods on one bridge",
}
_NEEDED = {**FIREWALL, **PROXY}


def missing_modules(
    names: Iterable[str], release: str | None = None, root: Path = Path("/")
) -> tuple[str, ...]:
    """Those modules that are neither loaded nor built in nor loadable here; loads what it can.

    A kernel that does not tell what is built into it (no modules.builtin) is believed to have all.
    """
    directory = root / "lib/modules" / (release or os.uname().release)
    try:
        built_in = (directory / "modules.builtin").read_text()
    except OSError:
        return ()
    return tuple(
        name
        for name in names
        if not (root / "sys/module" / name).exists()
        and f"/{name}.ko" not in built_in
        and not _load(name)
    )


def _load(name: str) -> bool:
    if shutil.which("modprobe") is None:
        return False
    command = ["modprobe", "--quiet", name]
    try:
        return subprocess.run(command, timeout=_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def advice(missing: Iterable[str]) -> str:
    """What to do about missing modules, on one line."""
    names = sorted(missing)
    uses = sorted({_NEEDED.get(name, name) for name in names})
    return (
        f"kernel modules missing: {' '.join(names)} (needed for {'; '.join(uses)}); load them on "
        f"the host (modprobe -a {' '.join(names)}), mount its /lib/modules into the container, or "
        "install the package with the distribution's extra modules (linux-modules-extra-*, "
        "kernel-modules-extra)"
    )
