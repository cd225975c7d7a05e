"""FRR's daemons that an earlier agent left, while this one does not route."""

from collections.abc import Sequence

from kube_router_py.kernel.frr_process import DaemonProcess, Layout, survivors
from kube_router_py.kernel.ports_frr import DAEMONS


def old_daemons(frr_dir: str) -> str:
    """What to do about daemons in this run directory, or ``""`` where none runs."""
    found: Sequence[DaemonProcess] = survivors(Layout(run_dir=frr_dir), DAEMONS)
    for each in found:
        each.close()
    if not found:
        return ""
    return (
        "routes are not made (--run-router=false), but FRR's daemons of an earlier agent go on "
        "announcing what there was then: stop the agent and run kube-router-py cleanup on this "
        f"node, or set --run-router pids={','.join(str(each.pid) for each in found)}"
    )
