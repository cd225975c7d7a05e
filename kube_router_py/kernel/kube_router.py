"""What kube-router left that leads packets past the agent, and how it is removed.

Chains and sets of kube-router's service proxy that have the names of ours are taken over where they
stand, addresses on kube-dummy-if as well. What has no name of ours is found here: rules in built-in
chains, and the policy routing of its direct server return. Its tunnels and routes: see
``overlay_links`` and ``overlay_routes``.

kube-router marks packets to a service address with a mark of the whole 32 bits, and has a rule
"all packets with this mark, table 78": only marks of such rules are taken for kube-router's. What
is its router's (table 77) stays until our route controller runs, and the rules of its firewall
(KUBE-ROUTER-INPUT, KUBE-POD-FW-, KUBE-NWPLCY-) stay: they do the work of parts that may go on
running.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

from kube_router_py.errors import KernelError
from kube_router_py.kernel.iptables import program_name
from kube_router_py.kernel.policy_routing import TABLE
from kube_router_py.kernel.program import run
from kube_router_py.kernel.rule_text import canonical, parse_table, target
from kube_router_py.kernel.rule_text import words as split
from kube_router_py.kernel.vip_messages import OWN_PROTOCOL

Step = tuple[str, Callable[[], None]]
Chains = Mapping[str, tuple[str, ...]]

_TIMEOUT_S = 30.0
_EXTERNAL_TABLE, _EXTERNAL_PRIORITY = 79, "32765"
_BOOT, _LOCAL = "3", "2"  # RTPROT_BOOT, which ip(8) leaves out; RTN_LOCAL
_FAMILIES = {"inet": "-4", "inet6": "-6"}


def source_nat(chains: Chains) -> dict[str, tuple[str, ...]]:
    """The rules in nat POSTROUTING by which kube-router rewrote sources itself: SNAT of what IPVS
    masquerades. Ours does so in chains of its own."""
    found = tuple(
        rule
        for rule in chains.get("POSTROUTING", ())
        if target(canonical(rule)) == "SNAT" and "-m ipvs" in rule and "--vmethod MASQ" in rule
    )
    return {"POSTROUTING": found} if found else {}


def direct_return(chains: Chains, marks: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """The rules in mangle that give one of these marks, and those that clamp the MSS of replies
    from the same service addresses; by chain."""
    wanted = set(marks)
    marking = {
        chain: [rule for rule in chains.get(chain, ()) if _mark_of(rule) in wanted]
        for chain in ("PREROUTING", "OUTPUT")
    }
    addresses = {_after(rule, "-d") for rules in marking.values() for rule in rules} - {""}
    clamping = [
        rule
        for rule in chains.get("PREROUTING", ())
        if _after(rule, "-j") == "TCPMSS"
        and _after(rule, "-s") in addresses
        and _after(rule, "-i") == "kube-bridge"
    ]
    marking["PREROUTING"] += clamping
    return {chain: tuple(rules) for chain, rules in marking.items() if rules}


def pod_egress(chains: Chains) -> dict[str, tuple[str, ...]]:
    """The rules in nat POSTROUTING by which kube-router masquerades what pods send out of the
    cluster. Ours does so in a chain of its own."""
    found = tuple(
        rule
        for rule in chains.get("POSTROUTING", ())
        if "-j MASQUERADE" in rule
        and "--match-set kube-router-pod-subnets src" in rule.replace("inet6:", "")
        and "! --match-set kube-router-node-ips dst" in rule.replace("inet6:", "")
    )
    return {"POSTROUTING": found} if found else {}


def _mark_of(rule: str) -> int | None:
    """The mark that a rule for one address writes over all 32 bits; None for other rules."""
    if _after(rule, "-j") != "MARK" or not _after(rule, "-d") or not _after(rule, "--dport"):
        return None
    value, _, mask = _after(rule, "--set-xmark").partition("/")
    return int(value, 16) if value and mask == "0xffffffff" else None


def _after(rule: str, option: str) -> str:
    tokens = split(rule)
    for name, value in pairwise(tokens):
        if name == option:
            return value
    return ""


def leftovers(variant: str) -> Iterator[Step]:
    """What kube-router left in this network namespace: in words, and how it is removed; in the
    order in which traffic suffers nothing, provided that its Services are served already.

    ``variant`` of iptables is the node's. Raises KernelError where it cannot be seen.
    """
    for family in _FAMILIES:
        yield from _rules(variant, family, "nat", "source NAT", source_nat)
        marks = [int(each["fwmark"], 16) for each in _marking_rules(family)]
        if marks:
            yield from _rules(
                variant,
                family,
                "mangle",
                "direct server return",
                lambda chains, marks=marks: direct_return(chains, marks),  # type: ignore[misc]
            )
        yield from _policy_routing(family)


def leftovers_of_router(variant: str) -> Iterator[Step]:
    """As ``leftovers``, of the part that made routes; provided that ours makes them by now."""
    for family in _FAMILIES:
        yield from _rules(variant, family, "nat", "masquerading of pods", pod_egress)


def _rules(
    variant: str,
    family: str,
    table: str,
    what: str,
    choose: Callable[[Chains], dict[str, tuple[str, ...]]],
) -> Iterator[Step]:
    program = program_name(variant, family)
    if shutil.which(program) is None:
        return
    saved = run([f"{program}-save", "-t", table], timeout_s=_TIMEOUT_S)
    chosen = choose(parse_table(saved.stdout, table))
    if chosen:
        lines = "".join(f"-D {chain} {rule}\n" for chain, rules in chosen.items() for rule in rules)
        text = f"*{table}\n{lines}COMMIT\n"
        restore = [f"{program}-restore", "--noflush", "-w", "5"]
        yield f"{what} of kube-router ({family})", _command(*restore, stdin=text)


def _marking_rules(family: str) -> list[dict[str, str]]:
    """kube-router's policy rules: a mark without a mask, and table 78."""
    return [
        rule
        for rule in _show(family, "rule", "show")
        if rule.get("table") == str(TABLE)
        and rule.get("src") == "all"
        and "fwmark" in rule
        and "fwmask" not in rule
        and rule.get("protocol") != str(OWN_PROTOCOL)
    ]


