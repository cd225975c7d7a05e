"""Whatever the objects of the cluster say, FRR is told values, and no line more than was meant."""

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import parse_member
from kube_router_py.routing.announcements import compile_announcements
from kube_router_py.routing.compile import compile_neighborhood, compile_router
from kube_router_py.routing.drain import Stage, drain_cause
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.model import PASSWORD_MAX, RouterConfig, is_word
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.settings import RoutingSettings

K = "kube-router.io/"

# What would break out of a line, of a word, of a quotation; and lookalikes of blanks and digits.
HOSTILE = [
    "\n no neighbor 10.0.0.2",
    "\r",
    "\x00no router bgp",
    "\t",
    " ",
    "\x0b\x0c",
    "\x1b[0m",
    "\x7f",
    "\x85",
    "\u2028",
    "\u00a0",
    "\u0661",
    "!",
    "#",
    '"',
    "|",
    "%eth0",
    "/0",
    "?",
    "\ud800",
    "9" * 400,
    "x" * 300,
]
GOOD = [
    "10.0.0.1",
    "192.0.2.7",
    "10.244.0.0/16",
    "fd00:1::1",
    "fe80::1",
    "fd00::/64",
    "eth0",
    "65000",
    "65000:1",
    "no-export",
    "true",
    "internal",
    "cGFzcw==",
    "90s",
]
fragments = st.one_of(st.sampled_from(GOOD), st.sampled_from(HOSTILE), st.text(max_size=5))
texts = st.lists(fragments, max_size=3).map("".join)
lists = st.lists(texts, max_size=3).map(",".join)
words = st.one_of(st.sampled_from(GOOD), texts)


PEER_KEYS = [
    "remoteip",
    "interface",
    "listenrange",
    "remoteasn",
    "localip",
    "port",
    "password",
    "passwordsecretref",
    "holdtime",
    "multihop",
    "gtsm",
    "gracefulrestart",
    "bfd",
]


@st.composite
def yaml_peers(draw: Any) -> str:
    keys = st.sampled_from(PEER_KEYS)
    places = ["remoteip: 203.0.113.1", "interface: eth0", "listenrange: 10.9.0.0/16"]
    rows = []
    for _ in range(draw(st.integers(0, 3))):
        which = draw(st.sampled_from(places))
        given = "".join(
            f"\n  {key}: {value!r}" if draw(st.booleans()) else f'\n  {key}: "{value}"'
            for key, value in draw(st.dictionaries(keys, words, max_size=4)).items()
        )
        rows.append(f"- {which}\n  remoteasn: 65000{given}\n")
    return "".join(rows)


NODE_ANNOTATIONS = [
    "peer.ips",
    "peer.asns",
    "peer.ports",
    "peer.passwords",
    "peer.localips",
    "rr.server",
    "rr.client",
    "node.asn",
    "bgp-local-addresses",
    "path-prepend.as",
    "path-prepend.repeat-n",
    "node.bgp.communities",
    "node.bgp.customimportreject",
    "pod-cidr",
    "pod-cidrs",
    "drain",
]


@st.composite
def nodes(draw: Any, name: Any) -> Node:
    names = st.sampled_from([K + each for each in NODE_ANNOTATIONS])
    notes = draw(st.dictionaries(names, lists, max_size=4))
    if draw(st.booleans()):
        notes[f"{K}peers"] = draw(st.one_of(yaml_peers(), texts))
    addresses = [draw(st.sampled_from(["192.168.1.1", "192.168.1.2"])), "fd00:1::1", draw(words)]
    return Node(
        metadata=ObjectMeta(name=draw(name), annotations=notes),
        spec=NodeSpec(pod_cidrs=("10.244.1.0/24", draw(words)), unschedulable=draw(st.booleans())),
        status=NodeStatus(tuple(NodeAddress("InternalIP", each) for each in addresses)),
    )


SERVICE_ANNOTATIONS = [
    "service.advertise.clusterip",
    "service.advertise.externalip",
    "service.bgp.local-preference",
    "service.bgp.communities",
    "service.bgp.peers",
    "service.local",
]


@st.composite
def services(draw: Any) -> tuple[Service, tuple[EndpointSlice, ...]]:
    names = st.sampled_from([K + each for each in SERVICE_ANNOTATIONS])
    service = Service(
        metadata=ObjectMeta(
            name=draw(texts), namespace="n", annotations=draw(st.dictionaries(names, lists))
        ),
        spec=ServiceSpec(
            type="LoadBalancer",
            cluster_ips=("10.96.0.1", draw(words)),
            external_ips=tuple(draw(st.lists(words, max_size=2))),
            ports=(ServicePort(name=draw(texts), port=80, protocol=draw(texts) or None),),
            internal_traffic_policy=draw(st.sampled_from(["Local", "Cluster"])),
        ),
        status=ServiceStatus(LoadBalancerStatus((LoadBalancerIngress(ip=draw(words)),))),
    )
    endpoint = Endpoint(addresses=(draw(words),), node_name=draw(texts))
    found = EndpointSlice(
        address_type=draw(st.sampled_from(["IPv4", "IPv6", ""])),
        endpoints=(endpoint,),
        ports=(EndpointPort(port=8080),),
    )
    return service, (found,)


