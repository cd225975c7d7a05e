"""Removing from this node's kernel what the agent left there, and nothing else.

Foreign chains, sets, links and routes stay; so do virtual servers inside ``--excluded-cidrs``, or
all of them where they are not this agent's service proxy's, and all kernel parameters, whose former
values nobody knows and on which others rely by now. A step that fails does not stop the others.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial

from msgspec import Struct

from kube_router_py.cleanup_routing import routing_steps
from kube_router_py.cleanup_steps import (
    NOT_OURS,
    OtherVariant,
    Step,
    destroy_sets,
    remove_chains,
    remove_from_other,
    removed,
)
from kube_router_py.errors import KernelError
from kube_router_py.firewall.frame import ACCEPT, is_marker_set, is_own_chain, is_own_set
from kube_router_py.kernel import kube_proxy
from kube_router_py.kernel.other_variant import remove_from_other_variant
from kube_router_py.kernel.ports import DsrPorts, HostPorts, TableRules
from kube_router_py.options import Options
from kube_router_py.proxy.model import IpvsOperation, Verb
from kube_router_py.proxy.packet_sets import marker_sets, owned_sets
from kube_router_py.proxy.service_rules import is_own_chain as is_proxy_chain
from kube_router_py.proxy.service_rules import marker_chains, owned_rules
from kube_router_py.proxy.sysctls import VIP_LINK
from kube_router_py.routing_part import OpenRouting
from kube_router_py.services import FAMILY_NAMES, is_inside


class Done(Struct, frozen=True):
    """One step: what it was about, and what came of it (why it failed)."""

    what: str
    result: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {'FAILED: ' if self.failed else ''}{self.result}"


Say = Callable[[Done], None]


def clean_up(
    options: Options,
    ports: HostPorts,
    open_dsr: Callable[[], DsrPorts],
    open_routing: OpenRouting,
    say: Say,
    *,
    running_mode: Callable[[], str | None] = kube_proxy.running_mode,
    other_variant: OtherVariant = remove_from_other_variant,
) -> bool:
    """Remove everything of every part; ``say`` is told of each step. True if all went.

    ``running_mode`` is that of ``kernel.kube_proxy``.
    """
    # Neighbors first: nobody is to send to where nothing is any more.
    complete = _clean_up_routing(options, open_routing, other_variant, say)
    # New connections stop first; a VIP goes after what it leads to.
    servers = "IPVS virtual servers", lambda: _remove_virtual_servers(options, ports, running_mode)
    is_empty = _carry_out((servers,), say)
    steps = _steps(options, ports, other_variant, keeps_markers=not is_empty)
    complete &= _carry_out((*steps, *_direct_return_steps(open_dsr)), say) and is_empty
    say(Done("kernel parameters (sysctl)", "left as they are"))
    return complete


def _clean_up_routing(
    options: Options, open_routing: OpenRouting, other_variant: OtherVariant, say: Say
) -> bool:
    try:
        ports = open_routing(lambda: None)
    except Exception as error:  # noqa: BLE001 - as in ``_carry_out``
        say(_failed("route controller", error))
        return False
    with closing(ports):
        return _carry_out(routing_steps(options, ports, other_variant), say)


def clean_up_kube_proxy(say: Say) -> bool:
    """Remove what kube-proxy left behind, and nothing else. True if all went."""
    if (mode := kube_proxy.running_mode()) is not None:
        why = f"it runs on this node (mode {mode}): stop it first; nothing was removed"
        say(Done("kube-proxy", why, failed=True))
        return False
    found = list(kube_proxy.leftovers(everything=True))
    if not found:
        say(Done("kube-proxy", "left nothing here"))
    return _carry_out(((what, partial(_removed, remove)) for what, remove in found), say)


def _removed(remove: Callable[[], None]) -> str:
    remove()
    return "removed"


def _failed(what: str, error: Exception) -> Done:
    is_known = isinstance(error, KernelError | OSError)
    return Done(what, str(error) if is_known else repr(error), failed=True)


def _carry_out(steps: Iterable[Step], say: Say) -> bool:
    complete = True
    for what, step in steps:
        try:
            say(Done(what, step()))
        except Exception as error:  # noqa: BLE001 - it must not keep the others from being removed
            complete = False
            say(_failed(what, error))
    return complete


def _direct_return_steps(open_dsr: Callable[[], DsrPorts]) -> Iterator[Step]:
    """Pods keep their tunnel devices, which no packet reaches any more: they go with the pods."""

    def remove_routing() -> str:
        ports = open_dsr()
        try:
            return removed(ports.routing, lambda: ports.routing.remove(FAMILY_NAMES))
        finally:
            ports.close()

    yield "policy routing of direct server return", remove_routing


def _steps(
    options: Options, ports: HostPorts, other_variant: OtherVariant, *, keeps_markers: bool
) -> Iterator[Step]:
    """``keeps_markers``: virtual servers stay, of which the next cleanup is to know whose they
    are."""
    # Both families, whichever are enabled now: an earlier agent may have had other flags.
    enabled = {"inet": options.enable_ipv4, "inet6": options.enable_ipv6}
    for family, must in enabled.items():
        for table, chains in owned_rules().items():
            yield (
                f"iptables {family} {table} {' '.join(chains)}",
                partial(remove_chains, ports, family, table, chains, marker_chains(), must=must),
            )
        yield f"iptables {family} filter, policies", partial(_open_up, ports, family, must=must)
    for what, is_own, markers in (
        ("service proxy", is_proxy_chain, marker_chains()),
        ("policies", is_own_chain, (ACCEPT,)),
    ):
        yield (
            f"iptables of the other variant, {what}",
            partial(remove_from_other, ports, other_variant, is_own, markers),
        )
    yield "ipsets", lambda: _destroy_proxy_sets(ports, keeps_markers=keeps_markers)
    yield "ipsets of policies", lambda: _destroy_policy_sets(ports)
    yield f"link {VIP_LINK}", lambda: _remove_link(ports, keeps_markers=keeps_markers)


def _remove_virtual_servers(
    options: Options, ports: HostPorts, running_mode: Callable[[], str | None]
) -> str:
    """They carry no owner: where our service proxy never ran they are another's; where it did, a
    kube-proxy that runs by now has adopted them, and deletes those it does not want."""
    if not _proxy_was_here(ports):
        return NOT_OURS
    if (mode := running_mode()) == "ipvs":
        return "left to kube-proxy, which runs here in mode ipvs"
    if mode == kube_proxy.UNKNOWN:
        raise KernelError(
            "left, as they may be those of the kube-proxy that runs here, whose mode cannot be "
            "found out: stop it for another cleanup, or see ipvsadm -Ln"
        )
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


def _open_up(ports: HostPorts, family: str, *, must: bool) -> str:
    """The chains of the firewall have names of policies and pods: they are looked up. Those of a
    kube-router, which may be the firewall beside this agent's proxy, are called alike."""
    try:
        if ACCEPT not in ports.iptables.counters(family, "filter", (ACCEPT,)):
            return NOT_OURS
        gone = ports.iptables.ensure(family, "filter", TableRules({}), is_own_chain)
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"
    return f"{len(gone)} chains and jumps removed"


