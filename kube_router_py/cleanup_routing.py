"""Removing what the route controller left on this node: FRR's daemons, tunnels, egress."""

from collections.abc import Callable, Iterator
from functools import partial

from kube_router_py.errors import KernelError
from kube_router_py.kernel.table_names import forget_tables
from kube_router_py.options import Options
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing.egress import owned_rules, owned_sets
from kube_router_py.routing.overlay_apply import remove_overlay

Step = tuple[str, Callable[[], str]]


def routing_steps(options: Options, ports: RoutingPorts) -> Iterator[Step]:
    """In order: neighbors are told first, so that nobody sends to where no way is any more."""
    yield "FRR's daemons", partial(_stop_daemons, options, ports)
    yield "tunnels, their routes and rules", partial(_remove_overlay, ports)
    enabled = {"inet": options.enable_ipv4, "inet6": options.enable_ipv6}
    for family, must in enabled.items():
        for table, chains in owned_rules().items():
            what = f"iptables {family} {table} {' '.join(chains)}"
            yield what, partial(_remove_chains, ports, family, table, chains, must=must)
    yield "ipsets of the pod network", partial(_destroy_sets, ports)
    yield "names of routing tables", _forget_names


def _stop_daemons(options: Options, ports: RoutingPorts) -> str:
    if options.frr_mode == "external":
        return "left as they are (--frr-mode=external), with their configuration"
    ports.frr.stop()
    return "ended, with the routes that they had learned"


def _remove_overlay(ports: RoutingPorts) -> str:
    problems = remove_overlay(ports.overlay, "this node")
    if problems:
        raise KernelError("; ".join(f"{each.field}: {each.reason}" for each in problems))
    return "removed"


def _remove_chains(
    ports: RoutingPorts, family: str, table: str, chains: tuple[str, ...], *, must: bool
) -> str:
    try:
        ports.host.iptables.remove(family, table, chains)
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"
    return "removed"


def _destroy_sets(ports: RoutingPorts) -> str:
    ports.host.ipsets.destroy(owned_sets())
    return "removed"


def _forget_names() -> str:
    forget_tables()
    return "removed"
