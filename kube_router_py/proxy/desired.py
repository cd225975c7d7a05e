"""The desired state of all Services together, kept up to date one Service at a time.

Two Services may claim the same virtual server (a shared external IP, a NodePort taken twice). The
older one holds it, by creation time and then by name; the others get a Problem and step in when it
goes. So it is with a healthCheckNodePort. An address stays as long as any Service claims it. Pure:
no I/O, no clock.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from msgspec import Struct

from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService, Origin
from kube_router_py.proxy.model import (
    Guard,
    Hairpin,
    HealthCheck,
    RealServerKey,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)

_NONE: frozenset[RealServerKey] = frozenset()
_Claimed = TypeVar("_Claimed")


class Changes(Struct, frozen=True):
    """What an update may have changed: a superset is fine, a missing key is not."""

    servers: frozenset[VirtualServerKey]
    vips: frozenset[Vip]
    # Those whose hairpins, refused addresses, or answer to health checks may be others now.
    services: frozenset[str] = frozenset()

    @staticmethod
    def of_all(found: Iterable["Changes"]) -> "Changes":
        """Several in one."""
        servers: set[VirtualServerKey] = set()
        vips: set[Vip] = set()
        services: set[str] = set()
        for each in found:
            servers |= each.servers
            vips |= each.vips
            services |= each.services
        return Changes(frozenset(servers), frozenset(vips), frozenset(services))


class Desired:
    """An index over compiled Services; every method costs what it touches, not what it holds."""

    def __init__(self) -> None:
        self._services: dict[str, CompiledService] = {}
        # Most virtual servers have one claimant: its key alone is stored, which saves a container.
        self._owner: dict[VirtualServerKey, str] = {}
        self._contested: dict[VirtualServerKey, tuple[str, ...]] = {}
        self._vips: dict[Vip, frozenset[str]] = {}
        self._health_ports: dict[int, frozenset[str]] = {}
        self._contested_health_ports: set[int] = set()
        self._with_problems: set[str] = set()

    def update(self, key: str, compiled: CompiledService | None) -> Changes:
        """Replace what Service ``key`` asks for (None: nothing); returns what may have changed."""
        old = self._services.get(key)
        before = old.virtual_servers if old else {}
        after = compiled.virtual_servers if compiled else {}
        old_vips = old.vips if old else frozenset()
        new_vips = compiled.vips if compiled else frozenset()
        # A Service recreated between two looks keeps its key but not its place in the order.
        reordered = bool(old and compiled and old.created != compiled.created)
        if compiled and (after or compiled.problems or compiled.health_check):
            self._services[key] = compiled
        else:
            self._services.pop(key, None)
        self._with_problems.discard(key)
        if compiled and compiled.problems:
            self._with_problems.add(key)
        touched = {
            server
            for server in {**before, **after}
            if reordered
            or before.get(server) != after.get(server)
            or _paused(old, server) != _paused(compiled, server)
            or _guard(old, server) != _guard(compiled, server)
        }
        for server in before.keys() | after.keys():
            if reordered or (server in before) != (server in after):
                self._claim(server, key, claims=server in after)
        for vip in old_vips ^ new_vips:
            _change(self._vips, vip, key, claims=vip in new_vips)
        services = self._claim_health_port(key, old, compiled, reordered)
        if _hairpins(old) != _hairpins(compiled) or _refused(old) != _refused(compiled):
            services |= {key}
        return Changes(frozenset(touched), old_vips ^ new_vips, services)

    def _claim_health_port(
        self, key: str, old: CompiledService | None, new: CompiledService | None, reordered: bool
    ) -> frozenset[str]:
        """Follow the healthCheckNodePort of ``key``; returns whose answers may be others now."""
        before, after = _health_check(old), _health_check(new)
        if before == after and not reordered:
            return frozenset()
        touched = {key}
        for port in {each.port for each in (before, after) if each}:
            claims = after is not None and after.port == port
            claimants = _change(self._health_ports, port, key, claims=claims)
            touched |= claimants
            if len(claimants) > 1:
                self._contested_health_ports.add(port)
            else:
                self._contested_health_ports.discard(port)
        return frozenset(touched)

    def _claim(self, server: VirtualServerKey, key: str, *, claims: bool) -> None:
        claimants = set(self.claimants(server)) - {key}
        if claims:
            claimants.add(key)
        ranked = sorted(claimants, key=self._rank)
        if ranked:
            self._owner[server] = ranked[0]
        else:
            self._owner.pop(server, None)
        if len(ranked) > 1:
            self._contested[server] = tuple(ranked)
        else:
            self._contested.pop(server, None)

    def _rank(self, key: str) -> tuple[str, str]:
        # RFC 3339 in UTC sorts as text; an object without a date (a manifest) counts as youngest.
        return self._services[key].created or "~", key

    def claimants(self, server: VirtualServerKey) -> tuple[str, ...]:
        """The Services that ask for a virtual server, its holder first."""
        if server in self._contested:
            return self._contested[server]
        owner = self._owner.get(server)
        return (owner,) if owner is not None else ()

    def owner(self, server: VirtualServerKey) -> str | None:
        """The Service that holds a virtual server."""
        return self._owner.get(server)

    def state(self, server: VirtualServerKey) -> VirtualServerState | None:
        """What should stand in the kernel, draining real servers apart; None for nothing."""
        owner = self._owner.get(server)
        return self._services[owner].virtual_servers[server] if owner is not None else None

    def origin(self, server: VirtualServerKey) -> Origin:
        """Where a desired virtual server comes from."""
        return self._services[self._owner[server]].origins[server]

    def paused(self, server: VirtualServerKey) -> frozenset[RealServerKey]:
        """Real servers that stay at weight 0, without a deadline, if the kernel has them."""
        owner = self._owner.get(server)
        return _paused(self._services[owner], server) if owner is not None else _NONE

    def terminating(self, server: VirtualServerKey) -> frozenset[RealServerKey]:
        """Listed real servers that are on their way out."""
        owner = self._owner.get(server)
        if owner is None:
            return _NONE
        return self._services[owner].terminating.get(server, _NONE)

    def guard(self, server: VirtualServerKey) -> Guard | None:
        """Who is kept from a desired virtual server; None for nobody."""
        owner = self._owner.get(server)
        return _guard(self._services[owner], server) if owner is not None else None

    def health_check(self, key: str) -> HealthCheck | None:
        """What Service ``key`` answers to health checks; None while an older one has its port."""
        found = _health_check(self._services.get(key))
        if found is None or self._health_claimants(found.port)[0] != key:
            return None
        return found

    def health_checks(self) -> Iterator[tuple[str, HealthCheck]]:
        """The Services that answer to health checks, one per port, with what they answer."""
        for port in self._health_ports:
            key = self._health_claimants(port)[0]
            if found := self._services[key].health_check:
                yield key, found

    def _health_claimants(self, port: int) -> list[str]:
        return sorted(self._health_ports[port], key=self._rank)

    def compiled(self, key: str) -> CompiledService | None:
        """What Service ``key`` asks for."""
        return self._services.get(key)

    def services(self) -> Iterable[str]:
        """Keys of all Services that ask for something or have a Problem."""
        return self._services.keys()

    def servers(self) -> Iterator[VirtualServerKey]:
        """All virtual servers that should stand."""
        return iter(self._owner)

    def vips(self) -> Iterable[Vip]:
        """All addresses that Services claim."""
        return self._vips.keys()

    def vip_claimants(self, vip: Vip) -> frozenset[str]:
        """The Services that claim an address."""
        return self._vips.get(vip, frozenset())

    def problems(self) -> tuple[Problem, ...]:
        """Everything wrong with the Services, conflicts included, sorted."""
        found = {problem for key in self._with_problems for problem in self._services[key].problems}
        for server, (holder, *losers) in self._contested.items():
            found.update(
                Problem(
                    f"Service {loser}",
                    "spec.ports",
                    f"{server} is held by the older Service {holder}; this one takes over when "
                    "that is gone",
                )
                for loser in losers
            )
        for port in self._contested_health_ports:
            holder, *losers = self._health_claimants(port)
            found.update(
                Problem(
                    f"Service {loser}",
                    "spec.healthCheckNodePort",
                    f"port {port} answers for the older Service {holder}; choose another",
                )
                for loser in losers
            )
        return tuple(sorted(found))


def _change(
    claims_of: dict[_Claimed, frozenset[str]], what: _Claimed, key: str, *, claims: bool
) -> frozenset[str]:
    """Add or drop one claim; returns those that are left."""
    left = claims_of.get(what, frozenset()) - {key}
    if claims:
        left |= {key}
    if left:
        claims_of[what] = left
    else:
        claims_of.pop(what, None)
    return left


def _hairpins(compiled: CompiledService | None) -> frozenset[Hairpin]:
    return compiled.hairpins if compiled else frozenset()


def _refused(compiled: CompiledService | None) -> tuple[Problem, ...]:
    return compiled.refused if compiled else ()


def _health_check(compiled: CompiledService | None) -> HealthCheck | None:
    return compiled.health_check if compiled else None


def _paused(compiled: CompiledService | None, server: VirtualServerKey) -> frozenset[RealServerKey]:
    return compiled.paused.get(server, _NONE) if compiled else _NONE


def _guard(compiled: CompiledService | None, server: VirtualServerKey) -> Guard | None:
    return compiled.guards.get(server) if compiled else None
