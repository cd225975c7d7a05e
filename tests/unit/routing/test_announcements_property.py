"""Whatever comes in whatever order, the index says what the Services together ask for."""

from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from kube_router_py.routing import distinct_terms
from kube_router_py.routing.announcements import Announcements, compile_announcements
from kube_router_py.routing.exports import compile_export
from kube_router_py.routing.model import Community, is_word
from kube_router_py.routing.settings import RoutingSettings

CLUSTER = ("10.96.0.1", "10.96.0.2", "fd00:96::1")
EXTERNAL = ("192.0.2.1", "192.0.2.2", "198.51.100.1", "fd00:5::1", "nonsense")
PEERS = ("203.0.113.1", "203.0.113.2", "eth0")
BGP = "kube-router.io/service.bgp."
ADVERTISE = "kube-router.io/service.advertise."


def rules(has_proxy: bool) -> RoutingSettings:
    return RoutingSettings(
        ipv6=True,
        has_proxy=has_proxy,
        advertise_cluster_ip=True,
        strict_external_ips=False,
        cluster_ranges=(ip_network("10.96.0.0/12"), ip_network("fd00:96::/112")),
        external_ranges=(ip_network("192.0.2.0/24"),),
    )


annotations = st.dictionaries(
    st.sampled_from(
        [
            f"{ADVERTISE}clusterip",
            f"{ADVERTISE}externalip",
            f"{BGP}communities",
            f"{BGP}local-preference",
            f"{BGP}peers",
        ]
    ),
    st.one_of(
        st.sampled_from(["true", "false", "100", "65000:1,no-export", *PEERS, ",".join(PEERS)]),
        st.text(max_size=6),
    ),
    max_size=3,
)


@st.composite
def services(draw: Any) -> Service:
    policy = st.sampled_from([None, "Cluster", "Local"])
    return Service(
        metadata=ObjectMeta(
            name=draw(st.sampled_from("ab")),
            namespace="n",
            creation_timestamp=draw(st.sampled_from([None, "2024", "2025"])),
            annotations=draw(annotations),
        ),
        spec=ServiceSpec(
            type=draw(st.sampled_from(["ClusterIP", "ClusterIP", "ExternalName"])),
            cluster_ips=tuple(draw(st.lists(st.sampled_from(CLUSTER), max_size=2, unique=True))),
            external_ips=tuple(draw(st.lists(st.sampled_from(EXTERNAL), max_size=2))),
            ports=(ServicePort(port=80),),
            internal_traffic_policy=draw(policy),
            external_traffic_policy=draw(policy),
        ),
    )


STATES = [EndpointConditions(*each) for each in product((True, False), repeat=3)]
states = st.lists(
    st.tuples(st.sampled_from(STATES), st.sampled_from(["node1", "node2"])), max_size=2
)


@st.composite
def slices(draw: Any) -> tuple[EndpointSlice, ...]:
    family, prefix = draw(st.sampled_from([("IPv4", "10.244.1."), ("IPv6", "fd00:1::")]))
    endpoints = tuple(
        Endpoint(addresses=(f"{prefix}{number}",), conditions=state, node_name=node)
        for number, (state, node) in enumerate(draw(states), 1)
    )
    ports = (EndpointPort(port=8080),)
    return (EndpointSlice(address_type=family, endpoints=endpoints, ports=ports),)


addresses = st.frozensets(
    st.sampled_from([ip_address(text) for text in (*CLUSTER, *EXTERNAL[:-1])])
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.tuples(services(), slices())),
        st.tuples(st.just("update"), st.tuples(services(), slices())),
        st.tuples(st.just("remove"), st.sampled_from("abcd")),
        st.tuples(st.just("peers"), st.frozensets(st.sampled_from(PEERS))),
        st.tuples(st.just("programmed"), st.one_of(st.none(), addresses)),
        st.tuples(st.just("change"), st.tuples(addresses, addresses)),
    ),
    max_size=15,
)


@settings(max_examples=150, deadline=None)
@given(steps=steps, has_proxy=st.booleans(), most=st.sampled_from([2, 5, 128]))
def test_step_by_step_is_as_from_scratch(steps: list[Any], has_proxy: bool, most: int) -> None:
    with patch.object(distinct_terms, "MOST_ENTRIES", most):
        _check_steps(steps, has_proxy)


