"""Telling at once when somebody, or a link that went down, took away what the overlay put there.

Of interest are: links that are watched, when they come, go, go up or down, or change their MTU;
routes and rules of protocol 75 that are deleted; routes to what we route, when somebody else puts
one; entries of neighbours beyond vxlan that are deleted. A link that goes down takes its IPv4
routes with it without a word about them. What the agent itself deletes is told, too: the next turn
then finds nothing to do.
"""

import socket
from collections.abc import Callable, Collection
from typing import Final

from msgspec import Struct

from kube_router_py.kernel import overlay_messages as om
from kube_router_py.kernel.monitor import NetlinkMonitor
from kube_router_py.kernel.overlay_ports import MAIN, TABLE, VXLAN_LINKS, Network, is_own_name
from kube_router_py.kernel.vip_messages import OWN_PROTOCOL

_RTNLGRP_LINK, _RTNLGRP_NEIGH = 1, 3
_RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV4_RULE = 7, 8
_RTNLGRP_IPV6_ROUTE, _RTNLGRP_IPV6_RULE = 11, 19
_GROUPS: Final = (
    *(_RTNLGRP_LINK, _RTNLGRP_NEIGH),
    *(_RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV4_RULE, _RTNLGRP_IPV6_ROUTE, _RTNLGRP_IPV6_RULE),
)
# Header and a few attributes; shorter ones tell nothing.
_LEAST_BYTES = 16


class Watched(Struct, frozen=True):
    """What else matters than links and routes that are ours by name and number: other links (the
    node's, the pods' bridge), and the destinations that ours lead to in table main."""

    links: frozenset[str] = frozenset()
    destinations: frozenset[Network] = frozenset()


class OverlayMonitor(NetlinkMonitor):
    """Calls ``changed`` in its own thread for the namespace of the thread that creates it.

    ``watched`` may be replaced at any time. Raises KernelError where the kernel cannot be listened
    to.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__("overlay-monitor", _GROUPS, changed)
        self.watched = Watched()
        # By index: name, whether it is up, and MTU.
        self._links: dict[int, tuple[str, bool, int]] = {}

    def watch(self, links: Collection[str], destinations: Collection[Network]) -> None:
        """Replace what is watched."""
        self.watched = Watched(frozenset(links), frozenset(destinations))

    def forget(self) -> None:
        self._links.clear()

    def note(self, kind: int, data: bytes, start: int, end: int) -> bool:
        if end - start < _LEAST_BYTES:
            return False
        if kind in (om.RTM_NEWLINK, om.RTM_DELLINK):
            return self._note_link(kind, data[start:end])
        if kind in (om.RTM_NEWROUTE, om.RTM_DELROUTE):
            return self._note_route(kind, data[start:end])
        if kind == om.RTM_DELRULE:
            return om.decode_rule(data[start:end]) is not None
        if kind == om.RTM_DELNEIGH:
            return _is_of_vxlan(data[start:end])
        return False

    def _note_link(self, kind: int, payload: bytes) -> bool:
        device = om.decode_device(payload)
        # A bridge tells of its ports by messages of its own family, which lack most.
        if payload[0] != socket.AF_UNSPEC or not device.name:
            return False
        if not (is_own_name(device.name) or device.name in self.watched.links):
            return False
        if kind == om.RTM_DELLINK:
            self._links.pop(device.index, None)
            return True
        now = device.name, device.is_up, device.mtu
        before = self._links.get(device.index)
        self._links[device.index] = now
        return now != before

    def _note_route(self, kind: int, payload: bytes) -> bool:
        table, protocol = payload[4], payload[5]
        if table not in (MAIN, TABLE):
            return False
        if kind == om.RTM_DELROUTE:
            return protocol == OWN_PROTOCOL
        if protocol == OWN_PROTOCOL or not self.watched.destinations:
            return False
        found = om.decode_route(payload)
        # FRR puts its routes there, too, of a greater metric: they take nobody's place.
        return (
            found is not None
            and found.metric == om.METRIC[found.destination.version]
            and found.destination in self.watched.destinations
        )


def _is_of_vxlan(payload: bytes) -> bool:
    """Whether an entry is a node's beyond vxlan; those of multicast addresses the kernel makes."""
    found = om.decode_entry(payload)
    if found is None or found.address.is_multicast:
        return False
    try:
        return socket.if_indextoname(found.index) in VXLAN_LINKS.values()
    except OSError:
        return False
