"""Rules that stand, held against what is expected of them; and the rules of others."""

from collections.abc import Iterator, Sequence

from msgspec import Struct, structs

from kube_router_py.errors import KubeRouterError
from kube_router_py.flow.expected import ChainExpected, JumpExpected, LeadsExpected, LegExpected
from kube_router_py.flow.model import Check
from kube_router_py.flow.nft_text import parse_ruleset, refusing
from kube_router_py.flow.rule_match import Packet
from kube_router_py.flow.walk import Fate, Place, before_own, is_own, leads, walk
from kube_router_py.kernel.iptables_variant import program_name
from kube_router_py.kernel.ports import SetState
from kube_router_py.kernel.ports_reading import KernelReading, Tables
from kube_router_py.kernel.rule_text import canonical

_TABLES = ("raw", "mangle", "nat", "filter", "security")
# A rule as it stands may be as long as its author liked.
_LONGEST = 300


class Remedies(Struct, frozen=True):
    """What to do where something of the agent's differs: rules and sets, IPVS and addresses,
    routes; and what to do about rules of others."""

    rules: str = ""
    ipvs: str = ""
    routes: str = ""
    others: str = ""


def ipset_of(kernel: KernelReading, name: str) -> SetState | None:
    """A set of the kernel."""
    return kernel.ipset(name)


def _set_of(kernel: KernelReading, name: str) -> SetState | None:
    """For matching: a set that cannot be read cannot be told."""
    try:
        return kernel.ipset(name)
    except KubeRouterError:
        return None


def _same(left: str, right: str) -> bool:
    return canonical(left) == canonical(right)


def compare_jump(
    expected: JumpExpected, kernel: KernelReading, remedies: Remedies
) -> Iterator[Check]:
    """There, and before all rules of others where it shall be first."""
    jump, table = expected.jump, expected.table
    program = program_name(kernel.variant, expected.family)
    chains = kernel.rules(kernel.variant, expected.family).chains.get(table, {})
    what = f"jump from {jump.parent} ({program}, table {table})"
    is_first = jump.position == "first"
    text = f"{jump.rule}{', before all rules of others' if is_first else ''}"
    standing = chains.get(jump.parent, ())
    before = before_own(standing, lambda rule: _same(rule, jump.rule))
    if before is None:
        yield Check(what, text, "there is no such rule", False, remedies.rules)
        return
    others = before if is_first else []
    if not others:
        yield Check(what, text, "it is there" + (", first" if is_first else ""), True)
        return
    number = "a rule of others comes" if len(others) == 1 else f"{len(others)} rules of others come"
    found = f"{number} before it: {_short(others[0][1])}"
    yield Check(what, text, found, False, remedies.rules)


def is_told(expected: JumpExpected, kernel: KernelReading, told: Sequence[Check]) -> bool:
    """Whether nothing is wrong with a jump but rules of others before it, each of which is named by
    another check that differs: one fault is told once."""
    jump, table = expected.jump, expected.table
    chains = kernel.rules(kernel.variant, expected.family).chains.get(table, {})
    before = before_own(chains.get(jump.parent, ()), lambda rule: _same(rule, jump.rule))
    places = [_placed(Place(table, jump.parent, number, text)) for number, text in before or ()]
    found = [each.found for each in told if each.agrees is False]
    return bool(places) and all(any(place in each for each in found) for place in places)


def compare_chain(
    expected: ChainExpected, kernel: KernelReading, remedies: Remedies
) -> Iterator[Check]:
    """Exactly these rules, in whatever spelling."""
    standing = kernel.rules(kernel.variant, expected.family).chains.get(expected.table, {})
    found = standing.get(expected.chain)
    text = f"{expected.chain} has its {len(expected.rules)} rules"
    text += f", {expected.note}" if expected.note else ""
    if found is None:
        missing = f"there is no chain {expected.chain}"
        yield Check(expected.what, text, missing, False, remedies.rules)
        return
    same = kernel.same(
        expected.family, expected.table, expected.chain, expected.rules, tuple(found)
    )
    if same:
        yield Check(expected.what, text, "so it is", True)
        return
    yield Check(expected.what, text, _difference(expected, found), False, remedies.rules)


