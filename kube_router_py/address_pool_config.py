"""Pools of addresses as flags and the ConfigMap ``kube-router-address-pools`` describe them. Pure.

A text with a mistake in it never replaces one without. Where no text without a mistake is known,
those pools are used that are right by themselves and have no address in common with another.
"""

from collections.abc import Iterator
from ipaddress import summarize_address_range
from typing import TYPE_CHECKING

from msgspec import Struct

from kube_router_py.address_pools import (
    DEFAULT_POOL,
    AddressPools,
    AddressRange,
    Announcing,
    Pool,
)
from kube_router_py.address_ranges import overlap, overlaps, range_of, unusable, usable_parts
from kube_router_py.pool_reader import Draft, read_items, read_pool
from kube_router_py.problem import Problem
from kube_router_py.services import Network

if TYPE_CHECKING:
    from kube_router_py.options import Options

CONFIG_MAP = "kube-router-address-pools"
KEY = "pools"
"""The entry of the ConfigMap that lists the pools."""

LONGEST = 64 << 10
"""Bytes of the text in UTF-8. The Lease of the allocator keeps a copy among its annotations, which
may have four times as much in all."""

_MOST_TOLD = 50
_FLAG = "--loadbalancer-ip-range"


class PoolSettings(Struct, frozen=True, kw_only=True):
    """The flags that pools depend on; ``namespace`` is that of the ConfigMap."""

    namespace: str = "kube-system"
    ranges: tuple[Network, ...] = ()
    layer2: bool = False
    interfaces: tuple[str, ...] = ()
    cluster_ranges: tuple[Network, ...] = ()
    ipv4: bool = True
    ipv6: bool = False

    @property
    def subject(self) -> str:
        """The ConfigMap as Problems name it."""
        return f"ConfigMap {self.namespace}/{CONFIG_MAP}"


class Parsed(Struct, frozen=True):
    """``pools`` are those without a mistake, in the order of the text; ``problems`` tell of it."""

    pools: tuple[Pool, ...] = ()
    problems: tuple[Problem, ...] = ()


class Compiled(Struct, frozen=True):
    """``accepted`` is the text that the pools are from, to be the last good one from now on (``""``
    where there is no ConfigMap); None: there is none without a mistake."""

    pools: AddressPools
    accepted: str | None
    problems: tuple[Problem, ...] = ()


def pool_settings(options: "Options", namespace: str) -> PoolSettings:
    """Pick what concerns pools out of the agent's options."""
    return PoolSettings(
        namespace=namespace,
        ranges=options.loadbalancer_ip_range,
        layer2=options.loadbalancer_layer2,
        interfaces=options.loadbalancer_layer2_interfaces,
        cluster_ranges=options.service_cluster_ip_range,
        ipv4=options.enable_ipv4,
        ipv6=options.enable_ipv6,
    )


def flag_pool(settings: PoolSettings) -> Pool | None:
    """The pool ``default``; None without --loadbalancer-ip-range.

    As kube-router it begins with the network's own address and ends with that of its broadcasts.
    Addresses that no Service can have are left out.
    """
    ranges = tuple(
        part
        for network in _distinct(settings.ranges)
        for part in usable_parts(range_of(network), settings.cluster_ranges)
    )
    if not settings.ranges:
        return None
    announcing = Announcing(layer2=settings.layer2, interfaces=settings.interfaces)
    return Pool(DEFAULT_POOL, ranges, announcing=announcing)


def _distinct(networks: tuple[Network, ...]) -> Iterator[Network]:
    """Networks without those that are inside of others."""
    for index, each in enumerate(networks):
        others = (*networks[:index], *(other for other in networks[index:] if other != each))
        if not any(_is_inside(each, other) for other in others):
            yield each


def _is_inside(each: Network, other: Network) -> bool:
    wide = range_of(other)
    return wide.has(each[0]) and wide.has(each[-1])


def parse_config(text: str, settings: PoolSettings) -> Parsed:
    """Read the ConfigMap's list. Nothing is raised, whatever the text is."""
    mistakes: list[tuple[str, str]] = []

    def tell(field: str, reason: str) -> None:
        mistakes.append((field, reason))

    drafts: list[Draft] = []
    if len(text.encode(errors="surrogatepass")) > LONGEST:
        tell(KEY, f"it is longer than {LONGEST} bytes; write fewer pools, or wider ranges")
    else:
        try:
            items = read_items(text)
        except ValueError as error:
            items = []
            tell(KEY, str(error))
        drafts = [read_pool(item, f"{KEY}[{n}]", tell) for n, item in enumerate(items)]
    wrong = {each.field for each in drafts if not each.is_right}
    for find in (_unusable, _names, _overlaps):
        for blamed, field, reason in find(drafts, settings):
            wrong.update(blamed)
            tell(field, reason)
    pools = tuple(each.pool for each in drafts if each.field not in wrong)
    problems = [Problem(settings.subject, *each) for each in mistakes[:_MOST_TOLD]]
    if len(mistakes) > _MOST_TOLD:
        reason = f"there are {len(mistakes) - _MOST_TOLD} more mistakes; correct these first"
        problems.append(Problem(settings.subject, KEY, reason))
    return Parsed(pools, tuple(problems))


