"""What is said beside the answers: flags by which nobody enforces policies. Pure."""

from collections.abc import Iterable, Iterator

from kube_router_py.flow.legs import family_of
from kube_router_py.flow.model import Trace
from kube_router_py.flow.objects import FlowSettings

_NAMES = {"inet": "IPv4", "inet6": "IPv6"}


def flag_notes(settings: FlowSettings, traces: Iterable[Trace]) -> Iterator[str]:
    """Why nobody enforces what is told."""
    if not settings.run_firewall:
        yield "an agent with --run-firewall=false enforces none of this"
    judged = {family_of(each.source.address) for each in traces}
    for family, name in _NAMES.items():
        if family in judged and family not in settings.firewall_families:
            flag = f"--enable-{name.lower()}"
            yield f"an agent without {flag} does not enforce policies for {name}"
