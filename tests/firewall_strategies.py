"""Random objects for the firewall, good and bad: few names and addresses, so that they meet."""

from typing import Any

from firewall_cluster import (
    NODE_ADDRESSES,
    PROTOCOLS,
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

SPACES = ("a", "ab", "b")
LABELS: Strategy = st.fixed_dictionaries(
    {}, optional={"app": st.sampled_from(["x", "y", ""]), "tier": st.sampled_from(["x", "z"])}
)
PORTS = (53, 80, 81)
NAMES = ("web", "dns")


def _mostly(good: Strategy, bad: Strategy) -> Strategy:
    return st.integers(0, 7).flatmap(lambda number: bad if number == 7 else good)


# --- objects -------------------------------------------------------------------------------------

NAMESPACES = st.builds(namespace, st.sampled_from(SPACES), LABELS)

CONTAINER_PORTS = st.lists(
    st.fixed_dictionaries(
        {"containerPort": st.sampled_from(PORTS)},
        optional={
            "name": st.sampled_from(NAMES),
            "protocol": st.sampled_from(["TCP", "UDP", "SCTP"]),
        },
    ),
    max_size=3,
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
    st.fixed_dictionaries(
        {},
        optional={
            "matchLabels": LABELS,
            "matchExpressions": st.lists(_mostly(EXPRESSIONS, BROKEN_EXPRESSIONS), max_size=2),
        },
    ),
)

CIDRS: Strategy = _mostly(
    st.sampled_from(
        [
            "0.0.0.0/0", "::/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.2.9/24", "10.0.0.0/8",
            "10.244.1.1/32", "10.244.1.2/31", "10.244.1.0/28", "192.168.1.2/32", "192.168.1.0/30",
            "203.0.113.0/24", "128.0.0.0/1", "fd00:10:244::/48", "fd00:10:244:1::2/127",
            "fd00:10:244:2::1/128", "fd00::/8", "2001:db8::/32", "::/1",
        ]
    ),
    st.sampled_from(["", "10.0.0.0", "10.0.0.0/33", "10.244.1/24", "fd00::/129", "all", "/"]),
)  # fmt: skip
BLOCKS: Strategy = st.fixed_dictionaries(
    {"cidr": CIDRS}, optional={"except": st.lists(CIDRS, max_size=3)}
)
PEERS: Strategy = _mostly(
    st.one_of(
        st.fixed_dictionaries({"podSelector": SELECTORS}),
        st.fixed_dictionaries({"namespaceSelector": SELECTORS}),
        st.fixed_dictionaries({"podSelector": SELECTORS, "namespaceSelector": SELECTORS}),
        st.fixed_dictionaries({"ipBlock": BLOCKS}),
        st.fixed_dictionaries({"ipBlock": BLOCKS}),
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"ipBlock": BLOCKS, "podSelector": SELECTORS}),
        st.fixed_dictionaries({"ipBlock": BLOCKS, "namespaceSelector": SELECTORS}),
    ),
)
ENTRIES: Strategy = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(["TCP", "TCP", "UDP", "SCTP", "QUIC", "tcp", ""]),
        "port": st.one_of(
            st.sampled_from([1, *PORTS, *PORTS, 65535]),
            st.sampled_from([*NAMES, *NAMES, "ghost", "80", ""]),
            st.sampled_from([0, -1, 65536]),
        ),
        "endPort": st.sampled_from([80, 81, 82, 65535, 65536, 0]),
    },
)


def _rules(side: str) -> Strategy:
    rule = st.fixed_dictionaries(
        {},
        optional={
            side: st.one_of(st.none(), st.lists(PEERS, max_size=2)),
            "ports": st.one_of(st.none(), st.lists(ENTRIES, max_size=2)),
        },
    )
    return st.one_of(st.none(), st.lists(rule, max_size=2))


SPECS: Strategy = st.fixed_dictionaries(
    {},
    optional={
        "podSelector": st.one_of(st.none(), SELECTORS, st.just({})),
        "policyTypes": st.one_of(
            st.none(),
            st.lists(st.sampled_from(["Ingress", "Egress", "Egress", "Sideways"]), max_size=2),
        ),
        "ingress": _rules("from"),
        "egress": _rules("to"),
    },
)
POLICIES = st.builds(
    policy,
    st.builds("/".join, st.tuples(st.sampled_from(SPACES), st.sampled_from(["n", "bn", "m"]))),
    SPECS,
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


def _unique(strategy: Strategy, count: int) -> Strategy:
    return st.lists(strategy, max_size=count, unique_by=identity)


def objects() -> Strategy:
    """The objects of a cluster, the two Nodes not among them."""
    return st.builds(
        lambda *kinds: [each for kind in kinds for each in kind],
        _unique(NAMESPACES, 3),
        _unique(PODS, 6),
        _unique(POLICIES, 4),
        _unique(SERVICES, 2),
    )


# --- flows ---------------------------------------------------------------------------------------

OUTSIDE = {4: ["203.0.113.10", "9.9.9.9", "200.1.1.1"], 6: ["2001:db8::10", "fd01::1", "a000::1"]}
_PODS = {
    family: [(ips[0 if family == 4 else 1], node) for node in IPS for ips in IPS[node]]
    for family in (4, 6)
}


@st.composite
def _flows(draw: st.DrawFn) -> Flow:
    family = draw(st.sampled_from([4, 6]))
    nodes = [(ips[0 if family == 4 else 1], name) for name, ips in NODE_ADDRESSES.items()]
    pods = st.sampled_from(_PODS[family]).map(lambda found: (*found, False))
    hosts = st.sampled_from(nodes).map(lambda found: (*found, True))
    outside = st.sampled_from(OUTSIDE[family]).map(lambda found: (found, "", False))
    src, src_node, src_process = draw(st.one_of(pods, pods, hosts, outside))
    targets = [pods, pods, pods] if not src_node or src_process else [pods, pods, hosts, outside]
    dst, dst_node, dst_process = draw(st.one_of(targets))
    vips = [ip for each in VIPS for ip in each if (":" in ip) == (family == 6)]
    dialled = None
    if src_node and not src_process and dst_node and not dst_process and draw(st.booleans()):
        dialled = (draw(st.sampled_from(vips)), draw(st.sampled_from([80, 443])))
    return Flow(
        src,
        dst,
        draw(st.sampled_from(sorted(PROTOCOLS.values()))),
        draw(st.sampled_from([1, *PORTS, *PORTS, 82, 65535])),
        src_node,
        src_process,
        dst_node,
        dst_process,
        dialled,
        draw(st.booleans()),
    )


FLOWS = _flows()