def compile_pools(
    settings: PoolSettings,
    text: str | None,
    last_good: str | None = None,
    mistakes: tuple[Problem, ...] = (),
) -> Compiled:
    """The pools to use. ``text`` is what the ConfigMap says, None where there is none;
    ``last_good`` the text before, if one is known; ``mistakes`` are those that the ConfigMap has
    beside the text."""
    problems = _flag_problems(settings)
    if text is None and not mistakes:
        return Compiled(_all(settings, ()), "", problems)
    parsed = parse_config(text or "", settings)
    mistakes = (*mistakes, *parsed.problems)
    if not mistakes:
        return Compiled(_all(settings, parsed.pools), text, problems)
    before = parse_config(last_good, settings) if last_good is not None else None
    if before is not None and not before.problems:
        held = "what it said before it was edited is" if last_good else "there was none before"
        told = Problem(settings.subject, "", f"it is not used; {held}")
        problems = (*problems, *mistakes, told)
        return Compiled(_all(settings, before.pools), last_good, problems)
    names = ", ".join(sorted(pool.name for pool in parsed.pools)) or "none"
    reason = f"of its pools only those without a mistake are used: {names}"
    told = Problem(settings.subject, "", reason)
    return Compiled(_all(settings, parsed.pools), None, (*problems, *mistakes, told))


def _all(settings: PoolSettings, pools: tuple[Pool, ...]) -> AddressPools:
    default = flag_pool(settings)
    every = pools if default is None else (*pools, default)
    return AddressPools(tuple(sorted(every, key=lambda pool: (pool.priority, pool.name))))


def _flag_problems(settings: PoolSettings) -> tuple[Problem, ...]:
    return tuple(
        Problem(f"Flag {_FLAG}", "", f"{network} has {reason}, which are not given; leave them out")
        for network in settings.ranges
        if (reason := unusable(range_of(network)) or _cluster_range(range_of(network), settings))
    )


def _cluster_range(found: AddressRange, settings: PoolSettings) -> str:
    for network in settings.cluster_ranges:
        if overlap(found, range_of(network)):
            return f"addresses of --service-cluster-ip-range {network}"
    return ""


# --- what only shows in the whole: fields of the pools to blame, where to tell, what --------------

_Finding = tuple[tuple[str, ...], str, str]


def _unusable(drafts: list[Draft], settings: PoolSettings) -> Iterator[_Finding]:
    for draft in drafts:
        for place, found in draft.places:
            is_on = settings.ipv4 if found.version == 4 else settings.ipv6
            has = unusable(found) or _cluster_range(found, settings)
            if has:
                yield (draft.field,), place, f"{_text(found)} has {has}; leave them out"
            elif not is_on:
                remedy = f"leave it out, or set --enable-ipv{found.version}"
                reason = f"{_text(found)} is of IPv{found.version}, which is off; {remedy}"
                yield (draft.field,), place, reason


def _names(drafts: list[Draft], settings: PoolSettings) -> Iterator[_Finding]:
    first: dict[str, Draft] = {}
    for draft in drafts:
        if not draft.name:
            continue
        place = f"{draft.field}.name"
        if draft.name == DEFAULT_POOL and settings.ranges:
            reason = f"{DEFAULT_POOL!r} is the pool of {_FLAG}; choose another name"
            yield (draft.field,), place, reason
        other = first.setdefault(draft.name, draft)
        if other is not draft:
            reason = f"{draft.name!r} is the name of {other.field}, too; choose another one"
            yield (draft.field, other.field), place, reason


def _overlaps(drafts: list[Draft], settings: PoolSettings) -> Iterator[_Finding]:
    """Each address may be in one pool, and there once."""
    default = flag_pool(settings)
    # In the order of the text, the flag first: an overlap is told at what comes later.
    owners: list[tuple[str, str, str]] = []
    ranges: list[tuple[int, AddressRange]] = []

    def add(field: str, place: str, name: str, found: AddressRange) -> None:
        ranges.append((len(owners), found))
        owners.append((field, place, f"{_text(found)} of pool {name}"))

    for found in default.ranges if default is not None else ():
        add("", _FLAG, f"{DEFAULT_POOL!r} ({_FLAG})", found)
    for draft in drafts:
        for place, found in draft.places:
            add(draft.field, place, repr(draft.name) if draft.name else draft.field, found)
    for pair in overlaps(ranges):
        (one, _, there), (other, place, here) = (owners[index] for index in sorted(pair))
        reason = f"{here} and {there} overlap; an address belongs to one pool, once: change one"
        yield tuple(field for field in (one, other) if field), place, reason


def _text(found: AddressRange) -> str:
    if found.size == 1:
        return str(found.first)
    network, *more = summarize_address_range(found.first, found.last)
    return f"{found.first}-{found.last}" if more else str(network)
