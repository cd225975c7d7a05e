"""Small clusters for tests of the firewall: objects, their documents, and flows through them.

The canonical one has namespaces x, y and z with pods a, b and c each, on node1 (a and c) and node2
(b), in both families. ``manifests`` of a cluster are what an API server would hold of its objects.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import yaml
from firewall_tracer import Firewall, Flow, Hop, flow_verdict

from kube_router_py.cluster.defaults import with_defaults
from kube_router_py.manifests import Manifests
from kube_router_py.options import Options, parse
from kube_router_py.render import render

Object = dict[str, Any]

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
NODE_ADDRESSES = {
    "node1": ("192.168.1.1", "fd00:1::1"),
    "node2": ("192.168.1.2", "fd00:1::2"),
}
POD_CIDRS = {
    "node1": ("10.244.1.0/24", "fd00:10:244:1::/64"),
    "node2": ("10.244.2.0/24", "fd00:10:244:2::/64"),
}
FLAGS = ("--enable-ipv6", "--run-service-proxy=false")


def addresses(node: str, number: int) -> tuple[str, str]:
    """A pod's addresses: ``number`` is the last part of both."""
    return f"10.244.{node[-1]}.{number}", f"fd00:10:244:{node[-1]}::{number}"


def node(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": list(POD_CIDRS[name])},
        "status": {
            "addresses": [{"type": "InternalIP", "address": ip} for ip in NODE_ADDRESSES[name]]
        },
    }


def namespace(
    name: str, labels: Mapping[str, str] | None = None, *, audit: str | None = None
) -> Object:
    own = {"kubernetes.io/metadata.name": name, "ns": name}
    labels = own if labels is None else labels
    found = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    return audited(found, audit)


def pod(
    key: str,
    node: str,
    ips: Sequence[str],
    labels: Mapping[str, str] | None = None,
    ports: Sequence[Mapping[str, Any]] = (),
    *,
    phase: str = "Running",
    host_network: bool = False,
    terminating: bool = False,
    sidecar: Sequence[Mapping[str, Any]] = (),
) -> Object:
    """``labels`` default to ``pod: NAME``; ``ports`` are containerPorts, ``sidecar`` those of an
    init container that goes on running."""
    space, _, name = key.partition("/")
    metadata: Object = {"name": name, "namespace": space, "uid": f"uid-{key}"}
    metadata["labels"] = {"pod": name} if labels is None else dict(labels)
    if terminating:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    spec: Object = {"nodeName": node, "containers": [{"name": "c", "ports": list(ports)}]}
    if host_network:
        spec["hostNetwork"] = True
    if sidecar:
        always = {"name": "s", "restartPolicy": "Always", "ports": list(sidecar)}
        spec["initContainers"] = [always]
    status: Object = {"phase": phase}
    if ips:
        status["podIP"], status["podIPs"] = ips[0], [{"ip": ip} for ip in ips]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def policy(key: str, spec: Any, *, audit: str | None = None) -> Object:
    space, _, name = key.partition("/")
    found = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": space},
        "spec": spec,
    }
    return audited(found, audit)


def audited(each: Object, value: str | None) -> Object:
    """A policy or namespace, with this value of the annotation; None: without it."""
    metadata = {key: found for key, found in each["metadata"].items() if key != "annotations"}
    if value is not None:
        metadata["annotations"] = {"kube-router.io/audit": value}
    return {**each, "metadata": metadata}


def service(key: str, ips: Sequence[str], port: int, target: int, protocol: str = "TCP") -> Object:
    space, _, name = key.partition("/")
    ports = [{"port": port, "targetPort": target, "protocol": protocol}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"clusterIP": ips[0], "clusterIPs": list(ips), "ports": ports},
    }


def canonical() -> list[Object]:
    """x/a is 10.244.1.10, x/b 10.244.2.11, x/c 10.244.1.12; y has 20 to 22, z 30 to 32."""
    found = [node("node1"), node("node2"), *map(namespace, "xyz")]
    for tens, space in enumerate("xyz", 1):
        for ones, name in enumerate("abc"):
            where = "node2" if name == "b" else "node1"
            found.append(pod(f"{space}/{name}", where, addresses(where, tens * 10 + ones)))
    return found


def identity(each: Object) -> tuple[str, str, str]:
    metadata = each["metadata"]
    return each["kind"], metadata.get("namespace", ""), metadata["name"]


def replaced(objects: Iterable[Object], *newer: Object) -> list[Object]:
    """The objects, those of ``newer`` instead of older ones of the same name."""
    found = {identity(each): each for each in objects}
    found.update({identity(each): each for each in newer})
    return list(found.values())


def policies(text: str) -> list[Object]:
    """NetworkPolicies from ``{namespace/name: spec}`` in YAML."""
    return [policy(key, spec) for key, spec in yaml.safe_load(text).items()]


