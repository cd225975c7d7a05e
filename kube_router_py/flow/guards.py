"""Who gets no further than the address of a Service: traffic policies and source ranges. Pure."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from kube_router_py.flow.model import Outcome
from kube_router_py.flow.services import Met
from kube_router_py.flow.source_nat import SourceNat
from kube_router_py.proxy.model import Guard


def refusal(met: Met, source: str, nat: SourceNat) -> tuple[Outcome, str]:
    """What becomes of a client at the Service's address, and why; ``allowed`` and ``""`` for one
    who gets on."""
    guard = met.group.plain[met.step.key].guards.get(met.server)
    if guard is None:
        return "allowed", ""
    direct = met.direct
    if direct is not None:
        # Rules that mark packets to it take the place of the guard: they know sources only.
        if direct.sources is None or _is_inside(source, direct.sources):
            return "allowed", ""
        return _why(met, guard, source, is_cut_off=guard.everyone or guard.outsiders)
    if guard.everyone or (guard.outsiders and not nat.is_of_cluster(source)):
        return _why(met, guard, source, is_cut_off=True)
    if guard.source_ranges is not None and not _is_inside(source, guard.source_ranges):
        return _why(met, guard, source, is_cut_off=False)
    return "allowed", ""


def _why(met: Met, guard: Guard, source: str, *, is_cut_off: bool) -> tuple[Outcome, str]:
    if not is_cut_off:
        ranges = ", ".join(guard.source_ranges or ()) or "no network of this family"
        return "denied", f"loadBalancerSourceRanges admit {ranges}, and not {source}"
    field = "internalTrafficPolicy" if guard.everyone else "externalTrafficPolicy"
    whom = "" if guard.everyone else "clients outside of the cluster: "
    return (
        "unreachable",
        f"{whom}{field} is Local, and no endpoint on node {met.step.node} can be used; dropped",
    )


def _is_inside(source: str, networks: Iterable[str]) -> bool:
    address = ip_address(source)
    return any(
        address in each for each in map(ip_network, networks) if each.version == address.version
    )
