"""The pod sides of direct server return on this node, as far as we know, and what changes them."""

import logging
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct, field

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.ports import PodTunnel, PodTunnels
from kube_router_py.proxy.model import Vip
from kube_router_py.services import FAMILY_NAMES

_log = logging.getLogger(__name__)

Needed = Mapping[tuple[str, int], frozenset[bytes]]
"""VIPs by (pod UID, family)."""


class _Side(Struct):
    """The tunnels of one pod by family, and the MTU of its link there. Those not ``verified`` stood
    when they were last looked at. Without tunnels: a pod that had some before the start."""

    tunnels: dict[int, PodTunnel] = field(default_factory=dict)
    mtu: dict[int, int] = field(default_factory=dict)
    verified: set[int] = field(default_factory=set)


class PodSides:
    """Pods by UID. Several VIPs share a pod's device, whatever Services they are of."""

    def __init__(self) -> None:
        self._pods: dict[str, _Side] = {}

    def __bool__(self) -> bool:
        return bool(self._pods)

    def adopt(self, uids: Iterable[str]) -> None:
        """Take note of pods that had a pod side before the start: what is not wanted will go."""
        for uid in uids:
            self._pods.setdefault(uid, _Side())

    def doubt(self) -> None:
        """Take nothing for granted: every pod side is looked at when it is needed next."""
        for side in self._pods.values():
            side.verified.clear()

    def ensure(self, port: PodTunnels, uid: str, address: bytes, vip: Vip) -> None:
        """Make one pod answer for a VIP, and for those it answers for already.

        Raises what keeps it from it.
        """
        family = vip.family
        side = self._pods.get(uid) or _Side()
        tunnel = side.tunnels.get(family)
        known = tunnel.vips if tunnel and tunnel.address == address else frozenset()
        if family in side.verified and vip.address in known:
            return
        wanted = PodTunnel(family, address, known | {vip.address})
        try:
            side.mtu[family] = port.ensure(uid, wanted)
        except KubeRouterError:
            side.tunnels.pop(family, None)
            raise
        side.tunnels[family] = wanted
        side.verified.add(family)
        self._pods[uid] = side

    def prune(
        self, port: PodTunnels, needed: Needed, *, everything: bool, spare_adopted: bool = False
    ) -> None:
        """Remove VIPs and tunnels that are not needed; with ``everything`` also unknown VIPs.

        ``spare_adopted``: pods known only from before the start keep theirs for now.
        """
        for uid, side in list(self._pods.items()):
            was_adopted = not side.tunnels
            if was_adopted and spare_adopted:
                continue
            for family in FAMILY_NAMES:
                tunnel = side.tunnels.get(family)
                vips = needed.get((uid, family), frozenset())
                if not vips and (tunnel is not None or was_adopted or everything):
                    self._remove(port, uid, side, family)
                elif tunnel is not None and vips and (tunnel.vips != vips or everything):
                    self._narrow(port, uid, side, PodTunnel(family, tunnel.address, vips))
            if not side.tunnels and not any((uid, each) in needed for each in FAMILY_NAMES):
                del self._pods[uid]

    def uid_at(self, family: int, address: bytes) -> str | None:
        """The pod that answers at an address, if its pod side stands."""
        for uid, side in self._pods.items():
            tunnel = side.tunnels.get(family)
            if tunnel is not None and tunnel.address == address:
                return uid
        return None

    def addresses(self) -> Iterator[tuple[int, bytes]]:
        """(family, address) of every tunnel."""
        for side in self._pods.values():
            for family, tunnel in side.tunnels.items():
                yield family, tunnel.address

    def mtu(self) -> dict[Vip, int]:
        """The smallest MTU of the pods that answer for a VIP."""
        found: dict[Vip, int] = {}
        for side in self._pods.values():
            for family, tunnel in side.tunnels.items():
                for address in tunnel.vips:
                    vip = Vip(family, address)
                    found[vip] = min(found.get(vip, side.mtu[family]), side.mtu[family])
        return found

    def ready(self) -> dict[str, list[str]]:
        """The VIPs (as text, sorted) that each pod answers for."""
        return {
            uid: sorted(
                str(Vip(family, vip))
                for family, tunnel in side.tunnels.items()
                for vip in tunnel.vips
            )
            for uid, side in self._pods.items()
        }

    def _remove(self, port: PodTunnels, uid: str, side: _Side, family: int) -> None:
        """A pod that cannot be visited any more is most likely gone, and its devices with it."""
        try:
            port.remove(uid, (family,))
        except KubeRouterError as error:
            _log.info("pod side not removed pod_uid=%s reason=%r", uid, str(error))
        side.tunnels.pop(family, None)

    def _narrow(self, port: PodTunnels, uid: str, side: _Side, tunnel: PodTunnel) -> None:
        try:
            port.ensure(uid, tunnel, only=True)
        except KubeRouterError as error:
            _log.warning("pod side not narrowed pod_uid=%s reason=%r", uid, str(error))
            return  # the next full turn tries again
        side.tunnels[tunnel.family] = tunnel