def _difference(expected: ChainExpected, found: Sequence[str]) -> str:
    forms = [canonical(each) for each in found]
    missing = [each for each in expected.rules if canonical(each) not in forms]
    wanted = [canonical(each) for each in expected.rules]
    extra = [each for each in found if canonical(each) not in wanted]
    says = []
    if missing:
        says.append(f"missing in {expected.chain}: {_short(missing[0])}")
    if extra:
        says.append(f"not the agent's: {_short(extra[0])}")
    return "; ".join(says) or f"{expected.chain} has its rules in another order, or twice"


def compare_leads(
    expected: LeadsExpected, kernel: KernelReading, remedies: Remedies
) -> Iterator[Check]:
    """By the chains that tell addresses apart."""
    tables = kernel.rules(kernel.variant, expected.packet.family)
    does = leads(
        tables,
        "filter",
        expected.chain,
        expected.to,
        expected.packet,
        lambda name: _set_of(kernel, name),
    )
    text = f"{expected.chain} leads to {expected.to}"
    found = "so it does" if does else "it does not"
    yield Check(expected.what, text, found, does, "" if does else remedies.rules)


# --- a whole way ---------------------------------------------------------------------------------


def compare_leg(
    expected: LegExpected, kernel: KernelReading, remedies: Remedies
) -> Iterator[Check]:
    """What the agent's rules say of the packet, what becomes of its source, and which rules of
    others may take it."""
    if not expected.hooks:
        return
    packet = _with_links(expected, kernel)
    tables = kernel.rules(kernel.variant, packet.family)
    fates = _walk(tables, expected, packet, kernel)
    yield _verdict(expected, fates, remedies)
    if expected.source is not None:
        yield _translation(expected, fates, remedies)
    yield from _others(expected, packet, fates, kernel, remedies)


def _with_links(expected: LegExpected, kernel: KernelReading) -> Packet:
    in_link, is_in = _link(expected.in_of, kernel)
    out_link, is_out = _link(expected.out_to, kernel)
    return structs.replace(
        expected.packet,
        in_link=in_link,
        is_in_known=is_in,
        out_link=out_link,
        is_out_known=is_out,
    )


def _link(address: str, kernel: KernelReading) -> tuple[str, bool]:
    """The link towards an address, and whether that is known; none for no address."""
    if not address:
        return "", True
    try:
        link = kernel.way(address).link
    except KubeRouterError:
        link = ""
    return link, bool(link)


def _walk(
    tables: Tables, expected: LegExpected, packet: Packet, kernel: KernelReading
) -> list[Fate]:
    found: list[Fate] = []
    mark = 0
    for table, chain in expected.hooks:
        fate = walk(tables, table, chain, packet, lambda name: _set_of(kernel, name), mark)
        mark = fate.mark
        found.append(fate)
    return found


def _verdict(expected: LegExpected, fates: Sequence[Fate], remedies: Remedies) -> Check:
    what = f"the agent's rules for {expected.what}"
    text = f"{'pass' if expected.passes else 'refuse'}: {expected.why}"
    refusal = next((each.own for each in fates if each.ending == "drop"), None)
    bypass = next(filter(None, map(_bypass, expected.hooks, fates)), None)
    if refusal is not None:
        found = f"refused by {_placed(refusal)}"
    elif bypass is not None and not expected.passes:
        found = f"accepted before they are asked, by {_placed(bypass)}"
    else:
        found = "nothing of the agent's refuses it"
    agrees = expected.passes == (refusal is None)
    return Check(what, text, found, agrees, "" if agrees else remedies.rules)


def _bypass(hook: tuple[str, str], fate: Fate) -> Place | None:
    """The rule of others that accepts a packet before the agent's chains have seen it."""
    is_asked = hook[0] != "filter" or any(map(is_own, fate.chains))
    return None if is_asked else fate.accepted


