"""The columns ``kubectl get`` shows, kind by kind, as the real API server's printers do.

A column takes the object and the clock (seconds since the epoch) and returns a cell; priority 1
columns appear with ``-o wide`` only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .ages import seconds_of, short_duration
from .status import Object


class Column(NamedTuple):
    """One column; ``type`` as in OpenAPI."""

    name: str
    cell: Callable[[Object, float], Any]
    type: str = "string"
    priority: int = 0


def _path(*names: str, absent: Any = "<none>") -> Callable[[Object, float], Any]:
    def cell(obj: Object, _now: float) -> Any:
        value: Any = obj
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return absent if value is None or value == "" else value

    return cell


def _age(obj: Object, now: float) -> str:
    created = obj["metadata"].get("creationTimestamp")
    return short_duration(now - seconds_of(created)) if created else "<unknown>"


def _since(*names: str) -> Callable[[Object, float], str]:
    value = _path(*names, absent="")

    def cell(obj: Object, now: float) -> str:
        stamp = value(obj, now)
        return short_duration(now - seconds_of(stamp)) if stamp else "<unknown>"

    return cell


def _joined(values: Any, limit: int = 0) -> str:
    texts = [str(value) for value in values]
    if not texts:
        return "<none>"
    if limit and len(texts) > limit:
        return f"{','.join(texts[:limit])} + {len(texts) - limit} more..."
    return ",".join(texts)


def _labels(mapping: Any) -> str:
    return _joined(f"{key}={value}" for key, value in sorted((mapping or {}).items()))


def selector_text(selector: Any) -> str:
    """A LabelSelector in kubectl's notation."""
    if not selector:
        return "<none>"
    terms = [f"{k}={v}" for k, v in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        values = f"({','.join(expression.get('values') or ())})"
        terms.append(
            {"In": f"{key} in {values}", "NotIn": f"{key} notin {values}", "Exists": key}.get(
                operator, f"!{key}"
            )
        )
    return ",".join(terms) or "<none>"


NAME = Column("Name", lambda obj, _: obj["metadata"]["name"], "string")
AGE = Column("Age", _age)
GENERIC = (NAME, AGE)


# --- pods ----------------------------------------------------------------------------------------


def _pod_ready(pod: Object, _now: float) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    ready = sum(1 for status in statuses if status.get("ready"))
    return f"{ready}/{len(pod['spec'].get('containers') or ())}"


def _pod_status(pod: Object, _now: float) -> str:
    status = pod.get("status", {})
    reason = status.get("reason") or status.get("phase") or "Unknown"
    for container in status.get("containerStatuses") or ():
        state = container.get("state", {})
        waiting = state.get("waiting", {}).get("reason")
        ended = state.get("terminated", {}).get("reason")
        reason = waiting or ended or reason
    return "Terminating" if pod["metadata"].get("deletionTimestamp") else str(reason)


def _pod_restarts(pod: Object, _now: float) -> int:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return sum(status.get("restartCount", 0) for status in statuses)


def _pod_ip(pod: Object, _now: float) -> str:
    status = pod.get("status", {})
    ips = status.get("podIPs") or ()
    return str(ips[0]["ip"] if ips else status.get("podIP") or "<none>")


def _pod_gates(pod: Object, _now: float) -> str:
    gates = pod["spec"].get("readinessGates") or ()
    if not gates:
        return "<none>"
    true = {
        c["type"] for c in pod.get("status", {}).get("conditions") or () if c["status"] == "True"
    }
    return f"{sum(gate['conditionType'] in true for gate in gates)}/{len(gates)}"


POD = (
    NAME,
    Column("Ready", _pod_ready),
    Column("Status", _pod_status),
    Column("Restarts", _pod_restarts, "integer"),
    AGE,
    Column("IP", _pod_ip, priority=1),
    Column("Node", _path("spec", "nodeName"), priority=1),
    Column("Nominated Node", _path("status", "nominatedNodeName"), priority=1),
    Column("Readiness Gates", _pod_gates, priority=1),
)

# --- services, slices ----------------------------------------------------------------------------


def _service_external(service: Object, _now: float) -> str:
    spec = service["spec"]
    external = list(spec.get("externalIPs") or ())
    if spec.get("type") == "LoadBalancer":
        ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
        addresses = [entry.get("ip") or entry.get("hostname") or "" for entry in ingress]
        return _joined(addresses + external) if addresses or external else "<pending>"
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName"))
    return _joined(external)


def _service_ports(service: Object, _now: float) -> str:
    return _joined(
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}"
        f"/{port.get('protocol', 'TCP')}"
        for port in service["spec"].get("ports") or ()
    )


