from ipaddress import ip_address, ip_network

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta


def node(*addresses: tuple[str, str], spec: NodeSpec | None = None, **labels: str) -> Node:
    found = tuple(NodeAddress(type_, address) for type_, address in addresses)
    meta = ObjectMeta("node1", labels={k.replace("__", "/"): v for k, v in labels.items()})
    return Node(meta, spec or NodeSpec(), NodeStatus(found))


def test_the_primary_address_is_the_first_internal_one() -> None:
    view, problems = node_view(
        node(
            ("Hostname", "node1"),
            ("ExternalIP", "203.0.113.1"),
            ("InternalIP", "10.0.0.1"),
            ("InternalIP", "10.0.0.2"),
        )
    )
    assert view.address == view.ipv4 == ip_address("10.0.0.1")
    assert view.ipv6 is None
    assert [str(a) for a in view.addresses] == ["10.0.0.1", "10.0.0.2", "203.0.113.1"]
    assert problems == []


def test_an_external_address_is_used_where_there_is_no_internal_one() -> None:
    view, _ = node_view(node(("ExternalIP", "203.0.113.1")))
    assert view.address == ip_address("203.0.113.1")


def test_each_family_has_its_best_address() -> None:
    view, _ = node_view(
        node(
            ("ExternalIP", "2001:db8::1"),
            ("InternalIP", "fd00::1"),
            ("ExternalIP", "203.0.113.1"),
        )
    )
    assert view.address == view.ipv6 == ip_address("fd00::1")
    assert view.ipv4 == ip_address("203.0.113.1")


def test_a_node_without_a_usable_address_is_told() -> None:
    view, problems = node_view(node(("InternalIP", "nonsense"), ("Hostname", "node1")))
    assert view.address is view.ipv4 is view.ipv6 is None
    assert [p.field for p in problems] == ["status.addresses[0].address", "status.addresses"]
    assert {p.object for p in problems} == {"Node node1"}
    view, problems = node_view(Node(ObjectMeta("node1")))
    assert [p.field for p in problems] == ["status.addresses"]


def test_pod_cidrs_per_family_and_the_single_one_of_old() -> None:
    both = NodeSpec(pod_cidr="10.244.1.0/24", pod_cidrs=("10.244.1.0/24", "fd00:1::/64"))
    view, _ = node_view(node(("InternalIP", "10.0.0.1"), spec=both))
    assert view.pod_cidrs_ipv4 == (ip_network("10.244.1.0/24"),)
    assert view.pod_cidrs_ipv6 == (ip_network("fd00:1::/64"),)
    assert len(view.pod_cidrs) == 2
    single, _ = node_view(node(("InternalIP", "10.0.0.1"), spec=NodeSpec(pod_cidr="10.244.1.0/24")))
    assert single.pod_cidrs == (ip_network("10.244.1.0/24"),)


def test_a_bad_pod_cidr_is_told_and_left_out() -> None:
    spec = NodeSpec(pod_cidrs=("10.244.1.0/24", "10.244.1.0/99"))
    view, problems = node_view(node(("InternalIP", "10.0.0.1"), spec=spec))
    assert view.pod_cidrs == (ip_network("10.244.1.0/24"),)
    assert [p.field for p in problems] == ["spec.podCIDRs[1]"]


def test_zone_and_annotations() -> None:
    meta = ObjectMeta(
        "node1",
        labels={"topology.kubernetes.io/zone": "a", "failure-domain.beta.kubernetes.io/zone": "b"},
        annotations={"kube-router.io/rr.client": "1"},
    )
    view, _ = node_view(Node(meta))
    assert view.zone == "a"
    assert view.annotation("kube-router.io/rr.client") == "1"
    assert view.annotation("other") is None
    old = ObjectMeta("node1", labels={"failure-domain.beta.kubernetes.io/zone": "b"})
    assert node_view(Node(old))[0].zone == "b"
    assert node_view(Node())[0].zone == ""
