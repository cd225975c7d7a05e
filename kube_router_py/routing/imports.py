"""What is learned from nobody: default routes, Services' addresses, what the Node says. Pure.

A default route from outside takes the node off its network, and a route to a Service address sends
away what is served here. FRR 8.4 compares every entry of a prefix-list with every other one when
it reads them (1000 take 4.5 s, and no session is served meanwhile), so that lists are kept short.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_network

from kube_router_py.problem import Problem
from kube_router_py.routing.model import Address, Network, PrefixRange
from kube_router_py.routing.prefixes import collapse, host_prefix, prefix_order, range_order
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import annotation_field, shown
from kube_router_py.routing.values import parse_cidr

CUSTOM_ANNOTATION = "kube-router.io/node.bgp.customimportreject"

# Of one IP version, of Service addresses outside the ranges and of the Node's own list each.
MOST = 256

_DEFAULTS = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_CUSTOM_FIELD = annotation_field(CUSTOM_ANNOTATION)


def service_ranges(settings: RoutingSettings) -> tuple[Network, ...]:
    """The ranges of Services' addresses: all of them, but pools in many small pieces, and what was
    taken out of pools. Of the pieces the largest ones count; what lies in other ranges is refused
    address by address."""
    retired = frozenset(settings.retired_ranges)
    balanced = [each for each in settings.load_balancer_ranges if each not in retired]
    few: list[Network] = []
    for version in (4, 6):
        own = [each for each in balanced if each.version == version]
        if len(own) > MOST:
            own = sorted(own, key=lambda n: (n.prefixlen, prefix_order(n)))[:MOST]
        few += own
    return (*settings.cluster_ranges, *settings.external_ranges, *few)


def compile_refused(
    settings: RoutingSettings, node: str, pods: Sequence[Network] = (), custom: str | None = None
) -> tuple[tuple[PrefixRange, ...], tuple[Problem, ...]]:
    """The prefixes that no neighbor may teach the node of this name, whatever Services there are.

    ``pods`` are the Pod CIDRs of all nodes, ``custom`` is the Node's annotation: CIDRs with commas
    between, which are refused with all that is inside. Items that are no CIDR are told and left
    out; the others count.
    """
    problems: list[Problem] = []
    found: set[PrefixRange] = {PrefixRange(each, 0, 0) for each in _DEFAULTS}
    found.update(_of_ranges(settings, pods))
    found.update(PrefixRange(n, n.prefixlen, n.prefixlen) for n in settings.advertise_aggregate)
    found.update(_of_annotation(custom, f"Node {node}", problems))
    enabled = [each for each in found if each.network.version in settings.versions]
    return tuple(sorted(enabled, key=range_order)), tuple(sorted(problems))


@lru_cache(maxsize=2)
def refused_addresses(
    addresses: tuple[Address, ...], node: str
) -> tuple[tuple[PrefixRange, ...], tuple[Problem, ...]]:
    """The same for addresses of Services that lie in no range of flags and pools.

    Each is refused by itself; where they are many, networks that neighbors fill, and still no
    other address. Remembers what it said: it is asked again with every change of any Service.
    """
    found: list[PrefixRange] = []
    problems: list[Problem] = []
    for version in (4, 6):
        own = [host_prefix(each) for each in addresses if each.version == version]
        if len(own) > MOST:
            # The large ones first: they hold most of the addresses, if not all are to be had.
            own = sorted(collapse(own, version), key=lambda n: (n.prefixlen, prefix_order(n)))
        if len(own) > MOST:
            reason = (
                f"{len(addresses)} Service addresses lie in no range of flags and address pools, "
                "and routes to some of them can be learned from outside; name their range by "
                "--service-external-ip-range or --loadbalancer-ip-range"
            )
            problems.append(Problem(f"Node {node}", "", reason))
        found += (PrefixRange(n, n.max_prefixlen, n.max_prefixlen) for n in own[:MOST])
    return tuple(found), tuple(problems)


def _of_ranges(settings: RoutingSettings, pods: Sequence[Network]) -> Iterable[PrefixRange]:
    """All inside the ranges; in a range that nodes have Pod CIDRs in, single addresses only.

    ``--service-external-ip-range=10.0.0.0/8`` must not refuse the routes between nodes.
    """
    for each in service_ranges(settings):
        is_shared = not each.prefixlen or any(each.overlaps(pod) for pod in pods)
        shortest = each.max_prefixlen if is_shared else each.prefixlen
        yield PrefixRange(each, shortest, each.max_prefixlen)


def _of_annotation(
    text: str | None, subject: str, problems: list[Problem]
) -> Iterable[PrefixRange]:
    if text is None or not text.strip():
        return
    by_length: dict[tuple[int, int], list[Network]] = defaultdict(list)
    wrong: list[str] = []
    for item in text.split(","):
        try:
            network = parse_cidr(item.strip())
        except ValueError:
            wrong.append(item.strip())
        else:
            by_length[network.version, network.prefixlen].append(network)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        reason = f"{shown(wrong[0])}{more} is no CIDR; the others are refused"
        problems.append(Problem(subject, _CUSTOM_FIELD, reason))
    left = {4: MOST, 6: MOST}
    for version, length in sorted(by_length):
        # Neighbors of one length become one entry that admits no shorter prefix than they did.
        own = collapse(by_length[version, length], 4 if version == 4 else 6)
        if len(own) > left[version]:
            reason = f"there are more than {MOST} CIDRs of IPv{version}; the shortest ones count"
            problems.append(Problem(subject, _CUSTOM_FIELD, reason))
        taken = sorted(own, key=prefix_order)[: left[version]]
        left[version] -= len(taken)
        for network in taken:
            yield PrefixRange(network, length, network.max_prefixlen)