def of_case(case: Mapping[str, Any]) -> list[Object]:
    """The objects of a case of tests/golden/policies/semantics.yaml."""
    found = canonical()
    known = {identity(each)[1:]: each for each in found if each["kind"] == "Pod"}
    for name, labels in case.get("namespaces", {}).items():
        own = {"kubernetes.io/metadata.name": name, "ns": name}
        found = replaced(found, namespace(name, {**own, **labels}))
    for key, given in case.get("pods", {}).items():
        settings = {_KEYWORDS.get(name, name): value for name, value in given.items()}
        if older := known.get(tuple(key.split("/"))):
            settings.setdefault("node", older["spec"]["nodeName"])
            settings.setdefault("ips", [each["ip"] for each in older["status"]["podIPs"]])
        elif settings.get("host_network"):
            settings["ips"] = NODE_ADDRESSES[settings["node"]]
        found = replaced(found, pod(key, **settings))
    return found + [policy(key, spec) for key, spec in case.get("policies", {}).items()]


_KEYWORDS = {"hostNetwork": "host_network"}


def options(*flags: str) -> Options:
    return parse((*FLAGS, *flags), {})


class Cluster:
    """Objects, and the firewalls that ``render`` prints for the nodes.

    ``is_raw``: objects as they are written, without the defaults of an API server.
    """

    def __init__(self, objects: Iterable[Object], *flags: str, is_raw: bool = False) -> None:
        self.objects = list(objects)
        self.options = options(*flags)
        self.manifests = Manifests()
        default = (lambda found, _: found) if is_raw else with_defaults
        with mock.patch("kube_router_py.manifests.with_defaults", default):
            for number, each in enumerate(self.objects):
                self.manifests.add(each, f"object {number}", "IPv4")
        self.documents = {
            name: render(self.manifests, name, self.options) for name in NODE_ADDRESSES
        }
        self.firewalls = {name: Firewall(each) for name, each in self.documents.items()}

    @property
    def problems(self) -> list[Object]:
        """Those of all nodes' documents."""
        return [each for document in self.documents.values() for each in document["problems"]]

    def pod(self, key: str) -> Object | None:
        space, _, name = key.partition("/")
        for each in self.objects:
            if identity(each) == ("Pod", space, name):
                return each
        return None

    def addresses_of(self, place: str) -> dict[int, str]:
        """By family (4, 6) the addresses of ``namespace/pod``, ``node1`` or a literal one."""
        found: Iterable[str]
        if place in NODE_ADDRESSES:
            found = NODE_ADDRESSES[place]
        elif "/" in place and (pod := self.pod(place)):
            if pod["spec"].get("hostNetwork"):
                return self.addresses_of(pod["spec"]["nodeName"])
            found = [each["ip"] for each in pod["status"].get("podIPs", ())]
        else:
            found = [place]
        return {ipaddress.ip_address(ip).version: ip for ip in found}

    def _stands(self, place: str, address: str) -> tuple[str, bool]:
        """The node where a flow's end is, and whether it is the node itself."""
        if place in NODE_ADDRESSES:
            return place, True
        if "/" in place and (pod := self.pod(place)):
            return pod["spec"]["nodeName"], bool(pod["spec"].get("hostNetwork"))
        for each in self.objects:
            ips = each.get("status", {}).get("podIPs", ()) if each["kind"] == "Pod" else ()
            if address in {ip["ip"] for ip in ips} and not each["spec"].get("hostNetwork"):
                return each["spec"]["nodeName"], False
        for name, own in NODE_ADDRESSES.items():
            if address in own:
                return name, True
        for name, networks in POD_CIDRS.items():
            if any(ipaddress.ip_address(address) in ipaddress.ip_network(n) for n in networks):
                return name, False
        return "", False

    def flows(self, text: str) -> Iterator[Flow]:
        """``x/a > y/b tcp 80`` in every family that both ends have (``tcp 80 v4``: in that)."""
        src, _, dst, protocol, port, *family = text.split()
        sources, targets = self.addresses_of(src), self.addresses_of(dst)
        wanted = [int(each[1:]) for each in family] or sorted(sources.keys() & targets.keys())
        assert wanted, f"no family in common: {text}"
        for version in wanted:
            src_node, src_process = self._stands(src, sources[version])
            dst_node, dst_process = self._stands(dst, targets[version])
            # What has the address of another node without being there is somewhere outside.
            outside = src_process and src not in NODE_ADDRESSES and "/" not in src
            yield Flow(
                sources[version],
                targets[version],
                PROTOCOLS.get(protocol) or int(protocol),
                int(port),
                "" if outside else src_node,
                src_process and not outside,
                dst_node,
                dst_process,
            )

    def trace(self, flow: Flow) -> tuple[bool, list[Hop]]:
        return flow_verdict(self.firewalls, flow)

    def wrong(self, probes: str, allowed: bool) -> list[str]:
        """The probes (one a line) that do not end as said, each with its way."""
        found = []
        for line in probes.strip().splitlines():
            for flow in self.flows(line):
                verdict, way = self.trace(flow)
                if verdict != allowed:
                    found.append(f"{line} ({flow.src} > {flow.dst}): {told(verdict, way)}")
        return found


def told(verdict: bool, way: list[Hop]) -> str:
    """A verdict with the rules that led to it, for a test's message."""
    lines = ["allowed" if verdict else "denied"]
    for hop in way:
        lines.append(f"  {hop.node} {hop.packet.hook}: {hop.trace.verdict}")
        lines += [f"    {each}" for each in hop.trace.path]
    return "\n".join(lines)
