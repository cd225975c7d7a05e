"""Services and pods to EndpointSlices, by the rules of the real controller. Pure.

Source: Kubernetes 1.3x, the EndpointSlice API reference and KEP-1672 (terminating endpoints):
``serving`` is the pod's readiness, ``ready`` is serving and not terminating (or published anyway).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Object = dict[str, Any]

MAX_ENDPOINTS = 100
SERVICE_LABEL = "kubernetes.io/service-name"
MANAGED_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGED_BY = "endpointslice-controller.k8s.io"
ZONE_LABEL = "topology.kubernetes.io/zone"


def is_pod_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_pod_finished(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def selects(selector: Mapping[str, str], obj: Object) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())


def target_port(pod: Object, port: Object) -> int | None:
    """The pod's port number behind a Service port; None if it names one the pod lacks."""
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    protocol = port.get("protocol") or "TCP"
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or []), *sidecars]:
        for declared in container.get("ports") or []:
            if declared.get("name") == target and (declared.get("protocol") or "TCP") == protocol:
                return int(declared["containerPort"])
    return None


def compile_slices(
    service: Object, pods: Iterable[Object], nodes: Mapping[str, Object]
) -> list[Object]:
    """All EndpointSlices of a Service, without names; ``pods`` are those of its namespace.

    A Service without selector has none of ours. Pods whose named ports resolve differently go to
    different slices; a family without endpoints keeps one empty slice, as in a real cluster.
    """
    spec = service["spec"]
    selector = spec.get("selector")
    if not selector or spec.get("type") == "ExternalName":
        return []
    chosen = sorted(
        (
            pod
            for pod in pods
            if selects(selector, pod) and not is_pod_finished(pod) and pod["spec"].get("nodeName")
        ),
        key=lambda pod: str(pod["metadata"]["name"]),
    )
    slices = []
    for family in spec.get("ipFamilies") or ["IPv4"]:
        groups: dict[tuple[tuple[str, int, str], ...], list[Object]] = {}
        for pod in chosen:
            address = _address(pod, family)
            if address is None:
                continue
            ports = tuple(
                (str(port.get("name") or ""), number, str(port.get("protocol") or "TCP"))
                for port in spec.get("ports") or []
                if (number := target_port(pod, port)) is not None
            )
            groups.setdefault(ports, []).append(_endpoint(service, pod, address, nodes))
        if not groups:
            slices.append(_slice(service, family, (), []))
        for ports, endpoints in sorted(groups.items()):
            slices += [
                _slice(service, family, ports, endpoints[start : start + MAX_ENDPOINTS])
                for start in range(0, len(endpoints), MAX_ENDPOINTS)
            ]
    return slices


def _address(pod: Object, family: str) -> str | None:
    for entry in pod.get("status", {}).get("podIPs") or []:
        if (":" in entry["ip"]) == (family == "IPv6"):
            return str(entry["ip"])
    return None


def _endpoint(service: Object, pod: Object, address: str, nodes: Mapping[str, Object]) -> Object:
    serving = is_pod_ready(pod)
    terminating = bool(pod["metadata"].get("deletionTimestamp"))
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    ready = published or (serving and not terminating)
    node_name = pod["spec"]["nodeName"]
    endpoint: Object = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": node_name,
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }
    node_labels = nodes.get(node_name, {}).get("metadata", {}).get("labels") or {}
    zone = node_labels.get(ZONE_LABEL)
    if zone:
        endpoint["zone"] = zone
    distribution = service["spec"].get("trafficDistribution")
    if distribution and ready:
        hints: Object = {}
        if zone:
            hints["forZones"] = [{"name": zone}]
        if distribution == "PreferSameNode":
            hints["forNodes"] = [{"name": node_name}]
        if hints:
            endpoint["hints"] = hints
    hostname, subdomain = pod["spec"].get("hostname"), pod["spec"].get("subdomain")
    if hostname and subdomain == service["metadata"]["name"]:
        endpoint["hostname"] = hostname
    return endpoint


def _slice(
    service: Object,
    family: str,
    ports: Sequence[tuple[str, int, str]],
    endpoints: list[Object],
) -> Object:
    metadata = service["metadata"]
    labels = {**(metadata.get("labels") or {}), SERVICE_LABEL: metadata["name"]}
    if service["spec"].get("clusterIP") == "None":
        labels["service.kubernetes.io/headless"] = ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "labels": {**labels, MANAGED_LABEL: MANAGED_BY},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": family,
        "ports": [{"name": name, "protocol": kind, "port": number} for name, number, kind in ports],
        "endpoints": endpoints,
    }
