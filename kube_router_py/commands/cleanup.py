"""``cleanup`` and ``--cleanup-config``: their arguments."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from msgspec import json

from kube_router_py.commands.arguments import (
    FAILED,
    OK,
    answered,
    checked,
    output_format,
    take,
)
from kube_router_py.options import Options

if TYPE_CHECKING:
    from kube_router_py.cleanup import Done

USAGE = """\
Usage: kube-router-py cleanup [--kube-proxy-leftovers] [--output text|json] [FLAG...]

Removes what the agent left on this node: FRR's daemons, whose neighbors drop their routes at once
(those of --frr-mode=external stay as they are), tunnels and routes into them, its IPVS virtual
servers (all outside of --excluded-cidrs; none where its service proxy never was, or where
kube-proxy runs in mode ipvs), its iptables chains of both variants, its ipsets, its link
kube-dummy-if with its routes, marks and policy routing of direct server return. The bridge of pods
and the CNI file stay. Give it the flags that the agent had. Run it as root, with the agent stopped:
for one that runs it waits half a minute, then refuses. It says what it did.
The same as kube-router-py --cleanup-config.

  --kube-proxy-leftovers   Remove what kube-proxy left instead, and nothing of the agent's: chains
                           KUBE-SERVICES and the like (not the kubelet's), its ipsets, the link
                           kube-ipvs0, the nftables tables kube-proxy. kube-proxy must not run.
  -o, --output=FORMAT      text (default), a line as each step is done; or json, an array of them
                           (what, result, failed) at the end
  -h, --help               show this text

Exit codes: 0 all removed; 1 something stayed; 2 a mistake in the flags.
"""

_FLAGS = {"--kube-proxy-leftovers": ("kube-proxy-leftovers", False)}
# As long as an agent waits for the one before it.
_LOCK_WAIT_S = 30.0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    own, rest, words, mistakes = take(list(arguments), _FLAGS)
    if answered(own, USAGE):
        return OK
    output = output_format(own, mistakes)
    options = checked([*rest, *words], mistakes)
    done: list[Done] = []
    if output == "text":
        return OK if _clean_up(options, print, own.keys()) else FAILED
    try:
        is_complete = _clean_up(options, done.append, own.keys())
    finally:
        if done:  # also of what was done before it could not go on
            print(json.format(json.encode(done), indent=1).decode())
    return OK if is_complete else FAILED


def _clean_up(options: Options, say: Callable[["Done"], None], own: Collection[str]) -> bool:
    from kube_router_py.adapters import check_capabilities, dsr_opener, opener, routing_opener
    from kube_router_py.cleanup import clean_up, clean_up_kube_proxy
    from kube_router_py.kernel.agent_lock import AgentLock

    check_capabilities()
    if "kube-proxy-leftovers" in own:
        return clean_up_kube_proxy(say)
    # An agent that runs would make anew what is removed; the kernel frees the lock with us.
    AgentLock().take(_LOCK_WAIT_S)
    ports = opener(options, needs_ipvs=False)()
    routing = routing_opener(options, with_names=False)
    try:
        return clean_up(options, ports, dsr_opener(options), routing, say)
    finally:
        ports.close()