def _check_steps(steps: list[Any], has_proxy: bool) -> None:
    index = Announcements("node1", rules(has_proxy))
    known: dict[str, Any] = {}
    peers: frozenset[str] = frozenset()
    programmed: set[Any] | None = set() if has_proxy else None
    for what, value in steps:
        index.outside_ranges()  # which remembers what it said
        before = {each.prefix: each for each in index.current()}
        if what == "update":
            key = value[0].metadata.key
            known[key] = value
            changed = index.update(key, *value)
        elif what == "remove":
            known.pop(f"n/{value}", None)
            changed = index.remove(f"n/{value}")
        elif what == "peers":
            peers = value
            changed = index.follow_peers(value)
        elif what == "programmed":
            programmed = None if value is None else set(value)
            changed = index.follow_programmed(value)
        else:
            if programmed is not None:
                programmed = (programmed - value[1]) | value[0]
            changed = index.change_programmed(*value)
        after = {each.prefix: each for each in index.current()}
        differing = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        assert changed == differing

    whole = compile_announcements(known, "node1", rules(has_proxy), peers, programmed)
    assert index.current() == whole.current()
    assert index.problems() == whole.problems()
    assert index.outside_ranges() == whole.outside_ranges()
    backwards = dict(reversed(known.items()))
    again = compile_announcements(backwards, "node1", rules(has_proxy), peers, programmed)
    assert (again.current(), again.problems()) == (whole.current(), whole.problems())

    # Nothing more than what there may be, in the order that there must be.
    shown = index.current()
    order = [(each.prefix.version, int(each.prefix.network_address)) for each in shown]
    assert order == sorted(set(order))
    for each in shown:
        assert each.prefix.prefixlen == each.prefix.max_prefixlen
        assert programmed is None or each.prefix.network_address in programmed
        assert each.peers is None or set(each.peers) <= peers


@settings(max_examples=150, deadline=None)
@given(
    found=st.dictionaries(st.sampled_from("abc"), st.tuples(services(), slices()), max_size=3),
    programmed=addresses,
)
def test_an_address_is_announced_if_and_only_if_a_service_asks_for_it(
    found: dict[str, Any], programmed: frozenset[Any]
) -> None:
    """Against the rules written down once more, in the plainest way."""
    wanted = set()
    for service, own in found.values():
        spec, notes = service.spec, service.metadata.annotations
        if spec.type == "ExternalName":
            continue
        sorts: list[tuple[str, bool, Any, Any]] = [
            ("clusterip", True, spec.cluster_ips, spec.internal_traffic_policy),
            ("externalip", False, spec.external_ips, spec.external_traffic_policy),
        ]
        for name, by_flag, texts, policy in sorts:
            text = notes.get(ADVERTISE + name)
            if not (by_flag if text is None else text in ("true", "1", "t", "T", "True", "TRUE")):
                continue
            for each in texts:
                if each != "nonsense" and (policy != "Local" or _is_served(own[0], each)):
                    wanted.add(ip_address(each))
    index = compile_announcements(found, "node1", rules(True), frozenset(), programmed)
    assert {each.prefix.network_address for each in index.current()} == wanted & programmed


def _is_served(found: EndpointSlice, address: str) -> bool:
    if (found.address_type == "IPv6") != (":" in address):
        return False
    own = [e.conditions for e in found.endpoints or () if e.node_name == "node1" and e.conditions]
    if any(each.ready for each in own):
        return True
    return any(each.serving and each.terminating for each in own)


@pytest.mark.parametrize("annotation", ["communities", "local-preference", "peers"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_no_text_of_an_annotation_gets_through(annotation: str, text: str, make: Any) -> None:
    notes = {f"{BGP}{annotation}": text}
    index = Announcements("node1", rules(False), frozenset(PEERS))
    service = make.service(annotations=notes)
    index.update("default/web", service)
    (found,) = index.current()
    assert set(found.peers or ()) <= set(PEERS)
    asked = compile_export(service, (), "node1", rules(False)).terms.peers
    assert all(is_word(each.replace("/", "-").replace(":", "-")) for each in asked or ())
    assert all(isinstance(each, Community) for each in found.communities)
    assert found.local_preference is None or 0 <= found.local_preference < 2**32
    assert all(str(each).isprintable() for each in index.problems())
