"""Where the pod CIDRs of a node come from."""

from typing import Any

import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.routing.pod_cidrs import with_pod_cidrs


@pytest.mark.parametrize(
    ("annotations", "expected", "wrong"),
    [
        ({}, ["10.244.1.0/24", "fd00:10:244:1::/64"], 0),
        ({"pod-cidr": "10.9.1.0/24"}, ["10.9.1.0/24"], 0),
        ({"pod-cidrs": " 10.9.1.0/24, fd00:9::/64 ,"}, ["10.9.1.0/24", "fd00:9::/64"], 0),
        ({"pod-cidr": "10.8.1.0/24", "pod-cidrs": "10.9.1.0/24"}, ["10.9.1.0/24"], 0),
        ({"pod-cidrs": "10.9.1.0/24,nonsense"}, ["10.9.1.0/24"], 1),
        ({"pod-cidrs": "nonsense"}, ["10.244.1.0/24", "fd00:10:244:1::/64"], 1),
        ({"pod-cidrs": "no", "pod-cidr": "10.9.1.7/24"}, ["10.9.1.0/24"], 1),
        # Python would take these for networks; Go's ParseCIDR does not.
        ({"pod-cidrs": "10.9.1.0/24,10.9.2.1,10.9.3.0/255.255.255.0"}, ["10.9.1.0/24"], 2),
        ({"pod-cidrs": ""}, ["10.244.1.0/24", "fd00:10:244:1::/64"], 0),
        ({"pod-cidrs": "10.9.1.0/24,10.9.1.0/24"}, ["10.9.1.0/24"], 0),
    ],
)
def test_annotations_come_first(
    make: Any, annotations: dict[str, str], expected: list[str], wrong: int
) -> None:
    keys = {f"kube-router.io/{name}": text for name, text in annotations.items()}
    view, problems = with_pod_cidrs(node_view(make.node(annotations=keys))[0])
    assert [str(each) for each in view.pod_cidrs] == expected
    assert len(problems) == wrong
    for problem in problems:
        assert problem.object == "Node node1"
        assert "kube-router.io/pod-cidrs" in problem.field
