"""Order the writes of one turn so that no moment between two of them is wrong.

    grow      add virtual servers, add real servers, change virtual servers, raise weights
    addresses remove the unwanted ones, put the new ones
    shrink    weights to 0, delete real servers, delete virtual servers

A Service with endpoints before and after the turn has one that takes connections at every moment
of it; an address answers only while its virtual servers stand; and deletes come last because the
kernel searches its list of deleted destinations on every add. Pure.
"""

from collections.abc import Mapping

from msgspec import Struct

from kube_router_py.delta import Delta, diff
from kube_router_py.proxy.model import (
    IpvsOperation,
    Verb,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)


class Plan(Struct, frozen=True):
    """The writes of one turn: ``grow``, then the addresses, then ``shrink``."""

    grow: tuple[IpvsOperation, ...]
    remove_vips: tuple[Vip, ...]
    put_vips: dict[Vip, bytes]
    shrink: tuple[IpvsOperation, ...]

    def __bool__(self) -> bool:
        return bool(self.grow or self.shrink or self.remove_vips or self.put_vips)


def plan(
    servers: Delta[VirtualServerKey, VirtualServerState],
    actual: Mapping[VirtualServerKey, VirtualServerState],
    vips: Delta[Vip, bytes],
) -> Plan:
    """Turn differences into writes; ``actual`` is what the changed virtual servers are now."""
    by_verb: dict[Verb, list[IpvsOperation]] = {verb: [] for verb in Verb}
    lowered: list[IpvsOperation] = []
    for key, state in servers.added.items():
        by_verb[Verb.ADD_VIRTUAL_SERVER].append(
            IpvsOperation(Verb.ADD_VIRTUAL_SERVER, key, config=state.config)
        )
        by_verb[Verb.ADD_REAL_SERVER].extend(
            IpvsOperation(Verb.ADD_REAL_SERVER, key, real_server=real_key, real=real)
            for real_key, real in state.real_servers.items()
        )
    for key, state in servers.changed.items():
        current = actual[key]
        if state.config != current.config:
            by_verb[Verb.SET_VIRTUAL_SERVER].append(
                IpvsOperation(Verb.SET_VIRTUAL_SERVER, key, config=state.config)
            )
        reals = diff(state.real_servers, current.real_servers)
        by_verb[Verb.ADD_REAL_SERVER].extend(
            IpvsOperation(Verb.ADD_REAL_SERVER, key, real_server=real_key, real=real)
            for real_key, real in reals.added.items()
        )
        for real_key, real in reals.changed.items():
            change = IpvsOperation(Verb.SET_REAL_SERVER, key, real_server=real_key, real=real)
            (by_verb[Verb.SET_REAL_SERVER] if real.weight else lowered).append(change)
        by_verb[Verb.DELETE_REAL_SERVER].extend(
            IpvsOperation(Verb.DELETE_REAL_SERVER, key, real_server=real_key)
            for real_key in reals.removed
        )
    by_verb[Verb.DELETE_VIRTUAL_SERVER].extend(
        IpvsOperation(Verb.DELETE_VIRTUAL_SERVER, key) for key in servers.removed
    )
    return Plan(
        grow=(
            *by_verb[Verb.ADD_VIRTUAL_SERVER],
            *by_verb[Verb.ADD_REAL_SERVER],
            *by_verb[Verb.SET_VIRTUAL_SERVER],
            *by_verb[Verb.SET_REAL_SERVER],
        ),
        remove_vips=vips.removed,
        put_vips={**vips.added, **vips.changed},
        shrink=(
            *lowered,
            *by_verb[Verb.DELETE_REAL_SERVER],
            *by_verb[Verb.DELETE_VIRTUAL_SERVER],
        ),
    )
