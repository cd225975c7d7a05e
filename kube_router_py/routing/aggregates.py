"""Aggregates: one prefix outside in place of many Service addresses. Pure."""

from bisect import bisect_left
from collections.abc import Sequence, Set

from kube_router_py.problem import Problem
from kube_router_py.routing.model import Aggregate, Announcement, Network
from kube_router_py.routing.prefixes import prefix_order
from kube_router_py.routing.settings import RoutingSettings


def compile_aggregates(
    settings: RoutingSettings, services: Sequence[Announcement], peers: Set[str]
) -> tuple[tuple[Aggregate, ...], tuple[Problem, ...]]:
    """The aggregates that stand, sorted: a Service address inside is announced to somebody.

    ``services`` are the announcements of Services, sorted by prefix; ``peers`` the keys of the
    neighbors outside. An aggregate goes to all of them, also where the Services inside chose some:
    what a Service must not show outside does not belong into it.
    """
    if not settings.advertise_aggregate:
        return (), ()
    specific_to = tuple(sorted(peers & set(settings.advertise_specifics_to)))
    unknown = sorted(set(settings.advertise_specifics_to) - peers)
    reason = "{} is no configured router outside the cluster; it is left out"
    problems = [Problem("Flag --advertise-specifics-to", "", reason.format(n)) for n in unknown]
    standing = {
        network
        for network in settings.advertise_aggregate
        if network.version in settings.versions and _stands(network, services)
    }
    found = [
        Aggregate(prefix=network, specific_to=specific_to)
        for network in sorted(standing, key=prefix_order)
    ]
    return tuple(found), tuple(problems)


def _stands(network: Network, services: Sequence[Announcement]) -> bool:
    """Costs the search, and those inside that go to nobody."""
    index = bisect_left(services, prefix_order(network), key=lambda each: prefix_order(each.prefix))
    last = network.broadcast_address.packed
    while index < len(services):
        each = services[index]
        if each.prefix.version != network.version or each.prefix.network_address.packed > last:
            return False
        if each.peers != () and each.prefix.prefixlen > network.prefixlen:
            return True
        index += 1
    return False
