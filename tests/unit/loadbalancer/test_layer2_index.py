"""Which addresses are announced by ARP and NDP: as their pools say, or said before an edit."""

from ipaddress import ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.address_pools import AddressPools, AddressRange, Announcing, Pool
from kube_router_py.cluster.objects import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.loadbalancer.layer2_index import Layer2Index

RED = Selector((Requirement("color", "In", ("red",)),))
COLORS = {"a": "red", "b": "red", "c": "blue"}
NETWORKS = ("192.0.2.0/28", "198.51.100.0/28", "2001:db8::/124")


def pool(name: str, cidr: str, **announcing: Any) -> Pool:
    network = ip_network(cidr)
    said = Announcing(**{"layer2": True, **announcing})
    return Pool(name, (AddressRange(network[0], network[-1]),), announcing=said)


def service(name: str, *addresses: str) -> Service:
    ingress = tuple(LoadBalancerIngress(ip=each) for each in addresses)
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(
            type="LoadBalancer", cluster_ip="10.96.0.1", ports=(ServicePort(port=80),)
        ),
        status=ServiceStatus(LoadBalancerStatus(ingress)),
    )


def index_of(pools: AddressPools, services: dict[str, Service]) -> Layer2Index:
    """On node a; all nodes live."""
    found = Layer2Index("a", drain_on_cordon=False)
    found.follow_pools(pools)
    found.follow_nodes(
        (
            name,
            Node(
                metadata=ObjectMeta(name=name, labels={"color": color}),
                status=NodeStatus((NodeAddress("InternalIP", f"10.0.0.{number}"),)),
            ),
        )
        for number, (name, color) in enumerate(COLORS.items(), 1)
    )
    found.follow_candidates(frozenset(COLORS))
    for key, each in services.items():
        found.follow_service(key, each)
    return found


def places(index: Layer2Index) -> dict[str, tuple[str, Announcing, set[str]]]:
    return {
        str(each.address): (each.pool, each.announcing, set(each.local))
        for each in index.places.values()
    }


def test_what_is_taken_out_stays_with_the_nodes_and_links_of_its_pool() -> None:
    before = pool("web", NETWORKS[0], nodes=RED, interfaces=("eth1",))
    quiet = pool("quiet", NETWORKS[1], layer2=False)
    services = {"default/s": service("s", *(f"192.0.2.{n}" for n in range(16)), "198.51.100.1")}
    index = index_of(AddressPools((before, quiet)), services)
    as_before, others = places(index), index.members()
    assert len(as_before) == 16
    owners = {each.address: each.pick.owner for each in index.places.values()}
    assert set(owners.values()) == {"a", "b"}
    other = pool("other", NETWORKS[2], nodes=Selector((Requirement("color", "Exists"),)))
    for pools in (
        AddressPools((), (before, quiet)),
        AddressPools((), (quiet, before)),
        AddressPools((other,), (quiet, before)),
    ):
        index.follow_pools(pools)
        assert places(index) == as_before
        assert {each.address: each.pick.owner for each in index.places.values()} == owners
        assert index.is_taking_part()
        assert others.items() <= index.members().items()
    index.follow_pools(AddressPools((other,)))
    assert (places(index), index.mine, index.others) == ({}, set(), set())


def test_why_nobody_answers_names_the_pool_of_before() -> None:
    nowhere = Selector((Requirement("color", "In", ("green",)),))
    gone = pool("gone", NETWORKS[0], nodes=nowhere)
    index = index_of(AddressPools((), (gone,)), {"default/s": service("s", "192.0.2.1")})
    (packed,) = index.places
    assert index.why_nobody(packed) == "no node has the labels of pool gone (color=green)"


@st.composite
def some_pools(draw: st.DrawFn) -> AddressPools:
    found = [
        pool(
            f"pool{draw(st.integers(0, 1))}",
            cidr,
            layer2=draw(st.sampled_from([True, True, False])),
            nodes=draw(st.sampled_from([Selector(), RED])),
        )
        for cidr in draw(st.lists(st.sampled_from(NETWORKS), unique=True))
    ]
    number = draw(st.integers(0, len(found)))
    return AddressPools(tuple(found[number:]), tuple(found[:number]))


addresses = st.sampled_from(["192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1", "10.1.1.1"])
changes = st.one_of(
    some_pools(),
    st.tuples(
        st.sampled_from(["x", "y"]), st.none() | st.lists(addresses, max_size=3, unique=True)
    ),
)


@given(st.lists(changes, max_size=12))
def test_step_by_step_is_as_from_scratch(
    steps: list[AddressPools | tuple[str, list[str] | None]],
) -> None:
    pools, services = AddressPools(), dict[str, Service]()
    index = index_of(pools, services)
    for step in steps:
        if isinstance(step, AddressPools):
            pools = step
            index.follow_pools(pools)
            continue
        name, listed = step
        key = f"default/{name}"
        if listed is None:
            services.pop(key, None)
        else:
            services[key] = service(name, *listed)
        index.follow_service(key, services.get(key))
    fresh = index_of(pools, services)
    assert places(index) == places(fresh)
    assert (index.mine | index.others) == (fresh.mine | fresh.others)
    assert index.members() == fresh.members()
    for packed, place in index.places.items():
        found = pools.announcing_of(packed)
        assert found == (place.pool, place.announcing)
