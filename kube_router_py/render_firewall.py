"""What of ``render`` concerns NetworkPolicies: rules, sets, and who is isolated by what."""

from collections.abc import Iterator
from typing import Any

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.desired import Desired
from kube_router_py.firewall.frame import JUMPS
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.pods import pod_facts
from kube_router_py.firewall.policy import compile_namespace, compile_policy
from kube_router_py.firewall.service_addresses import node_ports, service_ports
from kube_router_py.firewall.settings import FirewallOptions, node_facts
from kube_router_py.manifests import Manifests
from kube_router_py.problem import Problem

_FAMILIES = {"inet": "ipv4", "inet6": "ipv6"}
# As the agent creates sets: never smaller than the kernel's default, with room for twice as many.
_MAXELEM = 65536


def compile_firewall(manifests: Manifests, node_name: str, options: FirewallOptions) -> Desired:
    """The desired state of a node, compiled as the agent does at its start."""
    desired = Desired(options)
    node = manifests.get(Node, node_name)
    if node is not None:
        desired.put_node(node_facts(node_view(node)[0]))
    for namespace in manifests.list(Namespace):
        desired.put_namespace(namespace.metadata.name, compile_namespace(namespace))
    for policy in manifests.list(NetworkPolicy):
        desired.put_policy(policy.metadata.key, compile_policy(policy))
    for pod in manifests.list(Pod):
        desired.put_pod(pod.metadata.key, pod_facts(pod, node_name))
    for service in manifests.list(Service):
        ports, nodes = service_ports(service, options), node_ports(service, options)
        desired.put_service(service.metadata.key, ports, nodes)
    desired.settle()
    return desired


def render_firewall(
    manifests: Manifests, node_name: str, options: FirewallOptions
) -> tuple[dict[str, Any], set[Problem]]:
    """``iptables``, ``ipsets`` and ``policies`` of the document, and what is wrong.

    The sets, restored by ipset(8), and then the rules, by ``iptables-restore --noflush``, are the
    whole enforcement.
    """
    desired = compile_firewall(manifests, node_name, options)
    document = {
        "iptables": {
            _FAMILIES[family]: {"filter": _table(desired.chains[family])}
            for family in options.families
        },
        "ipsets": [*_sets(desired)],
        "policies": [*_policies(manifests, node_name, desired)],
    }
    return document, set(desired.problems())


def _table(chains: dict[str, tuple[str, ...]]) -> str:
    lines = ["*filter", *(f":{name} - [0:0]" for name in sorted(chains))]
    for name in sorted(chains):
        lines += (f"-A {name} {rule}" for rule in chains[name])
    # Each is put before those that are there, so that the last one comes first.
    lines += (f"-I {j.parent} 1 {j.rule}" for j in reversed(JUMPS) if j.position == "first")
    lines += (f"-A {j.parent} {j.rule}" for j in JUMPS if j.position == "last")
    return "\n".join((*lines, "COMMIT", ""))


def _sets(desired: Desired) -> Iterator[dict[str, Any]]:
    for spec in sorted(desired.sets.specs()):
        entries = sorted(desired.sets[spec])
        maxelem = _MAXELEM
        while maxelem < 2 * len(entries):
            maxelem *= 2
        yield {
            "name": spec.name,
            "type": spec.type,
            "family": spec.family,
            "maxelem": maxelem,
            "entries": entries,
        }


def _policies(manifests: Manifests, node_name: str, desired: Desired) -> Iterator[dict[str, Any]]:
    """Every policy, with the pods of this node that it isolates (``isolates``), or would
    (``audits``), by direction."""
    held: dict[str, dict[Direction, list[str]]] = {}
    for pod in manifests.list(Pod):
        if pod.spec.node_name == node_name:
            for direction, hold in desired.isolation(pod.metadata.key).items():
                for key in hold.policies:
                    held.setdefault(key, {}).setdefault(direction, []).append(pod.metadata.key)
    for policy in manifests.list(NetworkPolicy):
        key = policy.metadata.key
        of_policy = held.get(key, {})
        found = {str(each): sorted(of_policy[each]) for each in Direction if each in of_policy}
        is_audited = desired.is_audited(key)
        yield {
            "policy": key,
            "types": [str(direction) for direction in compile_policy(policy).rules],
            "isolates": {} if is_audited else found,
            "audits": found if is_audited else {},
        }


def text_of_firewall(document: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    for policy in document.get("policies", ()):
        yield f"NetworkPolicy {policy['policy']} ({', '.join(policy['types'])})"
        for direction, pods in policy["isolates"].items():
            yield f"    isolates for {direction}: {', '.join(pods)}"
        for direction, pods in policy["audits"].items():
            yield f"    audits {direction}: {', '.join(pods)}"
        if not policy["isolates"] and not policy["audits"]:
            yield "    isolates no pod of this node"
    for family, tables in document.get("iptables", {}).items():
        for table, text in tables.items():
            yield f"iptables {family} {table}"
            yield from ("    " + line for line in text.splitlines())
    for each in document.get("ipsets", ()):
        yield f"ipset {each['name']} {each['type']} family {each['family']}"
        yield from (f"    {entry}" for entry in each["entries"])
