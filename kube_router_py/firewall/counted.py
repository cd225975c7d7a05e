"""The chains of this node's pods whose counters tell what was admitted and refused. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct

from kube_router_py.firewall.counters import PodCounters, pod_counters
from kube_router_py.firewall.holding import Isolation
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain, policy_chain

Chains = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Rules by family and name of a chain."""


class CountedChain(Struct, frozen=True):
    """The chain of a pod (``namespace/name``) in a family (``inet``, ``inet6``) and a direction.

    It has so many ``rules``; ``policies`` by the names of their chains, as in ``counters``.
    """

    family: str
    name: str
    pod: str
    direction: Direction
    rules: int
    counters: PodCounters
    policies: Mapping[str, str]


def counted_chains(
    pods: Iterable[str],
    isolation: Callable[[str], Isolation],
    chains: Chains,
) -> Iterator[CountedChain]:
    """Those of pods that are isolated or audited, by ``isolation``."""
    for pod in pods:
        for direction, hold in isolation(pod).items():
            name = pod_chain(pod, direction)
            names = {policy_chain(each, direction): each for each in hold.policies}
            for family, standing in chains.items():
                rules = standing.get(name, ())
                if (counters := pod_counters(rules)) is not None:
                    yield CountedChain(family, name, pod, direction, len(rules), counters, names)
