"""What of ``render`` concerns pools of addresses: the ConfigMap among the manifests. Pure."""

import dataclasses

from kube_router_py.address_pool_config import CONFIG_MAP, KEY, compile_pools, pool_settings
from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.cluster.objects import ConfigMap
from kube_router_py.manifests import Manifests
from kube_router_py.options import Options
from kube_router_py.problem import Problem


def with_pools(
    manifests: Manifests, options: Options, namespace: str
) -> tuple[Options, AddressPools, tuple[Problem, ...]]:
    """The flags as if they named the ranges of all pools; the pools, and what is wrong with them.

    ``namespace`` is the agent's own. There are none without --run-loadbalancer.
    """
    if not options.run_loadbalancer:
        return options, AddressPools(), ()
    settings = pool_settings(options, namespace)
    found = manifests.get(ConfigMap, f"{namespace}/{CONFIG_MAP}")
    text = (found.data or {}).get(KEY) if found is not None else None
    mistakes: tuple[Problem, ...] = ()
    if found is not None and text is None:
        mistakes = (Problem(settings.subject, "data", f"it has no entry {KEY!r}"),)
    compiled = compile_pools(settings, text, mistakes=mistakes)
    ranges = load_balancer_ranges(options.loadbalancer_ip_range, compiled.pools)
    return (
        dataclasses.replace(options, loadbalancer_ip_range=ranges),
        compiled.pools,
        compiled.problems,
    )
