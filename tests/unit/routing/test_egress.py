"""Rules and sets for what pods send out; the sets follow Nodes entry by entry."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.node import node_view
from kube_router_py.kernel.kube_router import pod_egress
from kube_router_py.kernel.ports import Jump, SetChange
from kube_router_py.routing.egress import (
    CHAIN,
    FORWARD,
    ClusterSets,
    compile_egress,
    compile_forward,
    is_own_chain,
    node_ips,
    owned_rules,
    owned_sets,
    pod_subnets,
)

PODS4, PODS6 = pod_subnets("inet"), pod_subnets("inet6")
NODES4, NODES6 = node_ips("inet"), node_ips("inet6")


def test_names_that_runbooks_know() -> None:
    assert [PODS4.name, PODS4.type] == ["kube-router-pod-subnets", "hash:net"]
    assert [NODES6.name, NODES6.type] == ["inet6:kube-router-node-ips", "hash:ip"]
    assert set(owned_sets()) == {each.name for each in (PODS4, PODS6, NODES4, NODES6)}


@pytest.mark.parametrize("random_fully", [True, False])
@pytest.mark.parametrize(("family", "prefix"), [("inet", ""), ("inet6", "inet6:")])
def test_what_leaves_the_cluster_is_masqueraded(
    family: str, prefix: str, random_fully: bool
) -> None:
    rules = compile_egress(family, is_enabled=True, random_fully=random_fully)
    assert rules.jumps == (Jump("POSTROUTING", f"-j {CHAIN}", "last"),)
    (rule,) = rules.chains[CHAIN]
    assert rule == (
        f"-m set --match-set {prefix}kube-router-pod-subnets src "
        f"-m set ! --match-set {prefix}kube-router-pod-subnets dst "
        f"-m set ! --match-set {prefix}kube-router-node-ips dst -j MASQUERADE"
        + (" --random-fully" if random_fully else "")
    )


def test_without_egress_there_are_no_chains() -> None:
    rules = compile_egress("inet", is_enabled=False, random_fully=True)
    assert (rules.chains, rules.jumps) == ({}, ())


def test_forwarding_is_accepted_where_no_firewall_does() -> None:
    rules = compile_forward(["eth0", "kube-bridge", "eth0"], is_needed=True)
    assert rules.chains == {
        FORWARD: ("-i kube-bridge -j ACCEPT", "-o kube-bridge -j ACCEPT", "-o eth0 -j ACCEPT")
    }
    assert rules.jumps == (Jump("FORWARD", f"-j {FORWARD}", "last"),)
    assert compile_forward(["eth0"], is_needed=False).chains == {}


def test_own_chains_are_known_by_name() -> None:
    named = [name for chains in owned_rules().values() for name in chains]
    assert named == [CHAIN, FORWARD]
    assert all(map(is_own_chain, named))
    assert not is_own_chain("KUBE-ROUTER-FORWARD")


def test_kube_routers_own_rule_is_recognised() -> None:
    theirs = (
        "-m set --match-set inet6:kube-router-pod-subnets src -m set ! --match-set "
        "inet6:kube-router-pod-subnets dst -m set ! --match-set inet6:kube-router-node-ips dst "
        "-j MASQUERADE --random-fully"
    )
    others = (
        f"-j {CHAIN}",
        "-s 10.0.0.0/8 -j MASQUERADE",
        "-m set --match-set kube-router-pod-subnets src -j ACCEPT",
        "-m set --match-set kube-router-pod-subnets src -j MASQUERADE",
    )
    chains = {"POSTROUTING": (others[0], theirs, *others[1:]), "OUTPUT": (theirs,)}
    assert pod_egress(chains) == {"POSTROUTING": (theirs,)}
    assert pod_egress({"POSTROUTING": others}) == {}


def view(make: Any, *arguments: Any, **spec: Any) -> Any:
    return node_view(make.node(*arguments, **spec))[0]


def test_sets_follow_nodes(make: Any) -> None:
    sets = ClusterSets((4, 6))
    assert sets.contents() == {each: frozenset() for each in (PODS4, PODS6, NODES4, NODES6)}
    sets.put(view(make, "a"))
    assert sets.contents() == {
        PODS4: {"10.244.1.0/24"},
        PODS6: {"fd00:10:244:1::/64"},
        NODES4: {"192.168.1.1"},
        NODES6: {"fd00:1::1"},
    }
    assert {each.spec for each in sets.take()} == {PODS4, PODS6, NODES4, NODES6}
    assert sets.take() == ()
    sets.put(view(make, "a"))
    assert sets.take() == ()
    sets.put(view(make, "b", ("192.168.1.2",), ("10.244.2.0/24",)))
    changes = {each.spec: each for each in sets.take()}
    assert changes.keys() == {PODS4, NODES4}
    assert changes[PODS4].add == {"10.244.2.0/24"}
    assert set(changes[PODS4].content) == {"10.244.1.0/24", "10.244.2.0/24"}
    sets.put(view(make, "b", ("192.168.1.2",), ("10.244.3.0/24",)))
    (change,) = sets.take()
    assert change.add == {"10.244.3.0/24"}
    assert change.remove == {"10.244.2.0/24"}
    sets.remove("b")
    assert {(it.spec, it.remove) for it in sets.take()} == {
        (PODS4, frozenset({"10.244.3.0/24"})),
        (NODES4, frozenset({"192.168.1.2"})),
    }
    sets.remove("b")
    assert sets.take() == ()


def test_an_entry_of_two_nodes_goes_with_the_last(make: Any) -> None:
    sets = ClusterSets((4,))
    sets.put(view(make, "a", ("192.168.1.1",), ("10.244.1.0/24",)))
    sets.put(view(make, "b", ("192.168.1.1",), ("10.244.1.0/24",)))
    sets.take()
    sets.remove("a")
    assert sets.take() == ()
    assert sets.contents()[PODS4] == {"10.244.1.0/24"}
    sets.remove("b")
    assert {each.spec for each in sets.take()} == {PODS4, NODES4}


def test_what_no_set_takes_is_told(make: Any) -> None:
    sets = ClusterSets((4,))
    sets.put(view(make, "a", ("192.168.1.1", "fd00::1"), ("0.0.0.0/0", "10.7.7.7/32", "::/0")))
    assert sets.contents() == {PODS4: {"10.7.7.7"}, NODES4: {"192.168.1.1"}}
    assert [(each.object, each.field) for each in sets.problems] == [("Node a", "spec.podCIDRs")]
    sets.put(view(make, "a"))
    assert sets.problems == ()


_NODES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.none()
        | st.tuples(
            st.sets(st.sampled_from(["192.168.1.1", "192.168.1.2", "fd00:1::1"])),
            st.sets(st.sampled_from(["10.244.1.0/24", "10.244.2.0/24", "fd00:2::/64"])),
        ),
        st.booleans(),
    ),
    max_size=12,
)


@given(steps=_NODES)
def test_entry_by_entry_equals_from_scratch(make: Any, steps: Any) -> None:
    """Whatever becomes of Nodes, and whenever the changes are taken."""
    sets = ClusterSets((4, 6))
    kernel: dict[Any, set[str]] = {spec: set() for spec in sets.contents()}
    nodes: dict[str, Any] = {}

    def take() -> None:
        change: SetChange
        for change in sets.take():
            assert change.add or change.remove
            assert not change.add & kernel[change.spec]
            assert change.remove <= kernel[change.spec]
            kernel[change.spec] |= change.add
            kernel[change.spec] -= change.remove
            assert kernel[change.spec] == set(change.content)

    for name, node, takes in steps:
        if node is None:
            nodes.pop(name, None)
            sets.remove(name)
        else:
            nodes[name] = view(make, name, sorted(node[0]), sorted(node[1]))
            sets.put(nodes[name])
        if takes:
            take()
    take()
    fresh = ClusterSets((4, 6))
    for each in nodes.values():
        fresh.put(each)
    assert fresh.contents() == sets.contents() == kernel
