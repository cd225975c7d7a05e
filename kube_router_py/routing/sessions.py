"""Sessions between the nodes of the cluster. Pure.

Which nodes: all of them, or (``--nodes-full-mesh=false``) those of the same AS. With route
reflectors (RFC 4456) a client has sessions with servers only; a server has them with everyone and
reflects for those that are clients. Cluster ids are not compared, as in kube-router.

Differences from kube-router: there is one session for each address family that both nodes have
(there: one, over the primary addresses, for both); the neighbor has to be in our AS (there, with
full mesh, any is taken); graceful restart is always on, the hold time is 30 s
(90), BFD with ``--enable-node-bfd``; nothing is
learned but Pod CIDRs of known nodes; a node that is no client does not call those that are, since
they would not answer; and all of it follows the Nodes, where there a restart is needed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import Member
from kube_router_py.routing.bfd import flag_bfd
from kube_router_py.routing.identity import asn_of, usable_versions
from kube_router_py.routing.model import (
    Neighbor,
    Network,
    PrefixRange,
    Role,
    Session,
    Version,
    is_word,
)
from kube_router_py.routing.prefixes import collapse, range_order
from kube_router_py.routing.settings import RoutingSettings

# What a description holds of a node's name (FRR: 80 characters in all).
_NAME_SHOWN = 63
# FRR's own 9 s end sessions of a node that is merely busy; kube-router's 90 s lose what is sent to
# a dead one for a minute and a half. --enable-node-bfd is for those who want it in a second.
_HOLD_S = 30


def node_neighbors(
    own: Member, others: Iterable[Member], settings: RoutingSettings
) -> tuple[tuple[Neighbor, ...], list[Problem]]:
    """This node's neighbors among the nodes, sorted by key; ``others`` may hold itself, too."""
    asn = asn_of(own, settings)
    if not settings.enable_ibgp or asn is None:
        return (), []
    nodes = sorted((each for each in others if each.name != own.name), key=lambda node: node.name)
    bfd, problems = flag_bfd(settings) if settings.node_bfd else (None, [])
    versions = usable_versions(own, settings)
    has_servers = any(map(_is_server, nodes))
    mine = own.pod_networks
    everyone = {v: accepted((own, *nodes), v, mine) for v in versions} if has_servers else {}
    # By address: a session with one of ours cannot be, and one address is one node.
    owners = dict.fromkeys(own.addresses, own.name)
    found: list[Neighbor] = []
    for node in nodes:
        if asn_of(node, settings) != asn or not _is_peer(own, node):
            continue
        is_reachable = False
        for version in versions:
            address = node.address_of(version)
            if address is None:
                continue
            is_reachable = True
            if (owner := owners.setdefault(address, node.name)) != node.name:
                reason = (
                    f"{address} is also the address of node {owner}: there is no BGP session with "
                    f"{node.name} over it; correct the address of one of them"
                )
                problems.append(Problem(f"Node {node.name}", "status.addresses", reason))
                continue
            session = Session(
                role=Role.NODE,
                remote_as="internal",
                versions=(version,),
                port=settings.port,
                local_address=own.address_of(version),
                hold_s=_HOLD_S,
                bfd=bfd,
                graceful_restart=True,
                # Nobody but a server holds sessions with clients.
                reflector_client=node.reflector is not None and not _is_server(node),
                accept=everyone[version] if _is_server(node) else accepted((node,), version, mine),
                description=_description(node.name),
            )
            found.append(Neighbor(address=address, session=session))
        if not is_reachable and versions:
            families = " or ".join(f"IPv{version}" for version in versions)
            reason = (
                f"the node has no usable {families} address, which this node could reach it by: "
                "there is no BGP session with it; give it one"
            )
            problems.append(Problem(f"Node {node.name}", "status.addresses", reason))
    return tuple(sorted(found, key=lambda each: each.key)), problems


def accepted(
    nodes: Sequence[Member], version: Version, mine: Iterable[Network] = ()
) -> tuple[PrefixRange, ...]:
    """The Pod CIDRs of these nodes and no other prefixes, as few as can be, sorted.

    Neighboring CIDRs of one length become one range that holds the prefixes of that length. What is
    a part of one of ``mine`` is left out: it would lead packets to this node's pods elsewhere.
    """
    own = [each for each in mine if each.version == version]
    by_length: dict[int, list[Network]] = defaultdict(list)
    for node in nodes:
        for network in node.pod_networks:
            if network.version == version and not any(_is_part(network, of=it) for it in own):
                by_length[network.prefixlen].append(network)
    ranges = (
        PrefixRange(network, length, length)
        for length, networks in by_length.items()
        for network in collapse(networks, version)
    )
    return tuple(sorted(ranges, key=range_order))


def _is_part(network: Network, *, of: Network) -> bool:
    """Longer than the other prefix, and inside."""
    return network.prefixlen > of.prefixlen and network.network_address in of


def _is_peer(own: Member, node: Member) -> bool:
    """Whether these two hold a session, as far as route reflection is concerned."""
    return _is_server(own) or _is_server(node) or not (own.reflector or node.reflector)


def _is_server(node: Member) -> bool:
    return node.reflector is not None and node.reflector.is_server


def _description(name: str) -> str:
    shown = name[:_NAME_SHOWN]
    return f"node {shown}" if is_word(shown) else "node"
