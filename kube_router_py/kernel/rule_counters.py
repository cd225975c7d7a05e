"""Packets that rules counted, for whoever asks beside the loops: nothing here is changed."""

from collections.abc import Sequence

from kube_router_py.errors import KernelError
from kube_router_py.kernel.iptables_counters import parse_counters
from kube_router_py.kernel.iptables_variant import program_name
from kube_router_py.kernel.program import run

# A scrape waits for it, for which Prometheus has 10 s by default, and everything else in it, too.
_TIMEOUT_S = 4.0


def read_packets(
    variant: str, family: str, chains: Sequence[str], table: str = "filter"
) -> dict[str, list[int]]:
    """Of each rule of these chains; those that do not exist are left out. ``variant`` as
    ``ports.Iptables`` has it. For any thread: libiptc, which keeps tables for itself, is not used.

    Raises KernelError.
    """
    program = f"{program_name(variant, family)}-save"
    done = run([program, "-t", table, "-c"], timeout_s=_TIMEOUT_S)
    if done.code != 0:
        raise KernelError(f"{program}: {done.complaint}")
    counters = parse_counters(done.stdout, table, chains)
    return {name: [packets for packets, _ in each] for name, each in counters.items()}
