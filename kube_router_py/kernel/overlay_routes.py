"""Routes into tunnels and the rules that lead pods there: ours have protocol 75.

In table main they lead to the pods of other nodes, before what FRR learned (metric 20); in table
77, for what pods of this node send, to the nodes themselves. The rules carry priority 32763.
Routes and rules of others are never changed or removed. Two exceptions, both kube-router's
(protocol 17): one in the place of a route of ours is replaced, and the rest of those that lead to
pods are removed when asked for, since without a metric they would beat FRR's for good.
"""

import errno
import os
import socket
from collections.abc import Collection, Iterable

from kube_router_py.errors import KernelError
from kube_router_py.kernel import overlay_messages as om
from kube_router_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    message,
)
from kube_router_py.kernel.overlay_ports import MAIN, TABLE, Network, OverlayFailure, Route
from kube_router_py.kernel.vip_messages import OWN_PROTOCOL

_PUT = NLM_F_CREATE | NLM_F_REPLACE
_MAKE = NLM_F_CREATE | NLM_F_EXCL
_GONE = (errno.ENOENT, errno.ESRCH)
_NO_TABLE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)

_Step = tuple[str, int, int, bytes]  # subject, message type, flags, payload
_Place = tuple[Network, int]  # destination and table: where only one route can be


class NetlinkOverlayRoutes:
    """``overlay_ports.OverlayRoutes`` of the network namespace in which it was created."""

    def __init__(self) -> None:
        self.writes = self.added = self.removed = 0
        self._socket = NetlinkSocket(NETLINK_ROUTE, strict=True)

    def read(self) -> tuple[frozenset[Route], frozenset[Network]]:
        """Our routes and the sources of our rules."""
        names = dict(socket.if_nameindex())
        routes = (_route(each, names) for each in self._standing(OWN_PROTOCOL))
        rules = (
            om.decode_rule(payload)
            for version in om.FAMILY
            for payload in self._dump(om.RTM_GETRULE, om.rule_dump(version))
        )
        return frozenset(routes), frozenset(each for each in rules if each is not None)

    def apply(self, routes: Collection[Route], rules: Collection[Network]) -> list[OverlayFailure]:
        """Make exactly these stand, adding before removing (see ``overlay_ports``)."""
        own, own_rules = self.read()
        wanted = frozenset(routes)
        failures: list[OverlayFailure] = []
        indexes = {name: index for index, name in socket.if_nameindex()}
        missing = sorted(wanted - own, key=_order)
        taken = {(each.destination, each.table) for each in own}
        if missing:
            taken |= {(it.destination, it.table) for it in self._standing(om.KUBE_ROUTER_PROTOCOL)}
        steps: list[_Step] = []
        for each in missing:
            index = indexes.get(each.link, 0)
            if not index:
                what = f"there is no link {each.link}"
                failures.append(OverlayFailure(_subject(each), errno.ENODEV, what))
                continue
            flags = _PUT if (each.destination, each.table) in taken else _MAKE
            steps.append((_subject(each), om.RTM_NEWROUTE, flags, om.route(each, index)))
        steps += [
            (f"rule from {each}", om.RTM_NEWRULE, _MAKE, om.rule(each))
            for each in sorted(frozenset(rules) - own_rules, key=str)
        ]
        places: set[_Place] = {(each.destination, each.table) for each in wanted}
        steps += [
            (f"rule from {each}", om.RTM_DELRULE, 0, om.rule(each))
            for each in sorted(own_rules - frozenset(rules), key=str)
        ]
        # What another route took the place of has gone with that.
        steps += [
            (
                _subject(each),
                om.RTM_DELROUTE,
                0,
                om.any_route(each.destination, each.table, OWN_PROTOCOL),
            )
            for each in sorted(own - wanted, key=_order)
            if (each.destination, each.table) not in places
        ]
        return failures + self._send(steps)

    def remove_left_by_kube_router(self, destinations: Iterable[Network]) -> int:
        """Remove kube-router's routes (protocol 17, main) to these; returns their number."""
        wanted = frozenset(destinations)
        found = [
            each
            for each in self._standing(om.KUBE_ROUTER_PROTOCOL)
            if each.table == MAIN and each.destination in wanted
        ]
        steps: list[_Step] = [
            (
                f"route {each.destination}",
                om.RTM_DELROUTE,
                0,
                om.any_route(each.destination, MAIN, om.KUBE_ROUTER_PROTOCOL),
            )
            for each in found
        ]
        failures = self._send(steps)
        if failures:
            raise KernelError(f"{failures[0].subject}: {failures[0].message}", failures[0].errno)
        return len(found)

    def close(self) -> None:
        """Close the netlink socket. Routes and rules stay."""
        self._socket.close()

    def _standing(self, protocol: int) -> list[om.Standing]:
        found = (
            om.decode_route(payload)
            for version in om.FAMILY
            for table in om.TABLES
            for payload in self._dump(om.RTM_GETROUTE, om.route_dump(version, table, protocol))
        )
        return [each for each in found if each is not None and each.protocol == protocol]

    def _send(self, steps: list[_Step]) -> list[OverlayFailure]:
        first = self._socket.reserve(len(steps))
        self.writes += len(steps)
        refused = self._socket.batch(
            message(kind, flags, first + offset, payload)
            for offset, (_, kind, flags, payload) in enumerate(steps)
        )
        kinds = [step[1] for seq, step in enumerate(steps, first) if seq not in refused]
        self.added += kinds.count(om.RTM_NEWROUTE)
        self.removed += kinds.count(om.RTM_DELROUTE)
        failures = []
        for seq, code in sorted(refused.items()):
            subject, kind, _, _ = steps[seq - first]
            if kind in (om.RTM_DELROUTE, om.RTM_DELRULE) and code in _GONE:
                continue
            failures.append(OverlayFailure(subject, code, _explain(code)))
        return failures

    def _dump(self, kind: int, payload: bytes) -> list[bytes]:
        try:
            return self._socket.dump(kind, payload)
        except KernelError as error:
            if error.errno in _NO_TABLE:
                return []
            raise


def _route(found: om.Standing, names: dict[int, str]) -> Route:
    return Route(
        destination=found.destination,
        link=names.get(found.index, ""),
        table=found.table,
        gateway=found.gateway,
        source=found.source,
    )


def _order(route: Route) -> tuple[int, int, bytes, int]:
    network = route.destination
    return route.table, network.version, network.network_address.packed, network.prefixlen


def _subject(route: Route) -> str:
    table = f" in table {TABLE}" if route.table == TABLE else ""
    return f"route {route.destination}{table}"


def _explain(code: int) -> str:
    text = os.strerror(code)
    if code == errno.EEXIST:
        return f"{text}: a route of somebody else; delete it if it is not needed"
    if code == errno.EINVAL:
        return f"{text} (is the preferred source an address of this node?)"
    return text
