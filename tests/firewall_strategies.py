"""Random objects for the firewall, good and bad: few names and addresses, so that they meet."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, product
from typing import Any

from firewall_cluster import (
    NODE_ADDRESSES,
    Object,
    identity,
    namespace,
    pod,
    policy,
    service,
)
from firewall_tracer import Flow
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

SPACES = ("a", "a", "ab", "b")
LABELS: Strategy = st.fixed_dictionaries(
    {}, optional={"app": st.sampled_from(["x", "y", ""]), "tier": st.sampled_from(["x", "z"])}
)
PORTS = (53, 80, 81)
NAMES = ("web", "dns")


def _weighted(*choices: tuple[int, Strategy]) -> Strategy:
    given = [each for count, each in choices for _ in range(count)]

    # Not one_of or flatmap: their reprs grow with what is in them, without end.
    @st.composite
    def weighted(draw: st.DrawFn) -> Any:
        return draw(given[draw(st.integers(0, len(given) - 1))])

    return weighted()


def _mostly(good: Strategy, bad: Strategy) -> Strategy:
    return _weighted((9, good), (1, bad))


# --- objects -------------------------------------------------------------------------------------

# What is mistyped enforces.
AUDITS: Strategy = _weighted(
    (4, st.none()), (2, st.just("true")), (1, st.sampled_from(["false", "True", "1", ""]))
)
NAMESPACES = st.builds(namespace, st.sampled_from(SPACES), LABELS, audit=AUDITS)

WEB, DNS = {"name": "web", "containerPort": 80}, {"name": "dns", "containerPort": 53}
UDP = {"protocol": "UDP"}
CONTAINER_PORTS: Strategy = st.sampled_from(
    [
        [WEB],
        [{**WEB, "containerPort": 81}],
        [{**WEB, **UDP}, WEB],
        [{**DNS, **UDP}, {**WEB, "containerPort": 81}],
        [{**WEB, "containerPort": 53, "protocol": "SCTP"}, {**WEB, "name": "dns"}],
        [WEB, {**WEB, "containerPort": 81}],
        [{"containerPort": 80}],
        [],
    ]
)
# A pool for each node, small enough that pods claim each other's addresses.
IPS = {
    node: [[f"10.244.{node[-1]}.{n}", f"fd00:10:244:{node[-1]}::{n}"] for n in (1, 2, 3, 17)]
    for node in NODE_ADDRESSES
}


@st.composite
def _pods(draw: st.DrawFn) -> Object:
    node = draw(st.sampled_from(sorted(NODE_ADDRESSES)))
    host_network = draw(st.integers(0, 7)) == 7
    both = draw(st.sampled_from(IPS[node]))
    some = [both, both, both[::-1], both[:1], both[1:], [], [""], ["wrong", both[0]]]
    ips = NODE_ADDRESSES[node] if host_network else draw(st.sampled_from(some))
    return pod(
        draw(st.sampled_from(SPACES)) + "/" + draw(st.sampled_from(["p", "q", "bp"])),
        node if ips else "",
        ips,
        draw(LABELS),
        draw(CONTAINER_PORTS),
        phase=draw(
            st.sampled_from(["Running"] * 6 + ["Pending", "Unknown", "Succeeded", "Failed"])
        ),
        host_network=host_network,
        terminating=draw(st.integers(0, 5)) == 5,
        sidecar=draw(CONTAINER_PORTS) if draw(st.booleans()) else (),
    )


PODS = _pods()

# --- policies ------------------------------------------------------------------------------------

VALUES = st.lists(st.sampled_from(["x", "y", "z", ""]), min_size=1, max_size=2)
KEYS = st.sampled_from(["app", "tier", "none"])
EXPRESSIONS = st.one_of(
    st.builds(
        lambda key, operator, values: {"key": key, "operator": operator, "values": values},
        KEYS,
        st.sampled_from(["In", "NotIn"]),
        VALUES,
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator},
        KEYS,
        st.sampled_from(["Exists", "DoesNotExist"]),
    ),
)
BROKEN_EXPRESSIONS: Strategy = st.sampled_from(
    [
        {"key": "app", "operator": "Near", "values": ["x"]},
        {"key": "app", "values": ["x"]},
        {"key": "app", "operator": "In"},
        {"key": "app", "operator": "NotIn", "values": []},
        {"key": "app", "operator": "Exists", "values": ["x"]},
        {"key": "none", "operator": "DoesNotExist", "values": ["x"]},
    ]
)
SELECTORS: Strategy = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"matchLabels": st.just({"app": "x"})}),
    st.fixed_dictionaries(
        {},
        optional={
            "matchLabels": LABELS,
            "matchExpressions": st.lists(_mostly(EXPRESSIONS, BROKEN_EXPRESSIONS), max_size=2),
        },
    ),
)

POD_CIDRS: Strategy = st.sampled_from(
    ["10.244.1.0/24", "10.244.1.1/32", "10.244.1.2/31", "10.244.2.0/24", "10.244.2.1/32"]
)
CIDRS: Strategy = _mostly(
    st.sampled_from(
        [
            "0.0.0.0/0", "::/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.2.9/24", "10.0.0.0/8",
            "10.244.1.1/32", "10.244.1.2/31", "10.244.1.0/28", "192.168.1.2/32", "192.168.1.0/30",
            "203.0.113.0/24", "128.0.0.0/1", "0.0.0.0/1", "9.0.0.0/8", "fd00:10:244::/48",
            "fd00:10:244:1::2/127", "fd00:10:244:2::1/128", "fd00::/8", "2001:db8::/32", "::/1",
        ]
    ),
    st.sampled_from(
        [
            "", "10.0.0.0", "10.0.0.0/33", "10.244.1/24", "fd00::/129", "all", "/", "10.0.0.0/",
            "10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", " 10.0.0.0/8", "10.0.0.0/8 ",
            "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/08", "010.0.0.0/8", "fe80::%eth0/10",
            "::ffff:10.0.0.0/104", "fd00::/0008", "10.0.0.0/\u0668", "0x0a.0.0.0/8", "10.0.0.0/8/8",
        ]
    ),
)  # fmt: skip
BLOCKS: Strategy = st.fixed_dictionaries(
    {"cidr": _weighted((1, POD_CIDRS), (2, CIDRS))},
    optional={"except": st.lists(_weighted((1, POD_CIDRS), (2, CIDRS)), max_size=2)},
)
PEERS: Strategy = _mostly(
    st.one_of(
        st.fixed_dictionaries({"podSelector": SELECTORS}),
        st.fixed_dictionaries({"namespaceSelector": SELECTORS}),
        st.fixed_dictionaries({"podSelector": SELECTORS, "namespaceSelector": SELECTORS}),
        st.fixed_dictionaries({"ipBlock": BLOCKS}),
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"ipBlock": BLOCKS, "podSelector": SELECTORS}),
        st.fixed_dictionaries({"ipBlock": BLOCKS, "namespaceSelector": SELECTORS}),
    ),
)
ENTRIES: Strategy = _weighted(
    (
        4,
        st.fixed_dictionaries(
            {"port": st.sampled_from([*NAMES, "web", "ghost"])},
            optional={"protocol": st.sampled_from(["TCP", "TCP", "UDP", "SCTP"])},
        ),
    ),
    (
        2,
        st.fixed_dictionaries(
            {"port": st.sampled_from([1, *PORTS])},
            optional={
                "protocol": st.sampled_from(["TCP", "UDP", "SCTP"]),
                "endPort": st.sampled_from([80, 81, 65535]),
            },
        ),
    ),
    (
        1,
        st.fixed_dictionaries(
            {},
            optional={
                "protocol": st.sampled_from(["TCP", "UDP", "SCTP", "QUIC", "tcp", ""]),
                "port": st.sampled_from([80, *NAMES, "80", "", 0, -1, 65536]),
                "endPort": st.sampled_from([80, 81, 82, 65535, 65536, 0]),
            },
        ),
    ),
)


def _rules(side: str) -> Strategy:
    none: Strategy = st.sampled_from([None, []])
    some = st.lists(PEERS, min_size=1, max_size=2)
    peers = _weighted(
        (6, st.builds(lambda found: {side: found}, some)),
        (1, st.builds(lambda found: {side: found}, none)),
        (2, st.just({})),
    )
    ports = _weighted(
        (5, st.builds(lambda found: {"ports": found}, st.lists(ENTRIES, min_size=1, max_size=2))),
        (1, st.builds(lambda found: {"ports": found}, none)),
        (2, st.just({})),
    )
    rule = st.builds(lambda one, other: {**one, **other}, peers, ports)
    return _weighted((9, st.lists(rule, min_size=1, max_size=2)), (1, none))


INGRESS, EGRESS = _rules("from"), _rules("to")
TYPES: Strategy = st.sampled_from([None, [], ["Sideways"], ["Sideways", "Egress"], ["Ingress"]])
SPECS: Strategy = st.builds(
    lambda target, rest: {"podSelector": target, **rest},
    st.one_of(st.just({}), st.none(), SELECTORS),
    _weighted(
        (3, st.fixed_dictionaries({"policyTypes": st.just(["Ingress"]), "ingress": INGRESS})),
        (3, st.fixed_dictionaries({"policyTypes": st.just(["Egress"]), "egress": EGRESS})),
        (2, st.fixed_dictionaries({"ingress": INGRESS, "egress": EGRESS})),
        (
            2,
            st.fixed_dictionaries(
                {"policyTypes": TYPES}, optional={"ingress": INGRESS, "egress": EGRESS}
            ),
        ),
    ),
)
POLICIES = st.builds(
    policy,
    st.builds("/".join, st.tuples(st.sampled_from(SPACES), st.sampled_from(["n", "bn", "m"]))),
    SPECS,
    audit=AUDITS,
)

# --- Services ------------------------------------------------------------------------------------

VIPS = (("10.96.0.1", "fd00:96::1"), ("10.96.0.2",), ("fd00:96::2",))
SERVICES = st.builds(
    service,
    st.sampled_from(["a/s", "b/s"]),
    st.sampled_from(VIPS),
    st.sampled_from([80, 443]),
    st.sampled_from([80, 81]),
    st.sampled_from(["TCP", "UDP"]),
)


def _unique(strategy: Strategy, least: int, most: int) -> Strategy:
    return st.lists(strategy, min_size=least, max_size=most, unique_by=identity)


def objects() -> Strategy:
    """The objects of a cluster, the two Nodes not among them."""
    return st.builds(
        lambda *kinds: [each for kind in kinds for each in kind],
        _unique(NAMESPACES, 1, 3),
        _unique(PODS, 3, 7),
        _unique(POLICIES, 2, 6),
        _unique(SERVICES, 0, 2),
    )


# --- flows ---------------------------------------------------------------------------------------

OUTSIDE = {4: ["203.0.113.10", "9.9.9.9", "200.1.1.1"], 6: ["2001:db8::10", "fd01::1", "a000::1"]}
End = tuple[str, str, bool]
"""Address, node, whether it is the node itself."""


def _ends(given: Sequence[Object], family: int) -> dict[str, list[End]]:
    """What a flow of a family can begin and end at, with what the pods have first."""
    nodes = [(ips[0 if family == 4 else 1], name, True) for name, ips in NODE_ADDRESSES.items()]
    pool = [(ips[0 if family == 4 else 1], name, False) for name in IPS for ips in IPS[name]]
    claimed = {ip["ip"] for each in given for ip in each.get("status", {}).get("podIPs", ())}
    pods = [each for each in pool if each[0] in claimed]
    outside = [(address, "", False) for address in OUTSIDE[family]]
    return {"pods": pods or pool, "pool": pool, "nodes": nodes, "outside": outside}


PLACES = ((6, 80), (6, 81), (17, 53), (17, 80), (132, 53), (6, 1), (6, 53), (132, 80), (6, 65535))
"""Protocols and ports."""


def flows(given: Sequence[Object]) -> Iterator[Flow]:
    """Between all ends that matter to these objects, to some ports in turn; and to Services."""
    places = cycle(PLACES)
    for family, count in ((4, 4), (6, 1)):
        ends = _ends(given, family)
        sources = [*ends["pods"], ends["pool"][-1], *ends["nodes"], ends["outside"][0]]
        targets = [*ends["pods"], ends["pool"][-1], *ends["nodes"], *ends["outside"]]
        vips = cycle(ip for each in VIPS for ip in each if (":" in ip) == (family == 6))
        for src, target in product(sources, targets):
            from_pod, to_pod = (bool(end[1]) and not end[2] for end in (src, target))
            if not from_pod and not to_pod:
                continue
            both = from_pod and to_pod
            for _ in range(count if both else 1):
                protocol, port = next(places)
                yield Flow(src[0], target[0], protocol, port, *src[1:], *target[1:])
            if both:
                flow = Flow(src[0], target[0], 6, 80, *src[1:], *target[1:])
                yield replace(flow, service=(next(vips), 80))