def _policy_routing(family: str) -> Iterator[Step]:
    ip = ("ip", _FAMILIES[family])
    for rule in _marking_rules(family):
        mark, priority = rule["fwmark"], str(rule["priority"])
        words = ("rule", "del", "fwmark", mark, "table", str(TABLE), "priority", priority)
        yield f"policy rule of kube-router for mark {mark} ({family})", _command(*ip, *words)
    for route in _show(family, "route", "show", "table", str(TABLE)):
        by = route.get("protocol", _BOOT)
        is_theirs = by != str(OWN_PROTOCOL) and route.get("type") == _LOCAL
        if is_theirs and (route.get("dst"), route.get("dev")) == ("default", "lo"):
            default = ("local", "default", "dev", "lo", "table", str(TABLE), "proto", by)
            step = _command(*ip, "route", "del", *default)
            yield f"route of kube-router in table {TABLE} ({family})", step
    # kube-router keeps this table empty: the rule costs a look-up for every packet, no more.
    table = str(_EXTERNAL_TABLE)
    is_empty = not _show(family, "route", "show", "table", table)
    if is_empty and any(_is_external(rule) for rule in _show(family, "rule", "show")):
        step = _command(*ip, "rule", "del", "table", table, "priority", _EXTERNAL_PRIORITY)
        yield f"policy rule of kube-router for table {table} ({family})", step


def _is_external(rule: Mapping[str, str]) -> bool:
    return (
        set(rule) <= {"priority", "src", "table", "protocol"}
        and (rule.get("src"), rule.get("table")) == ("all", str(_EXTERNAL_TABLE))
        and str(rule.get("priority")) == _EXTERNAL_PRIORITY
    )


def _show(family: str, *words: str) -> list[dict[str, str]]:
    """What ip(8) shows, in numbers; nothing where there is no such table or family."""
    shown = run(["ip", "-N", "-j", _FAMILIES[family], *words], timeout_s=_TIMEOUT_S)
    if shown.code != 0:
        return []
    try:
        found = json.loads(shown.stdout or "[]")
    except ValueError as error:
        raise KernelError(f"ip {' '.join(words)}: {error}") from error
    return [each for each in found if isinstance(each, dict)]


def _command(*words: str, stdin: str = "") -> Callable[[], None]:
    def execute() -> None:
        done = run(words, stdin, timeout_s=_TIMEOUT_S, writes=True)
        if done.code != 0:
            raise KernelError(f"{' '.join(words)}: {done.complaint}")

    return execute
