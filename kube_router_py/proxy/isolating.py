"""Whether one NetworkPolicy isolates one pod for ingress, as ``isolation`` asks. Pure."""

from kube_router_py.cluster.objects import NetworkPolicy, Pod
from kube_router_py.cluster.selectors import matches


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
