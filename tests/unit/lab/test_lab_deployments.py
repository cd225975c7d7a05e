"""Deployments: a rollout always ends, and keeps its promises on the way."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.lab import deployments

Object = dict[str, Any]


def deployment(replicas: int, surge: int | str, unavailable: int | str, kind: str) -> Object:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {
        "metadata": {"name": "d", "namespace": "default", "uid": "d-1", "generation": 2},
        "spec": {
            "replicas": replicas,
            "strategy": {"type": kind, "rollingUpdate": rolling},
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": []}},
        },
    }


def replica_set(name: str, replicas: int, ready: int) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "readyReplicas": ready},
    }


amounts = st.one_of(st.integers(0, 4), st.integers(0, 100).map(lambda n: f"{n}%"))


@given(
    wanted=st.integers(0, 12),
    before=st.lists(st.integers(0, 6), max_size=3),
    surge=amounts,
    unavailable=amounts,
    kind=st.sampled_from(["RollingUpdate", "Recreate"]),
)
def test_a_rollout_converges_within_its_limits(
    wanted: int, before: list[int], surge: int | str, unavailable: int | str, kind: str
) -> None:
    spec = deployment(wanted, surge, unavailable, kind)
    current = replica_set("new", 0, 0)
    others = [replica_set(f"old{n}", size, size) for n, size in enumerate(before)]
    start = sum(before)
    for _ in range(100):
        steps = deployments.compile_scales(spec, current, others)
        if not steps:
            break
        for each in (current, *others):
            size = steps.get(each["metadata"]["name"], each["spec"]["replicas"])
            assert size >= 0
            each["spec"]["replicas"] = size
            each["status"] = {"replicas": size, "readyReplicas": size}
        total = sum(each["spec"]["replicas"] for each in (current, *others))
        if kind == "RollingUpdate":
            extra = deployments._bound(surge, wanted, round_up=True)
            missing = deployments._bound(unavailable, wanted, round_up=False) or int(extra == 0)
            assert total <= max(start, wanted + extra)
            assert total >= min(start, wanted - missing)
    assert current["spec"]["replicas"] == wanted
    assert all(each["spec"]["replicas"] == 0 for each in others)
    status = deployments.deployment_status(spec, current, others)
    assert status.get("updatedReplicas", 0) == status.get("availableReplicas", 0) == wanted
    assert status["conditions"][1]["reason"] == "NewReplicaSetAvailable"


def test_pods_that_are_not_ready_yet_hold_the_rollout() -> None:
    spec = deployment(4, 1, 0, "RollingUpdate")
    old, new = replica_set("old", 4, 4), replica_set("new", 1, 0)
    assert deployments.compile_scales(spec, new, [old]) == {}
    new["status"]["readyReplicas"] = 1
    assert deployments.compile_scales(spec, new, [old]) == {"old": 3}


def test_recreate_waits_for_the_end_of_the_old_pods() -> None:
    spec = deployment(2, 1, 0, "Recreate")
    old, new = replica_set("old", 2, 2), replica_set("new", 0, 0)
    assert deployments.compile_scales(spec, new, [old]) == {"old": 0}
    old["spec"]["replicas"] = 0
    assert deployments.compile_scales(spec, new, [old]) == {}
    old["status"] = {"replicas": 0}
    assert deployments.compile_scales(spec, new, [old]) == {"new": 2}


def test_the_replica_set_carries_the_template_and_its_hash() -> None:
    spec = deployment(1, 1, 0, "RollingUpdate")
    found = deployments.replica_set_for(spec)
    digest = found["metadata"]["labels"][deployments.HASH_LABEL]
    assert found["metadata"]["name"] == f"d-{digest}"
    assert found["spec"]["selector"]["matchLabels"] == {"app": "d", "pod-template-hash": digest}
    assert found["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] == digest
    spec["spec"]["template"]["spec"]["containers"] = [{"name": "other"}]
    assert deployments.replica_set_for(spec)["metadata"]["name"] != found["metadata"]["name"]


def pod(name: str, node: str, ready: bool = True) -> Object:
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def test_scaling_down_takes_the_useless_first_and_stays_spread() -> None:
    pods = [
        pod("a", "node1"),
        pod("b", "node1"),
        pod("c", "node2"),
        pod("d", "node2", ready=False),
        pod("e", ""),
    ]
    gone = [p["metadata"]["name"] for p in deployments.pods_to_delete(pods, 3)]
    assert gone == ["e", "d", "b"]
