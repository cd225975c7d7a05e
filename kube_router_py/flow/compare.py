"""Expectations held against a node's kernel: one check for each, and the rules of others.

What is read comes from a ``KernelReading``; nothing else here does any I/O, and nothing is written.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct

from kube_router_py.errors import KubeRouterError
from kube_router_py.flow import compare_rules as rules
from kube_router_py.flow.compare_rules import Remedies, ipset_of
from kube_router_py.flow.expected import (
    BridgeExpected,
    ChainExpected,
    Elsewhere,
    Expectation,
    JumpExpected,
    LeadsExpected,
    LegExpected,
    LocalExpected,
    RouteExpected,
    ServerExpected,
    SetExpected,
    Unknown,
)
from kube_router_py.flow.model import Check, Comparison
from kube_router_py.flow.rule_match import member
from kube_router_py.kernel.ports_reading import KernelReading
from kube_router_py.proxy.model import RealServer, RealServerKey

# Of long lists a few are enough to see what is wrong.
_MOST = 5


def compare(
    node: str, expected: Iterable[Expectation], kernel: KernelReading, remedies: Remedies
) -> Comparison:
    """One check for each expectation, more for a way through hooks; none for a jump with which
    nothing is wrong but what another one tells."""
    found: list[tuple[Expectation, list[Check]]] = []
    for each in expected:
        try:
            found.append((each, [*_CHECKS[type(each)](each, kernel, remedies)]))
        except KubeRouterError as error:
            found.append((each, [Check(_title(each), "", f"cannot be read: {error}", None)]))
    ways = [check for each, checks in found if isinstance(each, LegExpected) for check in checks]
    return Comparison(
        node,
        tuple(
            _merged(
                check
                for each, checks in found
                for check in checks
                if check.agrees is not False
                or not isinstance(each, JumpExpected)
                or not rules.is_told(each, kernel, ways)
            )
        ),
    )


def _merged(checks: Iterable[Check]) -> Iterator[Check]:
    """Each thing once, in order."""
    yield from dict.fromkeys(checks)


def _title(expected: Expectation) -> str:
    return expected.jump.rule if isinstance(expected, JumpExpected) else expected.what


def _elsewhere(expected: Elsewhere, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    found = f"not compared here: runs on {expected.node}; ask there"
    yield Check(expected.what, "", found, None)


def _unknown(expected: Unknown, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    yield Check(expected.what, "", f"not compared: {expected.why}", None)


# --- IPVS ----------------------------------------------------------------------------------------


def _server(expected: ServerExpected, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    standing = kernel.virtual_server(expected.key)
    wanted = expected.real_servers
    if wanted is None:
        is_there = standing is not None
        found = f"IPVS has {expected.key}" if is_there else f"IPVS has no {expected.key}"
        text = f"no virtual server {expected.key}"
        yield _check(expected.what, text, found, not is_there, remedies.ipvs)
        return
    text = f"{expected.key} {expected.scheduler}: {_weights(wanted)}"
    if standing is None:
        found = f"IPVS has no {expected.key}"
        yield _check(expected.what, text, found, False, remedies.ipvs)
        return
    draining = [key for key, real in standing.real_servers.items() if _drains(key, real, wanted)]
    serving = {
        key: real.weight for key, real in standing.real_servers.items() if key not in draining
    }
    config = standing.config
    found = f"{expected.key} {config.scheduler}: {_weights(serving)}"
    found += f"; draining: {_listed(map(str, sorted(draining)))}" if draining else ""
    is_same = (config.scheduler, config.persistence_s) == (
        expected.scheduler,
        expected.persistence_s,
    )
    if not is_same:
        text += f", persistent {expected.persistence_s} s"
        found += f", persistent {config.persistence_s} s"
    if missing := sorted(wanted.keys() - serving.keys()):
        found += f"; missing: {_listed(map(str, missing))}"
    yield _check(expected.what, text, found, is_same and serving == wanted, remedies.ipvs)


def _drains(key: RealServerKey, real: RealServer, wanted: dict[RealServerKey, int]) -> bool:
    return real.weight == 0 and key not in wanted


def _weights(wanted: dict[RealServerKey, int]) -> str:
    texts = (f"{key} weight {weight}" for key, weight in sorted(wanted.items()))
    return _listed(texts) or "no real server"


def _listed(texts: Iterable[str]) -> str:
    found = [*texts]
    more = f", and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more


# --- addresses, sets, routes ---------------------------------------------------------------------


def _local(expected: LocalExpected, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    way = kernel.way(expected.address)
    found = way.refused or f"{way.kind} route, link {way.link or 'none'}"
    yield _check(
        expected.what,
        f"{expected.address} is local to the node",
        found,
        way.kind == "local",
        remedies.ipvs,
    )


def _set(expected: SetExpected, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    wanted = expected.wanted
    name = wanted.spec.name
    entry = _entry(expected)
    should = member(wanted, expected.sides, expected.packet)
    text = f"set {name} has {entry}" if should else f"set {name} does not have {entry}"
    standing = ipset_of(kernel, name)
    if standing is None:
        yield _check(expected.what, text, f"there is no set {name}", False, remedies.rules)
        return
    does = member(standing, expected.sides, expected.packet)
    if should is None or does is None:
        yield Check(expected.what, text, f"set {name} is of a type that is not compared", None)
        return
    found = f"it is in {name}" if does else f"it is not in {name}"
    yield _check(expected.what, text, found, should == does, remedies.rules)


def _entry(expected: SetExpected) -> str:
    packet, kinds = expected.packet, expected.wanted.spec.type.partition(":")[2].split(",")
    texts = []
    for kind, side in zip(kinds, expected.sides.split(","), strict=False):
        if kind == "port":
            texts.append(f"{packet.protocol}:{packet.port}")
        else:
            texts.append(packet.source if side == "src" else packet.destination)
    return ",".join(texts)


def _route(expected: RouteExpected, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    in_link = kernel.way(expected.source).link if expected.source else ""
    way = kernel.way(expected.address, expected.source if in_link else "", in_link)
    wants = [f"by {expected.link}"] if expected.link else []
    wants += [f"to {expected.gateway}"] if expected.gateway else []
    text = "no route" if expected.kind == "none" else " ".join((f"{expected.kind} route", *wants))
    found = way.refused or " ".join(
        (
            f"{way.kind} route",
            *([f"by {way.link}"] if way.link else ()),
            *([f"to {way.gateway}"] if way.gateway else ()),
        )
    )
    if expected.kind == "none":
        agrees = way.kind not in ("unicast", "local")
    else:
        agrees = (
            way.kind == expected.kind
            and expected.link in ("", way.link)
            and expected.gateway in ("", way.gateway, *(() if way.gateway else (expected.address,)))
        )
    yield _check(expected.what, text, found, agrees, remedies.routes)


_BRIDGE_FILTER = "net/bridge/bridge-nf-call-{}"


def _bridge(expected: BridgeExpected, kernel: KernelReading, remedies: Remedies) -> Iterator[Check]:
    links = {kernel.way(each).link for each in (expected.source, expected.destination)}
    if len(links) != 1:
        return  # each has a link of its own: packets are routed
    name = _BRIDGE_FILTER.format("ip6tables" if ":" in expected.destination else "iptables")
    value = kernel.sysctl(name)
    found = f"{name} is {value}" if value is not None else f"there is no {name}"
    remedy = remedies.rules if value is not None else "load the module br_netfilter"
    yield _check(expected.what, f"{name} is 1", found, value == "1", remedy)


def _check(what: str, expected: str, found: str, agrees: bool, remedy: str) -> Check:
    return Check(what, expected, found, agrees, "" if agrees else remedy)


_Comparer = Callable[[Any, KernelReading, Remedies], Iterator[Check]]
_CHECKS: dict[type[Struct], _Comparer] = {
    Elsewhere: _elsewhere,
    Unknown: _unknown,
    ServerExpected: _server,
    LocalExpected: _local,
    SetExpected: _set,
    RouteExpected: _route,
    BridgeExpected: _bridge,
    JumpExpected: rules.compare_jump,
    ChainExpected: rules.compare_chain,
    LeadsExpected: rules.compare_leads,
    LegExpected: rules.compare_leg,
}