SERVICE = (
    NAME,
    Column("Type", _path("spec", "type")),
    Column("Cluster-IP", _path("spec", "clusterIP")),
    Column("External-IP", _service_external),
    Column("Port(s)", _service_ports),
    AGE,
    Column("Selector", lambda obj, _: _labels(obj["spec"].get("selector")), priority=1),
)


def _slice_ports(slice_: Object, _now: float) -> str:
    ports = slice_.get("ports")
    if not ports:
        return "<unset>"
    return _joined([port.get("port") if port.get("port") else "*" for port in ports], 3)


def _slice_endpoints(slice_: Object, _now: float) -> str:
    endpoints = slice_.get("endpoints") or ()
    if not endpoints:
        return "<unset>"
    return _joined([a for endpoint in endpoints for a in endpoint.get("addresses") or ()], 3)


ENDPOINT_SLICE = (
    NAME,
    Column("AddressType", _path("addressType")),
    Column("Ports", _slice_ports),
    Column("Endpoints", _slice_endpoints),
    AGE,
)


def _endpoints(endpoints: Object, _now: float) -> str:
    pairs = [
        f"{address['ip']}:{port['port']}"
        for subset in endpoints.get("subsets") or ()
        for address in subset.get("addresses") or ()
        for port in subset.get("ports") or ()
    ]
    return _joined(pairs, 3)


ENDPOINTS = (NAME, Column("Endpoints", _endpoints), AGE)

# --- workloads -----------------------------------------------------------------------------------


def _templates(what: str) -> Callable[[Object, float], str]:
    def cell(obj: Object, _now: float) -> str:
        containers = obj["spec"].get("template", {}).get("spec", {}).get("containers") or ()
        return _joined(container.get(what, "") for container in containers)

    return cell


def _selector(obj: Object, _now: float) -> str:
    return selector_text(obj["spec"].get("selector"))


_TEMPLATE = (
    Column("Containers", _templates("name"), priority=1),
    Column("Images", _templates("image"), priority=1),
    Column("Selector", _selector, priority=1),
)


def _count(*names: str) -> Callable[[Object, float], Any]:
    return _path(*names, absent=0)


DEPLOYMENT = (
    NAME,
    Column(
        "Ready",
        lambda obj, now: (
            f"{_count('status', 'readyReplicas')(obj, now)}/{_count('spec', 'replicas')(obj, now)}"
        ),
    ),
    Column("Up-to-date", _count("status", "updatedReplicas"), "integer"),
    Column("Available", _count("status", "availableReplicas"), "integer"),
    AGE,
    *_TEMPLATE,
)
REPLICA_SET = (
    NAME,
    Column("Desired", _count("spec", "replicas"), "integer"),
    Column("Current", _count("status", "replicas"), "integer"),
    Column("Ready", _count("status", "readyReplicas"), "integer"),
    AGE,
    *_TEMPLATE,
)
DAEMON_SET = (
    NAME,
    Column("Desired", _count("status", "desiredNumberScheduled"), "integer"),
    Column("Current", _count("status", "currentNumberScheduled"), "integer"),
    Column("Ready", _count("status", "numberReady"), "integer"),
    Column("Up-to-date", _count("status", "updatedNumberScheduled"), "integer"),
    Column("Available", _count("status", "numberAvailable"), "integer"),
    Column(
        "Node Selector",
        lambda obj, _: _labels(obj["spec"]["template"].get("spec", {}).get("nodeSelector")),
    ),
    AGE,
    *_TEMPLATE,
)

# --- nodes, namespaces, the rest -----------------------------------------------------------------