def _has_marker_set(ports: HostPorts) -> bool:
    return any(ports.ipsets.read(name) is not None for name in marker_sets())


def _proxy_was_here(ports: HostPorts) -> bool:
    """The link goes last, and the sets may have been removed by hand."""
    return _has_marker_set(ports) or ports.links.owns_vip_link()


def _destroy_proxy_sets(ports: HostPorts, *, keeps_markers: bool) -> str:
    """Those of a kube-router, which may be the proxy beside this agent's firewall, are called
    alike."""
    if not _proxy_was_here(ports):
        return NOT_OURS

    def destroy() -> None:
        # Markers last, and only if the others went: as in ``_destroy_policy_sets``.
        markers = marker_sets()
        ports.ipsets.destroy(name for name in owned_sets() if name not in markers)
        if not keeps_markers:
            ports.ipsets.destroy(markers)

    return removed(ports.ipsets, destroy)


def _destroy_policy_sets(ports: HostPorts) -> str:
    standing = ports.ipsets.read_all(is_own_set)
    markers = [name for name in standing if is_marker_set(name)]
    if not markers:
        return NOT_OURS
    # Last, and only if the others went: without them the next cleanup would let those be.
    destroy_sets(ports, [name for name in standing if name not in markers])
    return destroy_sets(ports, markers)


def _remove_link(ports: HostPorts, *, keeps_markers: bool) -> str:
    if keeps_markers and not _has_marker_set(ports):
        return "left: only it tells the next cleanup whose the virtual servers are"
    return removed(ports.links, ports.links.remove_vip_link)
