"""Deployments and ReplicaSets: how many pods there should be, and the steps to get there. Pure.

A step never takes more pods away than ``maxUnavailable`` allows nor adds more than ``maxSurge``.
"""

import hashlib
import json
from collections.abc import Sequence
from math import ceil, floor
from typing import Any

from kube_router_py.lab.endpoints import is_pod_finished, is_pod_ready

Object = dict[str, Any]

HASH_LABEL = "pod-template-hash"


def template_hash(template: Object) -> str:
    """A short name for a pod template: equal templates, equal hash."""
    text = json.dumps(template, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:10]


def owner_reference(kind: str, api_version: str, owner: Object) -> Object:
    metadata = owner["metadata"]
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned_by(obj: Object, owner: Object) -> bool:
    uid = owner["metadata"]["uid"]
    return any(o.get("uid") == uid for o in obj["metadata"].get("ownerReferences") or [])


def replica_set_for(deployment: Object) -> Object:
    """The ReplicaSet of the deployment's present template, with no replicas yet."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    digest = template_hash(spec["template"])
    template = dict(spec["template"])
    meta = dict(template.get("metadata") or {})
    template["metadata"] = {**meta, "labels": {**(meta.get("labels") or {}), HASH_LABEL: digest}}
    selector = dict(spec["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{metadata['name']}-{digest}",
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner_reference("Deployment", "apps/v1", deployment)],
        },
        "spec": {"replicas": 0, "selector": selector, "template": template},
    }


def _bound(value: int | str, replicas: int, round_up: bool) -> int:
    if isinstance(value, str) and value.endswith("%"):
        share = replicas * int(value[:-1]) / 100
        return ceil(share) if round_up else floor(share)
    return int(value)


def compile_scales(deployment: Object, current: Object, others: Sequence[Object]) -> dict[str, int]:
    """The next ``spec.replicas`` of each ReplicaSet that has to change, by name.

    ``current`` is the one of the present template. Call again whenever a status changes.
    """
    spec = deployment["spec"]
    wanted = int(spec.get("replicas", 1))
    sizes = {rs["metadata"]["name"]: int(rs["spec"].get("replicas", 1)) for rs in others}
    name = current["metadata"]["name"]
    size = int(current["spec"].get("replicas", 0))
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        if any(sizes.values()):
            return {old: 0 for old, count in sizes.items() if count}
        if any(int(rs.get("status", {}).get("replicas", 0)) for rs in others):
            return {}
    if not any(sizes.values()):
        return {name: wanted} if size != wanted else {}
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = _bound(rolling.get("maxSurge", "25%"), wanted, round_up=True)
    unavailable = _bound(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    steps: dict[str, int] = {}
    total = size + sum(sizes.values())
    target = min(wanted, size + max(0, wanted + surge - total)) if size < wanted else wanted
    if target != size:
        steps[name] = target
    # Pods that are not ready may go at once; ready ones only as far as the budget allows.
    ready = {
        rs["metadata"]["name"]: int(rs.get("status", {}).get("readyReplicas", 0))
        for rs in (current, *others)
    }
    budget = sum(ready.values()) - (wanted - unavailable)
    for old, count in sizes.items():
        unready = max(0, count - ready[old])
        take = min(count, unready + max(0, min(budget, count - unready)))
        if take:
            steps[old] = count - take
            budget -= max(0, take - unready)
    return steps


def deployment_status(deployment: Object, current: Object, others: Sequence[Object]) -> Object:
    """``status`` as ``kubectl rollout status`` reads it."""
    wanted = int(deployment["spec"].get("replicas", 1))

    def total(field: str, *sets: Object) -> int:
        return sum(int(rs.get("status", {}).get(field, 0)) for rs in sets)

    ready = total("readyReplicas", current, *others)
    updated = total("replicas", current)
    done = updated == wanted == ready and total("replicas", *others) == 0
    status = {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": total("replicas", current, *others),
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
        "conditions": [
            {
                "type": "Available",
                "status": "True" if ready >= wanted else "False",
                "reason": "MinimumReplicasAvailable",
            },
            {
                "type": "Progressing",
                "status": "True",
                "reason": "NewReplicaSetAvailable" if done else "ReplicaSetUpdated",
            },
        ],
    }
    return {key: value for key, value in status.items() if value != 0 or key == "replicas"}


def pods_to_delete(pods: Sequence[Object], surplus: int) -> list[Object]:
    """Which pods a ReplicaSet gives up: unscheduled, unready, crowded node, then youngest."""
    on_node: dict[str, int] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName", "")
        on_node[node] = on_node.get(node, 0) + 1
    chosen: list[Object] = []
    left = list(pods)
    for _ in range(min(surplus, len(left))):
        victim = max(
            left,
            key=lambda pod: (
                not pod["spec"].get("nodeName"),
                not is_pod_ready(pod),
                on_node[pod["spec"].get("nodeName", "")],
                str(pod["metadata"].get("creationTimestamp", "")),
                str(pod["metadata"]["name"]),
            ),
        )
        left.remove(victim)
        on_node[victim["spec"].get("nodeName", "")] -= 1
        chosen.append(victim)
    return chosen


def active_pods(pods: Sequence[Object], replica_set: Object) -> list[Object]:
    """The ReplicaSet's pods that count: not being deleted, not finished."""
    return [
        pod
        for pod in pods
        if is_owned_by(pod, replica_set)
        and not pod["metadata"].get("deletionTimestamp")
        and not is_pod_finished(pod)
    ]
