"""compile_service: traffic policies, topology hints, weights."""

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.endpoints import compile_endpoints
from kube_router_py.proxy.model import Guard
from kube_router_py.proxy.settings import ProxyOptions

DUAL = ProxyOptions(ipv6=True, strict_external_ips=False)
HAIRPIN = {"kube-router.io/service.hairpin": ""}
INSIDE, NODE_PORT = "10.96.0.10", ("192.168.1.1", 30080)


def compiled(
    make: Any, service: Any, *slices: Any, options: ProxyOptions = DUAL, **place: Any
) -> CompiledService:
    return compile_service(service, slices, make.place(**place), options)


def used(make: Any, found: CompiledService, *key: Any) -> set[str]:
    return set(make.weights(found.virtual_servers[make.key(*key)]))


def names(reals: frozenset[Any]) -> set[str]:
    return {str(ipaddress.ip_address(real.address)) for real in reals}


# --- traffic policies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "internal", "external"),
    [
        # What each of the two endpoints is, and (endpoints, guard) of both policies.
        ("READY", "READY", ("h", Guard()), ("h", Guard())),
        ("READY", None, ("h", Guard()), ("h", Guard())),
        (None, "READY", ("", Guard(everyone=True)), ("t", Guard(outsiders=True))),
        ("NOT_READY", "READY", ("", Guard(everyone=True)), ("t", Guard(outsiders=True))),
        ("TERMINATING", "READY", ("", Guard(everyone=True)), ("t", Guard(outsiders=True))),
        # A local endpoint on its way out beats a ready one elsewhere (KEP-1669).
        ("SERVING_TERMINATING", "READY", ("h", Guard()), ("h", Guard())),
        (None, "SERVING_TERMINATING", ("", Guard(everyone=True)), ("t", Guard(outsiders=True))),
        # Nothing anywhere: refused, which tells a client more than silence.
        (None, None, ("", Guard()), ("", Guard())),
        ("NOT_READY", "TERMINATING", ("", Guard()), ("", Guard())),
    ],
)
def test_local_policies(
    make: Any,
    here: str | None,
    there: str | None,
    internal: tuple[str, Guard],
    external: tuple[str, Guard],
) -> None:
    endpoints = []
    if here:
        endpoints.append(make.endpoint("10.244.1.2", getattr(make, here)))
    if there:
        endpoints.append(make.endpoint("10.244.2.2", getattr(make, there), "node2"))
    service = make.service(
        node_port=30080,
        external_ips=("203.0.113.1",),
        internal_traffic_policy="Local",
        external_traffic_policy="Local",
    )
    found = compiled(make, service, make.slice(*endpoints))
    addresses = {"h": {"10.244.1.2"}, "t": {"10.244.2.2"}, "": set()}
    for key, (chosen, guard) in (
        ((INSIDE,), internal),
        (NODE_PORT, external),
        (("203.0.113.1",), external),
    ):
        assert used(make, found, *key) == addresses[chosen]
        assert found.guards.get(make.key(*key), Guard()) == guard
    assert Guard() not in found.guards.values()


def test_the_local_annotation_leaves_the_cluster_ip_alone(make: Any) -> None:
    service = make.service(
        external_ips=("203.0.113.1",),
        internal_traffic_policy="Local",
        annotations={"kube-router.io/service.local": "true"},
    )
    found = compiled(make, service, make.slice(make.endpoint("10.244.2.2", node="node2")))
    assert found.guards == {make.key("203.0.113.1"): Guard(outsiders=True)}
    assert used(make, found, INSIDE) == {"10.244.2.2"}


def test_what_is_paused_elsewhere_stays_paused_while_it_is_the_only_hope(make: Any) -> None:
    """Insiders of an external Local Service may have connections to other nodes' endpoints."""
    service = make.service(external_ips=("203.0.113.1",), external_traffic_policy="Local")
    key = make.key("203.0.113.1")
    blip = make.endpoint("10.244.2.2", make.NOT_READY, "node2")
    leaving = make.endpoint("10.244.2.3", make.TERMINATING, "node2")
    found = compiled(make, service, make.slice(blip, leaving))
    assert names(found.paused[key]) == {"10.244.2.2"}
    assert names(found.terminating[key]) == {"10.244.2.3"}
    # With an endpoint here they are none of this node's: what is left of them drains.
    found = compiled(make, service, make.slice("10.244.1.2", blip, leaving))
    assert key not in found.paused
    assert key not in found.terminating


