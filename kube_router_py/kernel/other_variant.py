"""Own chains in the variant of iptables that is not in use.

Both variants are in force at once. When the agent changes from one to the other, what it left in
the first would go on deciding about packets, by old sets and policies.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable

from kube_router_py.errors import KernelError
from kube_router_py.kernel.iptables import IptablesProgram, UnreadableTableError
from kube_router_py.kernel.iptables_variant import NO_NFT, is_legacy, legacy_tables, program_name

log = logging.getLogger(__name__)

TABLES = ("filter", "nat", "mangle")


def remove_from_other_variant(
    in_use: str,
    families: Iterable[str],
    is_own: Callable[[str], bool],
    markers: Collection[str] = (),
) -> tuple[str, ...]:
    """Remove own chains, and every jump to them, from the variant that is not ``in_use``.

    To be called when the new ones stand, or when none are to. ``in_use`` is one of
    ``iptables_variant.VARIANTS``, ``families`` are ``inet`` and ``inet6``. Where ``markers`` are
    given, a table without one of them is left: kube-router has chains of the same names. Returns
    what was removed, in words: nothing as a rule. Foreign rules stay; a legacy table that does not
    exist is not looked at, since that would create it. All tables are tried before KernelError is
    raised.
    """
    other = "iptables-nft" if is_legacy(in_use) else "iptables-legacy"
    removed: list[str] = []
    failed: list[str] = []
    for family in families:
        if shutil.which(f"{program_name(other, family)}-save") is None:
            continue
        for table in TABLES:
            if other == "iptables-legacy" and table not in legacy_tables(family):
                continue
            try:
                removed += _remove(IptablesProgram(other), family, table, is_own, markers)
            except KernelError as error:
                failed.append(str(error))
    if failed:
        raise KernelError("; ".join(failed))
    return tuple(removed)


def _remove(
    iptables: IptablesProgram,
    family: str,
    table: str,
    is_own: Callable[[str], bool],
    markers: Collection[str],
) -> list[str]:
    try:
        standing = iptables.chains(family, table)
    except UnreadableTableError as error:
        log.warning("not searched for chains that the agent left there reason=%r", str(error))
        return []
    except KernelError as error:
        if NO_NFT in str(error):
            return []  # and no rules, either
        raise
    own = [name for name in standing if is_own(name)]
    if not own or (markers and not standing.keys() & set(markers)):
        return []
    iptables.remove(family, table, own)
    program = program_name(iptables.variant, family)
    log.warning("removed own chains program=%s table=%s count=%d", program, table, len(own))
    return [f"{program} table {table}: chain {name} removed" for name in own]
