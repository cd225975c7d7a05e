"""The kernel's routes for a router that runs GoBGP, which installs none itself.

GoBGP can have FRR's zebra do that; 3.10, Debian's, panics at what zebra 8.4 tells of interfaces
(``zapi.go``). So the lab asks it for its table every second or more and lays what has changed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.netns import Namespaces

Routes = dict[str, tuple[str, ...]]
"""Gateways by destination."""

POLL_S = 1.0
POLL_SHARE = 4.0
"""How much longer than the asking the pause after it is, at the least."""
_AS_PATH, _NEXT_HOP, _LOCAL_PREF, _MP_REACH = 2, 3, 5, 14
_DEFAULT_PREFERENCE = 100


def parse_rib(text: str) -> Routes:
    """What ``gobgp global rib -j`` says: for each destination the ways that are equally good.

    Equally good: the same local preference and length of the AS path (RFC 4271, 9.1.2.2). GoBGP's
    own routes have no gateway and are left out.
    """
    found: Routes = {}
    for destination, paths in json.loads(text or "{}").items():
        ways = [way for path in paths if (way := _way(path))]
        if ways:
            best = min(rank for rank, _ in ways)
            found[destination] = tuple(sorted({each for rank, each in ways if rank == best}))
    return found


def _way(path: Mapping[str, Any]) -> tuple[tuple[int, int], str] | None:
    attributes = {each["type"]: each for each in path.get("attrs") or []}
    next_hop = attributes.get(_NEXT_HOP) or attributes.get(_MP_REACH) or {}
    gateway = str(next_hop.get("nexthop") or "")
    if gateway in ("", "0.0.0.0", "::"):
        return None
    preference = attributes.get(_LOCAL_PREF, {}).get("value", _DEFAULT_PREFERENCE)
    segments = attributes.get(_AS_PATH, {}).get("as_paths") or []
    return (-preference, sum(len(each.get("asns") or ()) for each in segments)), gateway


def render_changes(before: Routes, after: Routes) -> str:
    """``ip -batch`` lines that lead from one to the other. Pure."""
    lines = [f"route del {gone} proto bgp" for gone in before if gone not in after]
    for destination, gateways in after.items():
        if before.get(destination) != gateways:
            ways = " ".join(f"nexthop via {gateway}" for gateway in gateways)
            lines.append(f"route replace {destination} proto bgp {ways}")
    return "".join(f"{line}\n" for line in lines)


class GobgpRoutes:
    """Keeps the kernel of namespace ``name`` at what gobgpd there has learned. Blocking."""

    def __init__(self, namespaces: Namespaces, name: str, networks: Sequence[str]) -> None:
        self._namespaces = namespaces
        self._name = name
        self._networks = tuple(networks)
        self._is_announced = False
        self._routes: Routes = {}

    def turn(self) -> None:
        """Ask once, and lay what has changed. Raises LabError, and may be called again."""
        if not self._is_announced:
            for network in self._networks:
                self._gobgp("global", "rib", "add", "-a", _family(network), network)
            self._is_announced = True
        found: Routes = {}
        for network in self._networks:
            try:
                found |= parse_rib(self._gobgp("global", "rib", "-j", "-a", _family(network)))
            except ValueError as error:
                raise LabError(f"gobgp said no JSON: {error}") from error
        if changes := render_changes(self._routes, found):
            self._namespaces.run(self._name, ["ip", "-batch", "-"], stdin=changes)
        self._routes = found

    def _gobgp(self, *words: str) -> str:
        return self._namespaces.run(self._name, ["gobgp", *words])


def _family(network: str) -> str:
    return "ipv6" if ":" in network else "ipv4"