# --- topology hints ------------------------------------------------------------------------------


def test_hints_are_for_cluster_traffic_only_and_those_for_others_just_leave(make: Any) -> None:
    service = make.service(
        node_port=30080, external_traffic_policy="Local", internal_traffic_policy="Cluster"
    )
    endpoints = make.slice(
        make.endpoint("10.244.1.2", zones=["b"]),
        make.endpoint("10.244.2.2", node="node2", zones=["a", "c"]),
        make.endpoint("10.244.2.3", make.NOT_READY, node="node2", zones=["b"]),
        make.endpoint("10.244.2.4", make.SERVING_TERMINATING, node="node2", zones=["b"]),
    )
    found = compiled(make, service, endpoints, zone="a")
    inside = make.key(INSIDE)
    assert used(make, found, INSIDE) == {"10.244.2.2"}
    assert used(make, found, *NODE_PORT) == {"10.244.1.2"}
    assert names(found.paused[inside]) == {"10.244.2.3"}
    assert names(found.terminating[inside]) == {"10.244.2.4"}


def test_hints_hold_where_outsiders_are_dropped(make: Any) -> None:
    service = make.service(external_ips=("203.0.113.1",), external_traffic_policy="Local")
    endpoints = make.slice(
        make.endpoint("10.244.2.2", node="node2", zones=["a"]),
        make.endpoint("10.244.3.2", node="node3", zones=["b"]),
    )
    found = compiled(make, service, endpoints, zone="a")
    assert used(make, found, "203.0.113.1") == {"10.244.2.2"}
    assert found.guards == {make.key("203.0.113.1"): Guard(outsiders=True)}


def test_node_hints_and_a_change_of_zone(make: Any) -> None:
    endpoints = make.slice(
        make.endpoint("10.244.1.2", nodes=["node1"], zones=["a"]),
        make.endpoint("10.244.2.2", nodes=["node2"], zones=["a"]),
        make.endpoint("10.244.3.2", nodes=["node3"], zones=["b"]),
    )
    found = compiled(make, make.service(), endpoints, zone="b")
    assert used(make, found, INSIDE) == {"10.244.1.2"}
    elsewhere = make.slice(*endpoints.endpoints[1:])
    for zone, chosen in (("a", {"10.244.2.2"}), ("b", {"10.244.3.2"})):
        assert used(make, compiled(make, make.service(), elsewhere, zone=zone), INSIDE) == chosen


def test_where_an_endpoint_is_and_which_pod_it_is(make: Any) -> None:
    problems: list[Any] = []
    found = compile_endpoints(
        [
            make.slice(make.endpoint("10.244.1.2", pod="uid-2"), "10.244.1.3", name="one"),
            make.slice(make.endpoint("10.244.2.2", node="node2", pod="uid-4"), name="two"),
        ],
        "",
        6,
        2,
        make.place(),
        problems,
    )
    assert dict(found.pods) == {make.real("10.244.1.2"): "uid-2", make.real("10.244.2.2"): "uid-4"}
    assert found.node_of(make.real("10.244.2.2")) == "node2"
    assert not problems


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected", "scheduler"),
    [
        ({}, {"10.244.1.2": 1, "10.244.2.2": 1, "10.244.3.2": 1}, "rr"),
        ({"node9": 5}, {"10.244.1.2": 1, "10.244.2.2": 1, "10.244.3.2": 1}, "rr"),
        ({"node2": 5}, {"10.244.1.2": 1, "10.244.2.2": 5, "10.244.3.2": 1}, "wrr"),
        # Equal weights, and weight 0, are nothing that rr gets wrong.
        (
            {"node1": 3, "node2": 3, "node3": 3},
            {"10.244.1.2": 3, "10.244.2.2": 3, "10.244.3.2": 3},
            "rr",
        ),
        ({"node2": 0}, {"10.244.1.2": 1, "10.244.2.2": 0, "10.244.3.2": 1}, "rr"),
        # Endpoints on nodes that are to take nothing are better than none.
        (
            {"node1": 0, "node2": 0, "node3": 0},
            {"10.244.1.2": 1, "10.244.2.2": 1, "10.244.3.2": 1},
            "rr",
        ),
    ],
)
def test_weights(
    make: Any, weights: dict[str, int], expected: dict[str, int], scheduler: str
) -> None:
    endpoints = make.slice(*(make.endpoint(f"10.244.{n}.2", node=f"node{n}") for n in (1, 2, 3)))
    found = compiled(make, make.service(), endpoints, weights=weights)
    state = found.virtual_servers[make.key(INSIDE)]
    assert (make.weights(state), state.config.scheduler) == (expected, scheduler)
    assert found.problems == ()