def values(each: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside, by the names of the fields that lead there."""
    if isinstance(each, msgspec.Struct):
        for name in each.__struct_fields__:
            yield from values(getattr(each, name), f"{path}.{name}")
    elif isinstance(each, tuple):
        for item in each:
            yield from values(item, path)
    else:
        yield path, each


def check(config: RouterConfig) -> None:
    for path, value in values(config):
        if isinstance(value, str) and not isinstance(value, StrEnum):
            field = path.rpartition(".")[2]
            assert value.isprintable(), (path, value)
            if field == "password":
                assert " " not in value
                assert len(value.encode()) <= PASSWORD_MAX
            elif field == "interface":
                assert value == "" or is_word(value)
            elif field != "description":  # the rest of its line, with single plain blanks
                assert all(is_word(part) for part in value.replace("/", ":").split(":") if part)
        elif isinstance(value, IPv6Address):
            assert value.scope_id is None
        else:
            plain = (int, str, IPv4Address, IPv4Network, IPv6Network, bool)
            assert value is None or isinstance(value, plain), (path, value)


def quoted(problems: tuple[Problem, ...]) -> bool:
    return all(each.reason.isprintable() and len(each.reason) < 1000 for each in problems)


@settings(max_examples=120, deadline=None)
@given(
    own=nodes(st.just("node1")),
    others=st.lists(nodes(st.one_of(st.just("node2"), texts)), max_size=2),
    found=st.dictionaries(st.sampled_from(["n/a", "n/b", "n/c"]), services()),
    stage=st.sampled_from(list(Stage)),
    mesh=st.booleans(),
    flags=st.booleans(),
    password_list=lists,
    secret=st.binary(max_size=90),
)
def test_no_text_from_outside_gets_into_a_router(
    own: Node,
    others: list[Node],
    found: dict[str, Any],
    stage: Stage,
    mesh: bool,
    flags: bool,
    password_list: str,
    secret: bytes,
) -> None:
    rules = RoutingSettings(
        ipv6=True,
        has_proxy=False,
        full_mesh=mesh,
        strict_external_ips=False,
        advertise_cluster_ip=True,
        advertise_external_ip=True,
        advertise_load_balancer_ip=True,
        advertise_aggregate=(ip_network("192.0.2.0/24"),),
        advertise_specifics_to=("eth0", "10.0.0.1"),
        cluster_ranges=(ip_network("10.96.0.0/12"),),
        peer_addresses=(IPv4Address("203.0.113.9"),) if flags else (),
        peer_asns=(65000,) if flags else (),
        peer_passwords_file="/somewhere",
    )
    views = [node_view(node)[0] for node in (own, *others)]
    around = compile_neighborhood(
        views[0],
        [parse_member(view)[0] for view in views],
        rules,
        password_list=password_list,
        secrets={SecretRef("10.0.0.1", "10.0.0.1"): secret},
    )
    index = compile_announcements(found, "node1", rules, around.peers)
    config, problems = compile_router(
        rules, around, index.current(), index.outside_ranges(), stage=stage
    )
    _, told = drain_cause(own, rules)
    if all(is_word(view.name) for view in views):  # names are as the API server admits them
        assert quoted((*problems, *told, *index.problems()))
    if config is None:
        return
    check(config)
    rendered = render_frr(config)
    for section in (*rendered.zebra, *rendered.bfdd, *rendered.bgpd):
        for line in (*section.path, *section.lines):
            assert line.isprintable()
            assert line == line.strip() != ""


@settings(max_examples=60, deadline=None)
@given(one=nodes(st.just("node1")), two=nodes(st.just("node2")), found=services())
def test_the_order_in_which_objects_come_does_not_matter(one: Node, two: Node, found: Any) -> None:
    rules = RoutingSettings(ipv6=True, has_proxy=False, advertise_cluster_ip=True)

    def compiled(nodes: list[Node]) -> Any:
        members = [parse_member(node_view(node)[0])[0] for node in nodes]
        around = compile_neighborhood(node_view(one)[0], members, rules)
        index = compile_announcements({"n/a": found}, "node1", rules, around.peers)
        return compile_router(rules, around, index.current(), index.outside_ranges())

    assert compiled([one, two]) == compiled([two, one]) == compiled([two])
