"""Looking at iptables, ipsets and what others left in them; judged in ``rules``, ``leftovers``."""

import time
from collections.abc import Iterable

from kube_router_py.doctor import facts_host, leftovers, nft, rules
from kube_router_py.doctor.findings import WARNING, Finding, found
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.network import Link
from kube_router_py.doctor.place import Place
from kube_router_py.doctor.rules import Table
from kube_router_py.errors import KernelError, KubeRouterError, PreflightError
from kube_router_py.kernel import kube_proxy, kube_router
from kube_router_py.kernel.iptables_variant import (
    NO_NFT,
    check_masks,
    is_legacy,
    legacy_tables,
    variant_of,
)
from kube_router_py.options import Options

_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
# What the agent puts right by itself within moments is not told.
_MOMENTS_S = 3.0


def look_at_rules(look: Look, place: Place, links: Iterable[Link], *, is_preflight: bool) -> None:
    """The variants of iptables, whose rules come first, what is missing of ours, who else is
    here."""
    options = place.options
    families = ["inet"] * options.enable_ipv4 + ["inet6"] * options.enable_ipv6
    in_use = _variant(look, options, is_preflight=is_preflight)
    if in_use is None:
        return
    unused = "nft" if in_use == "legacy" else "legacy"
    used = look.at(f"iptables-{in_use}", lambda: _tables(in_use, families))
    if used is None:
        return
    other = look.at(f"iptables-{unused}", lambda: _unused_tables(unused, families)) or ()
    read = {in_use: used, unused: other}
    look.tell(
        rules.variants(
            {name: _count(tables, own=True) for name, tables in read.items()},
            {name: _count(tables, own=False) for name, tables in read.items()},
            in_use,
        )
    )
    mode = look.at("kube-proxy", kube_proxy.running_mode)
    _look_at_others(look, place, mode, [*used, *other], links)
    if options.run_firewall or options.run_service_proxy:
        look.tell(rules.foreign_drops((*used, *other)))
        for listed in look.at("nftables", facts_host.foreign_nft) or ():
            look.tell(nft.drops(listed))
        if not is_preflight and place.is_running:
            look.tell(rules.policies(used))
    if not is_preflight and place.is_running and _programs_now(mode):
        look.tell(_own(look, in_use, families, options, used))
    if in_use == "legacy" and look.at(
        "mounts", lambda: facts_host.lacks_own_lock(place.pid, place.environ)
    ):
        look.tell(
            [
                found(
                    "xtables-lock-private",
                    "/run/xtables.lock",
                    "the container has a lock file of its own: other programs that write rules on "
                    "this node do not wait for the agent, nor it for them",
                    "mount the node's /run/xtables.lock into the container, as the manifests do",
                )
            ]
        )


def _programs_now(mode: str | None) -> bool:
    """Beside kube-proxy in mode ipvs the agent waits."""
    return mode is None or mode in ("iptables", "nftables")


def _variant(look: Look, options: Options, *, is_preflight: bool) -> str | None:
    """``nft`` or ``legacy``, whichever the agent uses."""
    try:
        variant = variant_of(options.iptables_backend)
        legacy = is_legacy(variant)
        if options.run_firewall:
            check_masks(variant)
    except KubeRouterError as error:
        what, _, remedy = str(error).partition("; ")
        remedy = remedy or "install iptables 1.8 or newer, or correct --iptables-backend"
        # Where it takes too long to answer the agent tries again; what it cannot do stays so.
        is_passing = is_preflight and not isinstance(error, PreflightError)
        weight = WARNING if is_passing else ""
        look.tell([found("iptables-unusable", "program iptables", what, remedy, weight)])
        return None
    return "legacy" if legacy else "nft"


def _tables(variant: str, families: Iterable[str]) -> tuple[Table, ...]:
    """``variant``: nft or legacy."""
    families = tuple(families)
    if variant == "legacy" and not any(legacy_tables(family) for family in families):
        return ()
    return facts_host.tables(f"iptables-{variant}", families)


def _unused_tables(variant: str, families: Iterable[str]) -> tuple[Table, ...]:
    try:
        return _tables(variant, families)
    except KernelError as error:
        if NO_NFT in str(error):
            return ()  # a kernel without nf_tables has no rules in it
        raise


def _count(tables: Iterable[Table], *, own: bool) -> int:
    return sum(
        rules.is_own_chain(chain) if own else chain in _HINTS
        for table in tables
        for chain in table.chains
    )


def _own(
    look: Look, in_use: str, families: list[str], options: Options, used: Iterable[Table]
) -> Iterable[Finding]:
    """A second look decides, where the first one finds something."""
    findings = _own_now(look, families, options, used)
    if not findings:
        return ()
    time.sleep(_MOMENTS_S)
    again = look.at(f"iptables-{in_use}", lambda: _tables(in_use, families))
    return findings if again is None else _own_now(look, families, options, again)


def _own_now(
    look: Look, families: list[str], options: Options, used: Iterable[Table]
) -> list[Finding]:
    names = look.at("ipsets", facts_host.set_names)
    missing = list(rules.own_sets(names, options)) if names is not None else []
    return [*rules.own_jumps(used, options, families), *missing]


def _look_at_others(
    look: Look, place: Place, mode: str | None, tables: list[Table], links: Iterable[Link]
) -> None:
    options = place.options
    left: list[str] = []
    if options.run_service_proxy and mode is None:
        steps = look.at(
            "what kube-proxy left",
            lambda: [what for what, _ in kube_proxy.leftovers(everything=False)],
        )
        left = steps or []
    look.tell(leftovers.kube_proxy(mode, left, options))
    variant = look.at("iptables", lambda: variant_of(options.iptables_backend))
    if variant is not None:
        theirs: list[str] = []
        if options.run_service_proxy:
            theirs += (
                look.at(
                    "what kube-router left",
                    lambda: [what for what, _ in kube_router.leftovers(variant)],
                )
                or ()
            )
        if options.run_router:
            theirs += (
                look.at(
                    "what kube-router left",
                    lambda: [what for what, _ in kube_router.leftovers_of_router(variant)],
                )
                or ()
            )
        look.tell(leftovers.kube_router(theirs))
    chains = [chain for table in tables for chain in table.chains]
    look.tell(leftovers.other_cni([link.name for link in links], chains, options))
