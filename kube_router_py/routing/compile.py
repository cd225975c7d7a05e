"""Everything that this node's FRR is told, joined from its parts. Pure.

    Nodes, flags, annotations -> Neighborhood   (who we are, who our neighbors are)
    Services, slices          -> Announcements  (an index, kept by one Service at a time)
    both, and the time        -> RouterConfig   (``compile_router``)

A ``Neighborhood`` changes with Nodes and flags only, so that whoever keeps it pays nothing for them
when an endpoint changes. Its ``peers`` are what the index takes by ``follow_peers``.
"""

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence, Set

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.problem import Problem
from kube_router_py.routing.aggregates import compile_aggregates
from kube_router_py.routing.annotations import (
    Member,
    NodeAnnotations,
    parse_annotations,
    parse_member,
)
from kube_router_py.routing.announcements import pod_announcements
from kube_router_py.routing.drain import Stage
from kube_router_py.routing.identity import Identity, compile_identity, usable_versions
from kube_router_py.routing.imports import CUSTOM_ANNOTATION, compile_refused, refused_addresses
from kube_router_py.routing.model import (
    Address,
    Announcement,
    ListenRange,
    Neighbor,
    PrefixRange,
    Role,
    RouterConfig,
)
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.peers import Externals, external_neighbors, external_peers
from kube_router_py.routing.prefixes import prefix_order, range_order
from kube_router_py.routing.sessions import node_neighbors
from kube_router_py.routing.settings import RoutingSettings


class Neighborhood(Struct, frozen=True, kw_only=True):
    """What Nodes, flags and Secrets say of this node's BGP, whatever Services there are.

    No ``identity``: there is no BGP on this node, and ``problems`` say why. ``refuse`` is what must
    not be learned, but for the Services' addresses outside of the flags' ranges.
    """

    own: Member
    identity: Identity | None = None
    annotations: NodeAnnotations = NodeAnnotations()
    neighbors: tuple[Neighbor, ...] = ()
    listen_ranges: tuple[ListenRange, ...] = ()
    pods: tuple[Announcement, ...] = ()
    refuse: tuple[PrefixRange, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def peers(self) -> frozenset[str]:
        """The keys of neighbors outside, as Services may choose among them; ranges of dynamic
        neighbors by their network."""
        both = (
            *((each.key, each.session) for each in self.neighbors),
            *((str(each.network), each.session) for each in self.listen_ranges),
        )
        return frozenset(key for key, session in both if session.role is Role.EXTERNAL)


def compile_neighborhood(
    view: NodeView,
    members: Iterable[Member],
    settings: RoutingSettings,
    *,
    password_list: str = "",
    secrets: Mapping[SecretRef, bytes] | None = None,
) -> Neighborhood:
    """Who this node is and who its neighbors are.

    ``view`` is this node, ``members`` are all nodes (``annotations.parse_member``; itself among
    them or not), ``password_list`` is the content of ``--peer-router-passwords-file``, ``secrets``
    that of what ``peers.secret_refs`` asks for.
    """
    own, problems = parse_member(view)
    annotations, found = parse_annotations(view)
    problems += found
    identity, found = compile_identity(own, annotations, settings)
    problems += found
    others = [each for each in members if each.name != own.name]
    inside: tuple[Neighbor, ...] = ()
    outside = Externals()
    if identity is not None:
        inside, found = node_neighbors(own, others, settings)
        problems += found
        specs, found = external_peers(view, settings, password_list)
        problems += found
        keys = frozenset(each.key for each in inside)
        outside, found = external_neighbors(own, identity.asn, specs, settings, secrets, nodes=keys)
        problems += found
    pods, told = pod_announcements(own.pod_networks, settings, own.name)
    problems += told
    networks = {network for member in (own, *others) for network in member.pod_networks}
    refuse, told = compile_refused(
        settings, own.name, sorted(networks, key=prefix_order), view.annotation(CUSTOM_ANNOTATION)
    )
    problems += told
    return Neighborhood(
        own=own,
        identity=identity,
        annotations=annotations,
        neighbors=tuple(sorted((*inside, *outside.neighbors), key=lambda each: each.key)),
        listen_ranges=outside.listen_ranges,
        pods=pods,
        refuse=refuse,
        problems=tuple(sorted(set(problems))),
    )


def compile_router(
    settings: RoutingSettings,
    around: Neighborhood,
    services: Sequence[Announcement] = (),
    outside_ranges: tuple[Address, ...] = (),
    *,
    stage: Stage = Stage.SERVING,
    local: Set[Address] = frozenset(),
) -> tuple[RouterConfig | None, tuple[Problem, ...]]:
    """What FRR is told, or None where this node has no BGP; and all that is wrong, sorted, but for
    what is wrong with Services, which their index tells.

    ``services`` and ``outside_ranges`` are those of ``Announcements``; ``stage`` is how far the
    node is drained; ``local`` are the addresses on this node's links: learned routes name one of
    them as their source only if it is there, since the kernel refuses others.
    """
    identity, own = around.identity, around.own
    if identity is None:
        return None, around.problems
    problems = set(around.problems)
    # In a drain Services go, while the Pods that are left go on being reached.
    served = services if stage is not Stage.WITHDRAWN else ()
    aggregates, found = compile_aggregates(settings, served, around.peers)
    problems.update(found)
    addresses, found = refused_addresses(outside_ranges, own.name)
    problems.update(found)
    announcements = list(served)
    for each in around.pods:
        insort(announcements, each, key=_announcement_order)
    sources = [own.address_of(version) for version in usable_versions(own, settings)]
    config = RouterConfig(
        asn=identity.asn,
        router_id=identity.router_id,
        listen=identity.listen,
        port=settings.port,
        cluster_id=identity.cluster_id,
        graceful_restart=settings.graceful_restart,
        maximum_paths=settings.maximum_paths,
        neighbors=around.neighbors,
        listen_ranges=around.listen_ranges,
        announcements=tuple(announcements),
        aggregates=aggregates,
        announce_pods_outside=settings.advertise_pod_cidr,
        communities=around.annotations.communities,
        prepend=around.annotations.prepend,
        refuse=tuple(sorted({*around.refuse, *addresses}, key=range_order)),
        source=tuple(each for each in sources if each is not None and each in local),
        drain=stage is not Stage.SERVING,
    )
    return config, tuple(sorted(problems))


def _announcement_order(announcement: Announcement) -> tuple[int, bytes, int]:
    return prefix_order(announcement.prefix)
