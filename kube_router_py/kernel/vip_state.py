"""How a VIP stands in the kernel, and what of it counts in which mode. Pure."""

import msgspec

from kube_router_py.proxy.model import Vip


class Standing(msgspec.Struct, frozen=True):
    """What the kernel holds for one VIP on the VIP link.

    ``source`` is the preferred source of our route: b"" for a route without, None for no route.
    ``kernel_route``: there is a route that the kernel made (or kube-router in its name).
    """

    address: bool = False
    source: bytes | None = None
    kernel_route: bool = False

    def value(self, vip: Vip, mode: str) -> bytes:
        """The preferred source as ``read_vips`` reports it; the VIP itself if it must be put."""
        if mode == "route":
            if self.address or self.kernel_route or self.source is None:
                return vip.address
            return self.source
        if not self.address or (self.source is None and not self.kernel_route):
            return vip.address
        if self.kernel_route or self.source is None or self.source == vip.address:
            return b""
        return self.source
