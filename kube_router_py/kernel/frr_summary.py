"""What FRR says of its sessions, as values: ``show bgp summary json``, ``show bfd peers json``.

Only the fields that are of use are decoded: 100 sessions cost well under a millisecond.
"""

from collections.abc import Mapping
from typing import TypeVar

from msgspec import DecodeError, Struct, ValidationError, field, json

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports_frr import BfdState, CommandResult, SessionState

BGP = "show bgp summary json"
BFD = "show bfd peers json"
NEIGHBORS = "show bgp neighbors json"

_Decoded = TypeVar("_Decoded")


class _Peer(Struct, rename="camel"):
    remote_as: int = 0
    state: str = ""
    peer_uptime_msec: int = 0
    pfx_rcd: int = 0
    pfx_snt: int = 0
    connections_established: int = 0
    connections_dropped: int = 0


class _Family(Struct, rename="camel"):
    rib_count: int = 0
    peers: dict[str, _Peer] = {}


class _Families(Struct):
    v4: _Family | None = field(default=None, name="ipv4Unicast")
    v6: _Family | None = field(default=None, name="ipv6Unicast")


class _Messages(Struct, frozen=True, rename="camel"):
    updates_recv: int = 0


class _Neighbor(Struct, rename="camel"):
    message_stats: _Messages = _Messages()


class _BfdPeer(Struct):
    peer: str = ""
    interface: str = ""
    status: str = ""
    uptime: int = 0


def sessions(reply: CommandResult) -> tuple[tuple[SessionState, ...], Mapping[int, int]]:
    """Sessions by neighbor and version, and how many prefixes bgpd knows of each version.

    Where no router is configured there are none. Raises KernelError for what is no summary.
    """
    if reply.code == 1 or reply.text.lstrip().startswith("%"):
        return (), {}
    found = _decoded(reply, _Families)
    states: list[SessionState] = []
    routes: dict[int, int] = {}
    for version, family in ((4, found.v4), (6, found.v6)):
        if family is None:
            continue
        routes[version] = family.rib_count
        for key, peer in family.peers.items():
            is_up = peer.state == "Established"
            states.append(
                SessionState(
                    neighbor=key,
                    version=version,
                    remote_as=peer.remote_as,
                    state=peer.state,
                    uptime_s=peer.peer_uptime_msec / 1000 if is_up else 0.0,
                    received=peer.pfx_rcd,
                    sent=peer.pfx_snt,
                    established=peer.connections_established,
                    dropped=peer.connections_dropped,
                )
            )
    return tuple(sorted(states, key=lambda each: (each.neighbor, each.version))), routes


def updates(reply: CommandResult) -> Mapping[str, int]:
    """UPDATE messages received since bgpd started, by neighbor. Raises KernelError."""
    if reply.code == 1 or reply.text.lstrip().startswith("%"):
        return {}
    # Besides neighbors there may be facts about the VRF.
    found = _decoded(reply, dict[str, _Neighbor | int | str | bool | None])
    return {
        key: each.message_stats.updates_recv
        for key, each in found.items()
        if isinstance(each, _Neighbor)
    }


def bfd_sessions(reply: CommandResult) -> tuple[BfdState, ...]:
    """BFD sessions by neighbor. Raises KernelError for what is no list of them."""
    found = (
        BfdState(_neighbor(each), each.status, float(each.uptime) if each.status == "up" else 0.0)
        for each in _decoded(reply, list[_BfdPeer])
    )
    return tuple(sorted(found, key=lambda each: each.neighbor))


def _neighbor(peer: _BfdPeer) -> str:
    """As bgpd has it: one behind an interface has its name, whatever its address there."""
    is_local = peer.peer.lower().startswith("fe80:")
    return peer.interface if is_local and peer.interface else peer.peer


def _decoded(reply: CommandResult, kind: type[_Decoded]) -> _Decoded:
    try:
        return json.decode(reply.text, type=kind)
    except (DecodeError, ValidationError) as error:
        raise KernelError(f"{reply.command}: {error}") from error