def test_weight_0_alone_among_local_endpoints_still_serves(make: Any) -> None:
    service = make.service(node_port=30080, external_traffic_policy="Local")
    endpoints = make.slice("10.244.1.2", make.endpoint("10.244.2.2", node="node2"))
    found = compiled(make, service, endpoints, weights={"node1": 0})
    assert make.weights(found.virtual_servers[make.key(*NODE_PORT)]) == {"10.244.1.2": 1}
    inside = make.weights(found.virtual_servers[make.key(INSIDE)])
    assert inside == {"10.244.1.2": 0, "10.244.2.2": 1}


@pytest.mark.parametrize(
    ("annotation", "unloadable", "scheduler", "problems"),
    [
        ("wlc", (), "wlc", 0),
        ("rr", (), "rr", 0),  # what the Service says stands
        (None, ("wrr",), "rr", 1),
        (None, ("wlc",), "wrr", 0),
    ],
)
def test_the_scheduler_where_weights_differ(
    make: Any, annotation: str | None, unloadable: tuple[str, ...], scheduler: str, problems: int
) -> None:
    options = ProxyOptions(unloadable_schedulers=frozenset(unloadable))
    service = make.service(
        annotations={"kube-router.io/service.scheduler": annotation} if annotation else None,
        session_affinity="ClientIP",
    )
    endpoints = make.slice("10.244.1.2", make.endpoint("10.244.2.2", node="node2"))
    found = compiled(make, service, endpoints, options=options, weights={"node2": 7})
    (state,) = found.virtual_servers.values()
    assert (state.config.scheduler, state.config.persistence_s) == (scheduler, 10800)
    assert len(found.problems) == problems


# --- whatever the objects are --------------------------------------------------------------------


@given(data=st.data())
def test_the_order_of_objects_matters_nowhere(make: Any, data: st.DataObject) -> None:
    states = st.sampled_from([make.READY, make.NOT_READY, make.SERVING_TERMINATING, None])
    hints = st.lists(st.sampled_from(["node1", "node2"]), max_size=2)
    endpoints = st.builds(
        make.endpoint,
        st.integers(1, 5).map(lambda n: f"10.244.1.{n}"),
        states,
        st.sampled_from(["node1", "node2", "node3"]),
        zones=hints,
        nodes=hints,
        pod=st.sampled_from(["", "uid"]),
    )
    slices = [
        make.slice(*data.draw(st.lists(endpoints, max_size=4)), name=f"s{n}") for n in range(2)
    ]
    service = make.service(
        node_port=30080,
        external_traffic_policy="Local",
        internal_traffic_policy=data.draw(st.sampled_from(["Local", "Cluster"])),
        annotations=HAIRPIN,
    )
    place: dict[str, Any] = {
        "zone": "node1",
        "weights": {"node2": data.draw(st.sampled_from([0, 1, 4]))},
    }
    first, *others = (
        compiled(make, service, *order, **place)
        for order in itertools.permutations(
            [*slices, *(make.slice(*reversed(s.endpoints), name=s.metadata.name) for s in slices)],
            2,
        )
        if order[0].metadata.name != order[1].metadata.name
    )
    for other in others:
        assert other == first
    for key, state in first.virtual_servers.items():
        reals = state.real_servers
        # Nobody is turned away by weight alone, and nothing both serves and drains.
        assert not reals or any(real.weight for real in reals.values())
        leaving = first.paused.get(key, frozenset()) | first.terminating.get(key, frozenset())
        assert not leaving & reals.keys()
    usable = {
        endpoint.addresses
        for each in slices
        for endpoint in each.endpoints
        if endpoint.conditions in (make.READY, None, make.SERVING_TERMINATING)
    }
    outside = first.virtual_servers[make.key(*NODE_PORT)]
    assert bool(outside.real_servers) == bool(usable)
