"""Removing from this node's kernel what the agent left there, and nothing else.

Foreign chains, sets, links and routes stay; so do virtual servers inside ``--excluded-cidrs`` and
all kernel parameters, whose former values nobody knows and on which others rely by now. A step that
fails does not stop the others.
"""

from collections.abc import Callable, Iterator
from functools import partial

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.options import Options
from kube_router_py.proxy.model import IpvsOperation, Verb
from kube_router_py.proxy.packet_sets import owned_sets
from kube_router_py.proxy.service_rules import owned_rules
from kube_router_py.proxy.sysctls import VIP_LINK
from kube_router_py.services import is_inside


def clean_up(options: Options, ports: HostPorts, say: Callable[[str], None]) -> bool:
    """Remove everything of the service proxy; ``say`` gets a line per step. True if all went."""
    complete = True
    for what, step in _steps(options, ports):
        try:
            say(f"{what}: {step()}")
        except KernelError as error:
            complete = False
            say(f"{what}: FAILED: {error}")
    say("kernel parameters (sysctl): left as they are")
    return complete


def _steps(options: Options, ports: HostPorts) -> Iterator[tuple[str, Callable[[], str]]]:
    # New connections stop first; a VIP goes after what it leads to.
    yield "IPVS virtual servers", lambda: _remove_virtual_servers(options, ports)
    # Both families, whichever are enabled now: an earlier agent may have had other flags.
    enabled = {"inet": options.enable_ipv4, "inet6": options.enable_ipv6}
    for family, must in enabled.items():
        for table, chains in owned_rules().items():
            yield (
                f"iptables {family} {table} {' '.join(chains)}",
                partial(_remove_chains, ports, family, table, chains, must=must),
            )
    yield "ipsets", lambda: _destroy_sets(ports, owned_sets())
    yield f"link {VIP_LINK}", lambda: _remove_link(ports)


def _remove_virtual_servers(options: Options, ports: HostPorts) -> str:
    keys = sorted(ports.ipvs.read())
    excluded = [key for key in keys if is_inside(key.address, options.excluded_cidrs)]
    ours = [key for key in keys if key not in set(excluded)]
    failures = ports.ipvs.apply([IpvsOperation(Verb.DELETE_VIRTUAL_SERVER, key) for key in ours])
    if failures:
        raise KernelError(
            f"{len(failures)} of {len(ours)} stay, {failures[0].operation.key} for one: "
            f"{failures[0].message}",
            failures[0].errno,
        )
    kept = f", {len(excluded)} in --excluded-cidrs kept" if excluded else ""
    return f"{len(ours)} removed{kept}"


def _remove_chains(
    ports: HostPorts, family: str, table: str, chains: tuple[str, ...], *, must: bool
) -> str:
    try:
        ports.iptables.remove(family, table, chains)
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"
    return "removed"


def _destroy_sets(ports: HostPorts, names: tuple[str, ...]) -> str:
    ports.ipsets.destroy(names)
    return "removed"


def _remove_link(ports: HostPorts) -> str:
    ports.links.remove_vip_link()
    return "removed"
