"""The agents' Events, as the server takes them and kubectl shows them."""

import json
from collections.abc import Callable
from typing import Any

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import connect
from kube_router_py.cluster.objects import Node, ObjectMeta, Service
from kube_router_py.observe.event_writer import EventWriter
from kube_router_py.observe.events import RefusedAddresses
from kube_router_py.observe.problem_events import ProblemEvents
from kube_router_py.options import parse
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.settings import ThisNode

KEY = "default/web"
REFUSED = (
    Problem(f"Service {KEY}", "spec.externalIPs[0]", "192.0.2.1 is refused: it lies in no range"),
    Problem(f"Service {KEY}", "spec.externalIPs[1]", "192.0.2.2 is refused: it lies in no range"),
)


def test_all_nodes_together_make_one_event_of_each_address(
    cluster: Any, kubectl: Any, until: Callable[[Callable[[], Any], str], Any]
) -> None:
    kubectl("create", "service", "clusterip", "web", "--tcp=80")
    meta = kubectl.json("service", "web")["metadata"]
    cache, desired = Cache((Service,)), Desired()
    cache.put(Service, Service(ObjectMeta("web", "default", meta["uid"], meta["resourceVersion"])))
    compiled = CompiledService(
        KEY, "", {}, {}, {}, {}, frozenset(), problems=REFUSED, refused=REFUSED
    )
    changes = desired.update(KEY, compiled)
    listing = ("get", "events", "--field-selector", "reason=AddressRefused", "-o", "json")

    def events() -> list[Any]:
        found: list[Any] = json.loads(kubectl(*listing))["items"]
        return found

    client = connect(parse([f"--kubeconfig={cluster.kubeconfig}"], {}), {})

    def tell_as(node: str) -> None:
        follower = RefusedAddresses(cache, client, node, 0.0)
        follower.follow(desired, ThisNode(node), changes, full=False)
        until(lambda: follower.written == 2, f"both Events of {node}")
        follower.stop(60.0)

    try:
        tell_as("node1")
        tell_as("node2")
    finally:
        client.close()
    found = {event["involvedObject"]["fieldPath"]: event for event in events()}
    assert len(events()) == len(found) == 2
    event = found["spec.externalIPs[1]"]
    assert event["message"] == f"spec.externalIPs[1]: {REFUSED[1].reason}"
    assert (event["type"], event["source"]["host"]) == ("Warning", "node1")
    assert "AddressRefused" in kubectl("get", "events")
    assert "192.0.2.1 is refused" in kubectl("describe", "service", "web")


def test_what_is_wrong_with_a_node_is_told_of_the_node(
    cluster: Any, kubectl: Any, until: Callable[[Callable[[], Any], str], Any]
) -> None:
    client = connect(parse([f"--kubeconfig={cluster.kubeconfig}"], {}), {})
    name = "node1"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    kubectl("apply", "-f", "-", stdin=json.dumps(node))
    meta = kubectl.json("node", name)["metadata"]
    cache = Cache((Node,))
    cache.put(Node, Node(ObjectMeta(name, "", meta["uid"], meta["resourceVersion"])))
    writer = EventWriter(cache, client, name, 0.0)
    try:
        ProblemEvents(writer, name).follow(
            (Problem(f"Node {name}", "metadata.annotations[a]", "'x' is no number"),)
        )
        until(lambda: writer.written == 1, "the Event")
        writer.stop(60.0)
    finally:
        client.close()
    assert "BadRoutingAnnotation" in kubectl("get", "events", "-n", "default")
    assert "metadata.annotations[a]: 'x' is no number" in kubectl("describe", "node", name)
