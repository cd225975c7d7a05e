"""A host's tunnels, routes and rules in memory, which refuse what the kernel refuses."""

import errno
import os
from collections.abc import Collection, Iterable, Mapping

from kube_router_py.errors import KernelError
from kube_router_py.kernel.overlay_ports import (
    MAIN,
    VXLAN_LINKS,
    Encap,
    Neighbour,
    Network,
    OverlayFailure,
    OverlayPorts,
    Route,
    Tunnel,
    is_own_name,
)


class FakeOverlayLinks:
    """``overlay_ports.OverlayLinks`` in memory.

    ``foreign`` are links of others, by name, with their kinds; ``link_mtus`` is what ``mtus`` tells
    besides; ``refuse`` are names that the kernel refuses to make.
    """

    def __init__(self) -> None:
        self.writes = 0
        self.tunnels: dict[str, Tunnel] = {}
        self.neighbours: frozenset[Neighbour] = frozenset()
        self.bridges: dict[str, int] = {}
        self.foreign: dict[str, str] = {}
        self.link_mtus: dict[str, int] = {"eth0": 1500}
        self.refuse: set[str] = set()

    def read(self) -> dict[str, Tunnel | None]:
        strange = {name: None for name in self.foreign if is_own_name(name)}
        return {**strange, **self.tunnels}

    def put(
        self, tunnels: Mapping[str, Tunnel], neighbours: Collection[Neighbour]
    ) -> list[OverlayFailure]:
        failures = []
        for name, wanted in sorted(tunnels.items()):
            if name in self.foreign or name in self.refuse:
                code = errno.EEXIST if name in self.foreign else errno.EOPNOTSUPP
                failures.append(OverlayFailure(f"link {name}", code, os.strerror(code)))
            elif self.tunnels.get(name) != wanted:
                self.writes += 1
                for other in [*self.tunnels.values()]:
                    if _is_same(other, wanted):
                        del self.tunnels[other.name]
                self.tunnels[name] = wanted
        made = frozenset(each for each in neighbours if each.link in self.tunnels)
        self.writes += made != self.neighbours
        self.neighbours = made
        return failures

    def prune(self, keep: Collection[str]) -> list[OverlayFailure]:
        for name in self.tunnels.keys() - set(keep):
            self.writes += 1
            del self.tunnels[name]
        self.neighbours = frozenset(it for it in self.neighbours if it.link in self.tunnels)
        return []

    def remove_own(self) -> list[OverlayFailure]:
        return self.prune(())

    def ensure_bridge(self, name: str, mtu: int | None) -> None:
        if name in self.foreign:
            raise KernelError(
                f"link {name} is of kind {self.foreign[name]}, not bridge", errno.EEXIST
            )
        before = self.bridges.get(name)
        if before is None or mtu not in (None, before):
            self.writes += 1
            self.bridges[name] = mtu or before or 1500

    def mtus(self) -> dict[str, int]:
        own = {each.name: each.mtu for each in self.tunnels.values()}
        return {**self.link_mtus, **self.bridges, **own}

    def close(self) -> None:
        """Nothing is open."""


class FakeOverlayRoutes:
    """``overlay_ports.OverlayRoutes`` in memory, over the links of ``links``.

    ``foreign`` are routes of others in table main, by destination, with their protocols.
    """

    def __init__(self, links: FakeOverlayLinks) -> None:
        self.writes = self.added = self.removed = 0
        self._links = links
        self.foreign: dict[Network, int] = {}
        self._routes: frozenset[Route] = frozenset()
        self.rules: frozenset[Network] = frozenset()

    def read(self) -> tuple[frozenset[Route], frozenset[Network]]:
        """A route goes with its link."""
        self._routes = frozenset(it for it in self._routes if it.link in self._links.mtus())
        return self._routes, self.rules

    def apply(self, routes: Collection[Route], rules: Collection[Network]) -> list[OverlayFailure]:
        own, own_rules = self.read()
        failures = []
        made: set[Route] = set()
        for each in routes:
            code = 0
            if each.link not in self._links.mtus():
                code = errno.ENODEV
            elif each.table == MAIN and self.foreign.get(each.destination, 17) != 17:
                code = errno.EEXIST
            if code:
                failures.append(
                    OverlayFailure(f"route {each.destination}", code, os.strerror(code))
                )
                continue
            made.add(each)
            if each.table == MAIN:
                self.foreign.pop(each.destination, None)
        wanted = {(each.destination, each.table) for each in set(routes) - made}
        made |= {each for each in own if (each.destination, each.table) in wanted}
        self.added += len(made - own)
        places = {(each.destination, each.table) for each in made}
        self.removed += sum((each.destination, each.table) not in places for each in own - made)
        self.writes += len(made ^ own) + len(frozenset(rules) ^ own_rules)
        self._routes, self.rules = frozenset(made), frozenset(rules)
        return failures

    def remove_left_by_kube_router(self, destinations: Iterable[Network]) -> int:
        left = [each for each in destinations if self.foreign.get(each) == 17]
        for each in left:
            self.writes += 1
            self.removed += 1
            del self.foreign[each]
        return len(left)

    def close(self) -> None:
        """Nothing is open."""


def fake_overlay() -> OverlayPorts:
    """Both, for one host without anything of ours."""
    links = FakeOverlayLinks()
    return OverlayPorts(links, FakeOverlayRoutes(links))


def _is_same(has: Tunnel, wanted: Tunnel) -> bool:
    """Whether the kernel takes one for the other, or they have one name."""
    if has.name == wanted.name:
        return True
    if Encap.VXLAN in (has.encap, wanted.encap):
        return has.encap is wanted.encap and has.name == VXLAN_LINKS[wanted.version]
    return (has.local, has.remote) == (wanted.local, wanted.remote)
