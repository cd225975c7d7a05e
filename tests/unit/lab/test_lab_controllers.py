"""Controllers and scheduler on the store: what kubectl apply sets in motion, without kernel."""

import asyncio
from collections.abc import Callable
from typing import Any

from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.controllers import Controllers
from kube_router_py.lab.fabric import compile_topology
from kube_router_py.lab.pod_status import compile_status, node_object
from kube_router_py.lab.scheduler import Scheduler, choose_node

Object = dict[str, Any]
TOPOLOGY = compile_topology(2, "ipv4")


class Cluster:
    """A store with nodes, controllers and a scheduler; pods are made ready by hand."""

    def __init__(self) -> None:
        self.store = Store(TOPOLOGY.service_cidrs)
        self.store.create("namespaces", {"metadata": {"name": "default"}})
        self.controllers = Controllers(self.store)
        self.scheduler = Scheduler(self.store)
        for node in TOPOLOGY.nodes:
            self.store.create("nodes", node_object(node))

    async def settle(self) -> None:
        while not (self.controllers.is_idle and self.scheduler.queue.is_idle):
            await asyncio.sleep(0)

    async def make_ready(self) -> None:
        for number, pod in enumerate(self.store.list("pods"), 1):
            status = compile_status(
                pod,
                node_addresses=["10.10.0.11"],
                addresses=[f"10.244.1.{number}"],
                is_serving=True,
                restarts=0,
            )
            self.store.update("pods", {**pod, "status": status}, subresource="status")
        await self.settle()

    def endpoints(self) -> list[str]:
        return [
            address
            for obj in self.store.list("endpointslices")
            for endpoint in obj["endpoints"]
            for address in endpoint["addresses"]
            if endpoint["conditions"]["ready"]
        ]


DEPLOYMENT: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "shop"},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "shop"}},
        "template": {
            "metadata": {"labels": {"app": "shop"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
        },
    },
}
SERVICE: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "shop"},
    "spec": {"selector": {"app": "shop"}, "ports": [{"port": 80}]},
}


def run(story: Callable[[Cluster], Any]) -> None:
    async def tell() -> None:
        cluster = Cluster()
        await story(cluster)
        cluster.controllers.close()
        cluster.scheduler.close()

    asyncio.run(tell())


def test_a_deployment_becomes_spread_pods_and_endpoints() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.store.apply(DEPLOYMENT)
        cluster.store.apply(SERVICE)
        await cluster.settle()
        pods = cluster.store.list("pods")
        assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["node1", "node1", "node2"]
        assert cluster.endpoints() == []
        await cluster.make_ready()
        assert sorted(cluster.endpoints()) == ["10.244.1.1", "10.244.1.2", "10.244.1.3"]
        status = cluster.store.get("deployments", "shop", "default")["status"]
        assert status["availableReplicas"] == 3

    run(story)


def test_scaling_down_marks_the_endpoint_terminating_with_the_pod() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.store.apply(DEPLOYMENT)
        cluster.store.apply(SERVICE)
        await cluster.settle()
        await cluster.make_ready()
        (slice_before,) = cluster.store.list("endpointslices")
        patch = {"spec": {"replicas": 1}}
        cluster.store.patch("deployments", "shop", patch, namespace="default")
        await cluster.settle()
        (slice_after,) = cluster.store.list("endpointslices")
        assert slice_after["metadata"]["name"] == slice_before["metadata"]["name"]
        flags = [tuple(e["conditions"].values()) for e in slice_after["endpoints"]]
        assert sorted(flags) == [(False, True, True), (False, True, True), (True, True, False)]

    run(story)


def test_deleting_an_owner_takes_everything_it_owned() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.store.apply(DEPLOYMENT)
        cluster.store.apply(SERVICE)
        await cluster.settle()
        cluster.store.delete("deployments", "shop", "default")
        cluster.store.delete("services", "shop", "default")
        await cluster.settle()
        assert cluster.store.list("replicasets") == []
        assert cluster.store.list("endpointslices") == []
        pods = cluster.store.list("pods")
        assert len(pods) == 3
        assert all(pod["metadata"].get("deletionTimestamp") for pod in pods)

    run(story)


def test_a_deleted_slice_comes_back() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.store.apply(SERVICE)
        await cluster.settle()
        (found,) = cluster.store.list("endpointslices")
        cluster.store.delete("endpointslices", found["metadata"]["name"], "default")
        await cluster.settle()
        assert len(cluster.store.list("endpointslices")) == 1

    run(story)


def test_a_pod_waits_for_a_node_that_fits() -> None:
    pod: Object = {"metadata": {}, "spec": {"nodeSelector": {"disk": "ssd"}}}
    nodes = [node_object(node) for node in TOPOLOGY.nodes]
    assert choose_node(pod, nodes, []) is None
    nodes[1]["metadata"]["labels"]["disk"] = "ssd"
    assert choose_node(pod, nodes, []) == "node2"
    nodes[1]["spec"]["unschedulable"] = True
    assert choose_node(pod, nodes, []) is None
