"""What a kubelet writes: the status of a pod, the Node object of its node. Pure but for the clock.

Source: Kubernetes API reference, core/v1 PodStatus and NodeStatus.
"""

import time
from collections.abc import Sequence
from typing import Any

from kube_router_py.lab.endpoints import ZONE_LABEL
from kube_router_py.lab.fabric import LabNode

Object = dict[str, Any]

READY_ANNOTATION = "lab/ready"
ZONES = ("zone-a", "zone-b")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _condition(old: Sequence[Object], kind: str, holds: bool, reason: str = "") -> Object:
    """A condition that keeps its transition time while its status stays."""
    status = "True" if holds else "False"
    before = next((c for c in old if c["type"] == kind), None)
    changed = before is None or before["status"] != status
    condition = {
        "type": kind,
        "status": status,
        "lastTransitionTime": _now() if changed or before is None else before["lastTransitionTime"],
    }
    if reason and not holds:
        condition["reason"] = reason
    return condition


def compile_status(
    pod: Object,
    *,
    node_addresses: Sequence[str],
    addresses: Sequence[str],
    is_serving: bool,
    restarts: int,
) -> Object:
    """``status`` of a pod whose server runs (or does not), with the addresses CNI gave it."""
    old = pod.get("status") or {}
    conditions = old.get("conditions") or []
    wanted = (pod["metadata"].get("annotations") or {}).get(READY_ANNOTATION) != "false"
    ready = is_serving and wanted
    why = "ContainersNotReady"
    start = old.get("startTime") or _now()
    state: Object = (
        {"running": {"startedAt": start}}
        if is_serving
        else {"waiting": {"reason": "CrashLoopBackOff" if restarts else "ContainerCreating"}}
    )
    status: Object = {
        "phase": "Running" if addresses else "Pending",
        "qosClass": old.get("qosClass") or "BestEffort",
        "startTime": start,
        "conditions": [
            _condition(conditions, "PodScheduled", True),
            _condition(conditions, "Initialized", True),
            _condition(conditions, "ContainersReady", ready, why),
            _condition(conditions, "Ready", ready, why),
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container.get("image", ""),
                "imageID": "",
                "ready": ready,
                "started": is_serving,
                "restartCount": restarts,
                "state": state,
            }
            for container in pod["spec"].get("containers") or []
        ],
        "hostIP": node_addresses[0],
        "hostIPs": [{"ip": address} for address in node_addresses],
    }
    if addresses:
        status["podIP"] = addresses[0]
        status["podIPs"] = [{"ip": address} for address in addresses]
    return status


def node_object(node: LabNode) -> Object:
    """The Node as its kubelet registers it, ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                ZONE_LABEL: ZONES[(node.number - 1) % len(ZONES)],
            },
        },
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": address} for address in node.addresses),
                {"type": "Hostname", "address": node.name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "the lab's kubelet is running",
                    "lastTransitionTime": _now(),
                    "lastHeartbeatTime": _now(),
                }
            ],
            "nodeInfo": {"kubeletVersion": "lab", "operatingSystem": "linux"},
        },
    }
