"""Which pods NetworkPolicies isolate for ingress: such a pod cannot be served by direct server
return, for on its node a packet inside a tunnel is seen by its outer header only.

What is not known counts as isolated: policies that could not be listed, a pod that is not in the
cache, a selector that is not understood. A pod on another node is that node's to judge.
"""

from collections.abc import Hashable, Iterable

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import NetworkPolicy, Pod
from kube_router_py.cluster.selectors import matches
from kube_router_py.proxy.dirty_keys import Marks


def isolates_for_ingress(policy: NetworkPolicy, pod: Pod) -> bool:
    """Whether a policy selects the pod and is about ingress (networking.k8s.io/v1
    NetworkPolicySpec: without policyTypes every policy is)."""
    if policy.metadata.namespace != pod.metadata.namespace:
        return False
    types = policy.spec.policy_types
    if types and "Ingress" not in types:
        return False
    if policy.spec.pod_selector is None:
        return True  # written as {}, and lost on the way: it selects all of the namespace
    try:
        return matches(policy.spec.pod_selector, pod.metadata.labels)
    except ValueError:
        return True


class Isolation:
    """``cache`` holds this node's Pods, ``policies`` all NetworkPolicies."""

    def __init__(self, cache: Cache, policies: Cache, node_name: str) -> None:
        self._cache, self._policies, self._node_name = cache, policies, node_name

    def is_isolated(self, uid: str) -> bool:
        """Whether the pod with this UID, of this node, is or may be isolated for ingress."""
        if not self._policies.is_synced((NetworkPolicy,)):
            return True
        for key in self._cache.pods_of_node(self._node_name):
            pod = self._cache.get(Pod, key)
            if pod is not None and pod.metadata.uid == uid:
                policies = self._policies.list(NetworkPolicy)
                return any(isolates_for_ingress(policy, pod) for policy in policies)
        return True

    def subscribe(self, loop: Marks, keys: Iterable[Hashable]) -> None:
        """Mark ``keys`` when policies, or the labels of pods, change."""
        marked = tuple(keys)

        def notify(event: Event) -> None:
            if event.kind is NetworkPolicy or _labels(event.old) != _labels(event.new):
                loop.mark(marked)

        self._policies.subscribe((NetworkPolicy,), notify)
        self._cache.subscribe((Pod,), notify)


def _labels(pod: Pod | None) -> object:
    return None if pod is None else (pod.metadata.labels or {}, pod.metadata.uid)
