"""Defaults an API server fills in before it stores an object.

Each function completes an object in place; what is not of the expected shape is left alone, for
validation to name. Source: pkg/apis/*/v1/defaults.go of Kubernetes 1.3x, by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .resources import Resource
from .status import Object


def _objects(value: Any) -> list[Object]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _pod_spec(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    for name in ("containers", "initContainers"):
        for container in _objects(spec.get(name)):
            image = str(container.get("image", ""))
            latest = image.endswith(":latest") or ":" not in image.rpartition("/")[2]
            container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
            container.setdefault("resources", {})
            container.setdefault("terminationMessagePath", "/dev/termination-log")
            container.setdefault("terminationMessagePolicy", "File")
            for port in _objects(container.get("ports")):
                port.setdefault("protocol", "TCP")
                if spec.get("hostNetwork") and not port.get("hostPort"):
                    port["hostPort"] = port.get("containerPort")


def _pod(pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    if isinstance(spec, dict):
        _pod_spec(spec)
        spec.setdefault("enableServiceLinks", True)
        spec.setdefault("serviceAccountName", "default")
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
        quality = {"phase": "Pending", "qosClass": "BestEffort"}
        pod.setdefault("status", quality)


def _service(service: Object) -> None:
    spec = service.get("spec")
    if not isinstance(spec, dict):
        return
    kind = spec.setdefault("type", "ClusterIP")
    if kind != "ExternalName":
        affinity = spec.setdefault("sessionAffinity", "None")
        if affinity == "ClientIP":
            config = spec.get("sessionAffinityConfig") or {}
            client = {**(config.get("clientIP") or {})}
            client.setdefault("timeoutSeconds", 10800)
            spec["sessionAffinityConfig"] = {**config, "clientIP": client}
        else:
            spec.pop("sessionAffinityConfig", None)
        spec.setdefault("internalTrafficPolicy", "Cluster")
    external = bool(spec.get("externalIPs")) or kind in ("NodePort", "LoadBalancer")
    if external and kind != "ExternalName":
        spec.setdefault("externalTrafficPolicy", "Cluster")
    else:
        spec.pop("externalTrafficPolicy", None)
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    for port in _objects(spec.get("ports")):
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port.get("port")
    service.setdefault("status", {"loadBalancer": {}})


def _template(obj: Object) -> Object:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return {}
    template = spec.get("template")
    pod_spec = template.get("spec") if isinstance(template, dict) else None
    if isinstance(pod_spec, dict):
        _pod_spec(pod_spec)
    return spec


def _rolling(strategy: Any, surge: int | str, unavailable: int | str) -> None:
    if not isinstance(strategy, dict) or strategy.setdefault("type", "RollingUpdate") != (
        "RollingUpdate"
    ):
        return
    rolling = strategy.get("rollingUpdate") or {}
    strategy["rollingUpdate"] = {"maxSurge": surge, "maxUnavailable": unavailable, **rolling}


def _deployment(deployment: Object) -> None:
    spec = _template(deployment)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    _rolling(spec.setdefault("strategy", {}), "25%", "25%")
    deployment.setdefault("status", {})


def _replica_set(replica_set: Object) -> None:
    _template(replica_set).setdefault("replicas", 1)
    replica_set.setdefault("status", {"replicas": 0})


def _daemon_set(daemon_set: Object) -> None:
    spec = _template(daemon_set)
    spec.setdefault("revisionHistoryLimit", 10)
    _rolling(spec.setdefault("updateStrategy", {}), 0, 1)
    counts = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled")
    daemon_set.setdefault("status", {**dict.fromkeys(counts, 0), "numberReady": 0})


def _network_policy(policy: Object) -> None:
    spec = policy.get("spec")
    if not isinstance(spec, dict):
        return
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for direction in ("ingress", "egress"):
        for rule in _objects(spec.get(direction)):
            for port in _objects(rule.get("ports")):
                port.setdefault("protocol", "TCP")


def _namespace(namespace: Object) -> None:
    metadata = namespace["metadata"]
    labels = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    metadata["labels"] = labels
    namespace.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    namespace.setdefault("status", {"phase": "Active"})


def _endpoint_slice(slice_: Object) -> None:
    for port in _objects(slice_.get("ports")):
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _node(node: Object) -> None:
    node.setdefault("spec", {})
    node.setdefault("status", {})


def _secret(secret: Object) -> None:
    import base64

    secret.setdefault("type", "Opaque")
    plain = secret.pop("stringData", None)
    if isinstance(plain, dict):
        coded = {key: base64.b64encode(str(v).encode()).decode() for key, v in plain.items()}
        secret["data"] = {**(secret.get("data") or {}), **coded}


_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "daemonsets": _daemon_set,
    "deployments": _deployment,
    "endpointslices": _endpoint_slice,
    "namespaces": _namespace,
    "networkpolicies": _network_policy,
    "nodes": _node,
    "pods": _pod,
    "replicasets": _replica_set,
    "secrets": _secret,
    "services": _service,
}


def default(kind: Resource, obj: Object) -> None:
    """Complete an object in place."""
    _drop_nulls(obj)
    function = _DEFAULTS.get(kind.name)
    if function is not None:
        function(obj)


def _drop_nulls(value: Any) -> None:
    """Remove null fields: the typed objects of a real API server do not keep them."""
    if isinstance(value, dict):
        for key in [key for key, item in value.items() if item is None]:
            del value[key]
        for item in value.values():
            _drop_nulls(item)
    elif isinstance(value, list):
        for item in value:
            _drop_nulls(item)