def _translation(expected: LegExpected, fates: Sequence[Fate], remedies: Remedies) -> Check:
    what = f"source address of {expected.what}"
    own = next((each.own for each in fates if each.ending == "nat"), None)
    wanted = expected.source
    if not wanted:
        text = "the source stays"
        agrees = own is None
    else:
        text = "the source is replaced" + ("" if wanted == "*" else f" by {wanted}")
        words = own.rule.split() if own else []
        agrees = own is not None and (wanted == "*" or wanted in words or "MASQUERADE" in words)
    found = f"replaced by {_placed(own)}" if own else "nothing of the agent's replaces it"
    return Check(what, text, found, agrees, "" if agrees else remedies.rules)


def _others(
    expected: LegExpected,
    packet: Packet,
    fates: Sequence[Fate],
    kernel: KernelReading,
    remedies: Remedies,
) -> Iterator[Check]:
    """Every rule of others that may take the packet, in both variants and in nft tables."""
    what = f"rules of others for {expected.what}"
    text = "none refuses it or sends it elsewhere"
    is_clean = True
    for kind, says, agrees in _takers(expected, packet, fates, kernel):
        is_clean = False
        yield Check(f"{what}, {kind}", text, says, agrees, remedies.others if not agrees else "")
    if is_clean:
        yield Check(what, text, "none does", True)


def _takers(
    expected: LegExpected, packet: Packet, fates: Sequence[Fate], kernel: KernelReading
) -> Iterator[tuple[str, str, bool | None]]:
    family = packet.family
    try:
        variants = kernel.variants()
    except KubeRouterError as error:
        yield "iptables", f"cannot be read: {error}", None
        variants = (kernel.variant,)
    read: set[str] = set()
    for variant in variants:
        program = program_name(variant, family)
        try:
            found = fates
            if variant != kernel.variant:
                tables = kernel.rules(variant, family)
                found = _walk(tables, expected, packet, kernel)
                yield from _left_behind(program, tables)
        except KubeRouterError as error:
            yield program, f"cannot be read: {error}", None
            continue
        read.add(variant)
        for (_, hook), fate in zip(expected.hooks, found, strict=True):
            for each in fate.foreign:
                word = "takes it" if each.is_sure else "may take it"
                yield f"{program} {hook}", f"{word}: {_placed(each.place)}", _sure(each.is_sure)
            if not fate.is_complete:
                yield f"{program} {hook}", "too many rules to look at all of them", None
    yield from _nft(expected, packet, kernel, skips_iptables=any(_is_nft(each) for each in read))


def _sure(is_sure: bool) -> bool | None:
    return False if is_sure else None


def _is_nft(variant: str) -> bool:
    return variant != "iptables-legacy"


def _left_behind(program: str, tables: Tables) -> Iterator[tuple[str, str, bool | None]]:
    """Chains of ours in the variant that the agent does not use would go on deciding."""
    for table, chains in tables.chains.items():
        if own := sorted(name for name in chains if is_own(name)):
            says = f"chains of the agent in the variant it does not use, table {table}: {own[0]}"
            yield program, says, False


def _nft(
    expected: LegExpected, packet: Packet, kernel: KernelReading, *, skips_iptables: bool
) -> Iterator[tuple[str, str, bool | None]]:
    try:
        chains = parse_ruleset(kernel.nft())
    except KubeRouterError as error:
        yield "nft", f"cannot be read: {error}", None
        return
    skip = frozenset((family, name) for family in ("ip", "ip6") for name in _TABLES)
    for hook in dict.fromkeys(hook.lower() for _, hook in expected.hooks):
        for each in refusing(chains, hook, packet, skip if skips_iptables else frozenset()):
            word = "takes it" if each.is_sure else "may take it"
            yield f"nft {hook}", f"{word}: {_short(each.where)}", _sure(each.is_sure)


def _placed(place: Place) -> str:
    return _short(str(place))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
