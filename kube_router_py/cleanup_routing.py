"""Removing what the route controller left on this node: FRR's daemons, tunnels, egress.

The bridge and the CNI file stay: pods are on the one, and new ones are made by the other.
"""

from collections.abc import Iterator
from functools import partial

from kube_router_py.cleanup_steps import (
    NOTHING,
    OtherVariant,
    Step,
    destroy_sets,
    remove_chains,
    remove_from_other,
    removed,
)
from kube_router_py.errors import KernelError
from kube_router_py.kernel.table_names import forget_tables
from kube_router_py.options import Options
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing.egress import is_own_chain, owned_rules, owned_sets
from kube_router_py.routing.overlay_apply import remove_overlay


def routing_steps(
    options: Options, ports: RoutingPorts, other_variant: OtherVariant
) -> Iterator[Step]:
    """In order: neighbors are told first, so that nobody sends to where no way is any more."""
    yield "FRR's daemons", partial(_stop_daemons, options, ports)
    yield "tunnels, their routes and rules", partial(_remove_overlay, ports)
    enabled = {"inet": options.enable_ipv4, "inet6": options.enable_ipv6}
    for family, must in enabled.items():
        for table, chains in owned_rules().items():
            what = f"iptables {family} {table} {' '.join(chains)}"
            yield what, partial(remove_chains, ports.host, family, table, chains, must=must)
    yield (
        "iptables of the other variant, pod network",
        partial(remove_from_other, ports.host, other_variant, is_own_chain),
    )
    yield "ipsets of the pod network", partial(destroy_sets, ports.host, owned_sets())
    yield "names of routing tables", _forget_names


def _stop_daemons(options: Options, ports: RoutingPorts) -> str:
    if options.frr_mode == "external":
        return "left as they are (--frr-mode=external), with their configuration"
    ports.frr.stop()
    return "none runs any more, and the routes that they had learned are gone"


def _remove_overlay(ports: RoutingPorts) -> str:
    def remove() -> None:
        problems = remove_overlay(ports.overlay, "this node")
        if problems:
            raise KernelError("; ".join(f"{each.field}: {each.reason}" for each in problems))

    return removed(ports.overlay, remove)


def _forget_names() -> str:
    return "removed" if forget_tables() else NOTHING
