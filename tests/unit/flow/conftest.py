"""A small cluster in few words, and flows through it."""

from collections.abc import Sequence
from typing import Any

import pytest

from kube_router_py.explain_sources import cluster_objects
from kube_router_py.flow.model import Question, Trace
from kube_router_py.flow.objects import flow_settings
from kube_router_py.flow.trace import Tracer
from kube_router_py.manifests import Manifests
from kube_router_py.options import Options, parse
from kube_router_py.render import render
from kube_router_py.render_pools import with_pools

Object = dict[str, Any]

READY = {"ready": True}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
SERVING_TERMINATING = {"ready": False, "serving": True, "terminating": True}
TERMINATING = {"ready": False, "serving": False, "terminating": True}


class World:
    """Three nodes in two subnets and two zones, pods ``x/a`` (node1), ``x/b`` (node2), ``x/c``
    (node3), ``x/client`` (node1) and ``x/host`` in node2's network; more by ``add``."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str, str], Object] = {}
        self.node("node1", "192.168.1.1", 1, zone="one")
        self.node("node2", "192.168.1.2", 2, zone="one")
        self.node("node3", "192.168.2.3", 3, zone="two")
        self.add({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "x"}})
        for number, name in enumerate("abc", 1):
            self.pod(f"x/{name}", f"node{number}", f"10.244.{number}.10")
        self.pod("x/client", "node1", "10.244.1.9")
        self.pod("x/host", "node2", "192.168.1.2", hostNetwork=True)

    def add(self, document: Object) -> None:
        metadata = document["metadata"]
        key = (document["kind"], metadata.get("namespace", ""), metadata["name"])
        self.documents[key] = document

    def node(self, name: str, ip: str, number: int, zone: str = "", **more: Any) -> None:
        metadata: Object = {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}
        metadata["annotations"] = more.pop("annotations", {})
        addresses = [ip, f"fd00:{number}::1", *more.pop("addresses", ())]
        self.add(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": metadata,
                "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:244:{number}::/64"]},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": each} for each in addresses]
                },
            }
        )

    def pod(self, key: str, node: str, *ips: str, **spec: Any) -> None:
        space, _, name = key.partition("/")
        self.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": space,
                    "uid": f"uid-{name}",
                    "labels": {"pod": name},
                },
                "spec": {"nodeName": node, "containers": [{"name": "c"}], **spec},
                "status": {"phase": "Running", "podIPs": [{"ip": each} for each in ips]},
            }
        )

    def service(self, key: str, address: str | None = None, **more: Any) -> None:
        """With port 80 to 8080; ``annotations``, ``labels`` and ``ingress`` are no fields of the
        spec."""
        space, _, name = key.partition("/")
        metadata: Object = {"name": name, "namespace": space}
        metadata |= {each: more.pop(each) for each in ("annotations", "labels") if each in more}
        ingress = more.pop("ingress", None)
        spec: Object = {"ports": [{"name": "http", "port": 80, "targetPort": 8080}], **more}
        if address is not None:
            spec["clusterIP"] = address
        document: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": spec,
        }
        if ingress is not None:
            document["status"] = {"loadBalancer": {"ingress": ingress}}
        self.add(document)

    def endpoints(self, key: str, *listed: Object, port: Any = "", family: str = "IPv4") -> None:
        """``listed`` as ``endpoint`` makes them; ``port`` None: no port in the slice."""
        space, _, name = key.partition("/")
        ports = [] if port is None else [{"name": "http", "port": 8080, **(port or {})}]
        self.add(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-{family}",
                    "namespace": space,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family,
                "ports": ports,
                "endpoints": list(listed),
            }
        )

    def policy(self, key: str, **spec: Any) -> None:
        space, _, name = key.partition("/")
        self.add(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": space},
                "spec": {"podSelector": {}, **spec},
            }
        )

    def served(self, key: str = "x/web", address: str = "10.96.0.1", **more: Any) -> None:
        """A Service with all three pods ready behind it."""
        self.service(key, address, **more)
        self.endpoints(key, *(endpoint(name) for name in "abc"))

    def manifests(self) -> Manifests:
        found = Manifests()
        for number, each in enumerate(self.documents.values()):
            found.add(each, f"document {number}", "IPv4")
        return found

    def tracer(self, *flags: str) -> Tracer:
        manifests = self.manifests()
        options, _, _ = with_pools(manifests, self.options(*flags), "kube-system")
        return Tracer(cluster_objects(manifests), flow_settings(options))

    def options(self, *flags: str) -> Options:
        return parse(list(flags), {})

    def trace(
        self, source: str, target: str, port: int = 80, *flags: str, **question: Any
    ) -> Trace:
        return self.tracer(*flags).trace(Question(source, target, port, **question))

    def rendered(self, node: str, *flags: str) -> Object:
        """What the agent of a node would program."""
        return render(self.manifests(), node, self.options(*flags))


def endpoint(name: str, conditions: Object = READY, **more: Any) -> Object:
    """Of pod ``x/NAME``, on the node that its letter says."""
    number = "abc".index(name) + 1
    return {
        "addresses": [f"10.244.{number}.10"],
        "nodeName": f"node{number}",
        "zone": "one" if number < 3 else "two",
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "namespace": "x", "name": name, "uid": f"uid-{name}"},
        **more,
    }


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def states() -> dict[str, Object]:
    """Conditions of endpoints."""
    return {
        "ready": READY,
        "not ready": NOT_READY,
        "serving": SERVING_TERMINATING,
        "terminating": TERMINATING,
    }


@pytest.fixture
def make_endpoint() -> Any:
    return endpoint


@pytest.fixture
def outs() -> Any:
    """The reasons of a trace's backends, by pod."""

    def read(trace: Trace) -> dict[str, str]:
        return {each.pod.removeprefix("x/"): each.out or "in" for each in trace.backends}

    return read


@pytest.fixture
def pods_of() -> Any:
    def read(trace: Trace) -> Sequence[str]:
        return [each.pod for each in trace.backends if each.is_in]

    return read