def _node_status(node: Object, _now: float) -> str:
    conditions = node.get("status", {}).get("conditions") or ()
    ready = [c["status"] for c in conditions if c.get("type") == "Ready"]
    status = {"True": "Ready"}.get(ready[0], "NotReady") if ready else "Unknown"
    return status + (",SchedulingDisabled" if node.get("spec", {}).get("unschedulable") else "")


def _node_roles(node: Object, _now: float) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = node["metadata"].get("labels") or {}
    return _joined(sorted(key[len(prefix) :] for key in labels if key.startswith(prefix)))


def _node_address(kind: str) -> Callable[[Object, float], str]:
    def cell(node: Object, _now: float) -> str:
        for address in node.get("status", {}).get("addresses") or ():
            if address.get("type") == kind:
                return str(address.get("address"))
        return "<none>"

    return cell


def _node_fact(name: str) -> Callable[[Object, float], Any]:
    return _path("status", "nodeInfo", name, absent="<unknown>")


NODE = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _node_roles),
    AGE,
    Column("Version", _path("status", "nodeInfo", "kubeletVersion", absent="")),
    Column("Internal-IP", _node_address("InternalIP"), priority=1),
    Column("External-IP", _node_address("ExternalIP"), priority=1),
    Column("OS-Image", _node_fact("osImage"), priority=1),
    Column("Kernel-Version", _node_fact("kernelVersion"), priority=1),
    Column("Container-Runtime", _node_fact("containerRuntimeVersion"), priority=1),
)
NAMESPACE = (NAME, Column("Status", _path("status", "phase")), AGE)
NETWORK_POLICY = (
    NAME,
    Column("Pod-Selector", lambda obj, _: selector_text(obj["spec"].get("podSelector"))),
    AGE,
)
CONFIG_MAP = (
    NAME,
    Column("Data", lambda obj, _: len(obj.get("data") or ()) + len(obj.get("binaryData") or ())),
    AGE,
)
SECRET = (
    NAME,
    Column("Type", _path("type")),
    Column("Data", lambda obj, _: len(obj.get("data") or ()), "integer"),
    AGE,
)
SERVICE_ACCOUNT = (
    NAME,
    Column("Secrets", lambda obj, _: len(obj.get("secrets") or ()), "integer"),
    AGE,
)
LEASE = (NAME, Column("Holder", _path("spec", "holderIdentity", absent="")), AGE)
_CREATED = Column("Created At", _path("metadata", "creationTimestamp"))
ROLE = (NAME, _CREATED)


def _role_ref(binding: Object, _now: float) -> str:
    ref = binding.get("roleRef", {})
    return f"{ref.get('kind')}/{ref.get('name')}"


def _subjects(kind: str) -> Callable[[Object, float], str]:
    def cell(binding: Object, _now: float) -> str:
        found = [s for s in binding.get("subjects") or () if s.get("kind") == kind]
        return ", ".join(
            f"{s['namespace']}/{s['name']}" if s.get("namespace") else s["name"] for s in found
        )

    return cell


BINDING = (
    NAME,
    Column("Role", _role_ref),
    AGE,
    Column("Users", _subjects("User"), priority=1),
    Column("Groups", _subjects("Group"), priority=1),
    Column("ServiceAccounts", _subjects("ServiceAccount"), priority=1),
)


def _event_object(event: Object, _now: float) -> str:
    about = event.get("involvedObject", {})
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _event_last_seen(event: Object, now: float) -> str:
    stamp = event.get("lastTimestamp") or event.get("eventTime")
    return short_duration(now - seconds_of(stamp)) if stamp else "<unknown>"


EVENT = (
    Column("Last Seen", _event_last_seen),
    Column("Type", _path("type", absent="")),
    Column("Reason", _path("reason", absent="")),
    Column("Object", _event_object),
    Column("Subobject", _path("involvedObject", "fieldPath", absent=""), priority=1),
    Column("Source", _path("source", "component", absent=""), priority=1),
    Column("Message", lambda obj, _: str(obj.get("message") or "").strip()),
    Column("First Seen", _since("firstTimestamp"), priority=1),
    Column("Count", _path("count", absent=1), priority=1),
    Column("Name", lambda obj, _: obj["metadata"]["name"], priority=1),
)
