"""How large packets of pods may be, so that they fit when the overlay has wrapped them. Pure.

What a tunnel adds to a packet, in bytes:

    encapsulation    over IPv4                        over IPv6
    ipip, ip6tnl     20  IPv4 (RFC 2003)              40  IPv6 (RFC 2473), without the option that
                                                          limits nesting, which would add 8
    fou (as GUE)     32  20 + UDP 8 + GUE 4           52  40 + 8 + 4 (draft-ietf-intarea-gue)
    vxlan            50  20 + UDP 8 + VXLAN 8         70  40 + 8 + 8 + 14 (RFC 7348)
                         + inner Ethernet 14

kube-router leaves room for none of it. The room is left wherever an overlay is enabled, also where
all nodes are in one subnet today: a pod keeps the MTU that it was given when it started.
"""

from collections.abc import Mapping

from kube_router_py.kernel.overlay_ports import Encap
from kube_router_py.problem import Problem
from kube_router_py.routing.settings import RoutingSettings

_OUTER = {4: 20, 6: 40}
_INNER = {Encap.IPIP: 0, Encap.FOU: 8 + 4, Encap.VXLAN: 8 + 8 + 14}
# What every link has to carry: RFC 791 (a datagram of 576 must be taken), RFC 8200, 5.
_LEAST = {4: 576, 6: 1280}


def overhead(encap: Encap, version: int) -> int:
    """Bytes that a tunnel over an IP version adds to a packet."""
    return _OUTER[version] + _INNER[encap]


def tunnel_mtu(link_mtu: int, encap: Encap, version: int) -> int:
    """The MTU of a tunnel over a link, in bytes.

    IPv6 does without none of its 1280: where they do not fit, the outer packet is fragmented.
    """
    return max(link_mtu - overhead(encap, version), _LEAST[version])


def pod_mtu(
    link_mtus: Mapping[int, int], settings: RoutingSettings, node_name: str
) -> tuple[int | None, tuple[Problem, ...]]:
    """The MTU of the pods' bridge and of the CNI configuration, and what is wrong with it.

    ``link_mtus``: of the links with this node's address, by IP version. None: it is left alone,
    because ``--auto-mtu=false`` says so, or because no link has the node's address.
    """
    if not settings.auto_mtu:
        return None, ()
    encap = Encap(settings.overlay_encap)
    room = {
        version: link_mtus[version] - (overhead(encap, version) if settings.enable_overlay else 0)
        for version in settings.versions
        if version in link_mtus
    }
    if not room:
        reason = "no link of the node has its address: the MTU of pods is left as it is"
        return None, (Problem(f"Node {node_name}", "status.addresses", reason),)
    found, least = min(room.values()), max(_LEAST[version] for version in settings.versions)
    if found >= least:
        return found, ()
    reason = (
        f"the node's link leaves {found} bytes for packets of pods, {least} are needed: "
        "enlarge its MTU, or choose an --overlay-encap that adds less"
    )
    return least, (Problem(f"Node {node_name}", "", reason),)
