"""Which pods NetworkPolicies isolate for ingress: such a pod cannot be served by direct server
return, for on its node a packet inside a tunnel is seen by its outer header only.

What is not known counts as isolated: policies that could not be listed, a pod that is not in the
cache, a selector that is not understood. A pod on another node is that node's to judge. A policy
that this agent's firewall only audits isolates nobody.
"""

from collections.abc import Hashable, Iterable

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Pod
from kube_router_py.policy_audit import asked_audit
from kube_router_py.proxy.dirty_keys import Marks
from kube_router_py.proxy.isolating import isolates_for_ingress


class Isolation:
    """``cache`` holds this node's Pods, ``policies`` all NetworkPolicies, ``namespaces`` all
    Namespaces; None: policies are enforced by another program, which knows no audit."""

    def __init__(
        self, cache: Cache, policies: Cache, node_name: str, namespaces: Cache | None = None
    ) -> None:
        self._cache, self._policies, self._node_name = cache, policies, node_name
        self._namespaces = namespaces

    def is_isolated(self, uid: str) -> bool:
        """Whether the pod with this UID, of this node, is or may be isolated for ingress."""
        if not self._policies.is_synced((NetworkPolicy,)):
            return True
        for key in self._cache.pods_of_node(self._node_name):
            pod = self._cache.get(Pod, key)
            if pod is not None and pod.metadata.uid == uid:
                policies = self._policies.list(NetworkPolicy)
                return any(
                    isolates_for_ingress(policy, pod) and not self._is_audited(policy)
                    for policy in policies
                )
        return True

    def _is_audited(self, policy: NetworkPolicy) -> bool:
        if self._namespaces is None:
            return False
        asked = asked_audit(policy.metadata)
        if asked is None:
            return _audits(self._namespaces.get(Namespace, policy.metadata.namespace))
        return asked

    def subscribe(self, loop: Marks, keys: Iterable[Hashable]) -> None:
        """Mark ``keys`` when policies, the labels of pods, or what is audited change."""
        marked = tuple(keys)

        def notify(event: Event) -> None:
            if event.kind is NetworkPolicy or _labels(event.old) != _labels(event.new):
                loop.mark(marked)

        def notify_of_space(event: Event) -> None:
            if _audits(event.old) != _audits(event.new):
                loop.mark(marked)

        self._policies.subscribe((NetworkPolicy,), notify)
        self._cache.subscribe((Pod,), notify)
        if self._namespaces is not None:
            self._namespaces.subscribe((Namespace,), notify_of_space)


def _labels(pod: Pod | None) -> object:
    return None if pod is None else (pod.metadata.labels or {}, pod.metadata.uid)


def _audits(namespace: Namespace | None) -> bool:
    return namespace is not None and asked_audit(namespace.metadata) is True
