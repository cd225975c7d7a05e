"""Real FRR takes all that annotations and flags may say of routers, up to every limit, as meant.

What the parsers let through is what FRR echoes: a value that it refuses, or keeps as another one,
would have the agent repair its configuration for ever.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.ports_frr import Frr
from kube_router_py.routing.annotations import parse_member
from kube_router_py.routing.compile import compile_neighborhood, compile_router
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running
from kube_router_py.routing.frr_sync import FrrSync
from kube_router_py.routing.model import Bfd, RouterConfig
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.settings import RoutingSettings

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

SETTINGS = RoutingSettings(ipv6=True, port=1790)
SECRETS = {SecretRef("bgp", "tor"): b"from-a-Secret\n"}
LOCAL = frozenset(map(ip_address, ("127.0.0.1", "::1")))
PEER = "remoteip: 192.0.2.1, remoteasn: 65000"


@pytest.fixture
def frr(new_namespace: Callable[[], Any], beside: Callable[[str], ModuleType]) -> Iterator[Frr]:
    lab = beside("frr_lab")
    lab.require()
    with ExitStack() as stack:
        stack.enter_context(new_namespace())
        layout = stack.enter_context(lab.run_directory())
        yield stack.enter_context(closing(ManagedFrr(layout, lambda: None)))


def node(name: str, number: int, annotations: dict[str, str] | None = None) -> Node:
    named = {f"kube-router.io/{key}": text for key, text in (annotations or {}).items()}
    addresses = (f"10.0.0.{number}", f"fd00:1::{number}")
    return Node(
        metadata=ObjectMeta(name=name, annotations=named),
        spec=NodeSpec(pod_cidrs=(f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")),
        status=NodeStatus(tuple(NodeAddress("InternalIP", text) for text in addresses)),
    )


def compiled(
    annotations: dict[str, str],
    settings: RoutingSettings = SETTINGS,
    others: tuple[Node, ...] = (),
) -> RouterConfig:
    # Where bgpd can listen in an empty namespace.
    annotations = {"bgp-local-addresses": "127.0.0.1,::1", **annotations}
    view = node_view(node("node1", 1, annotations))[0]
    members = [parse_member(node_view(each)[0])[0] for each in others]
    around = compile_neighborhood(view, members, settings, secrets=SECRETS)
    config, problems = compile_router(settings, around, local=LOCAL)
    assert problems == ()
    assert config is not None
    return config


def lines(config: FrrConfig) -> dict[tuple[str, ...], frozenset[str]]:
    return {
        (daemon, *each.path): frozenset(each.lines)
        for daemon in DAEMONS
        for each in config.sections(daemon)
    }


def apply(frr: Frr, sync: FrrSync, config: RouterConfig) -> None:
    """FRR runs exactly this afterwards, and would run the same of a file."""
    wanted = render_frr(config)
    assert sync.sync(wanted, full=False).problems == ()
    running = parse_running(frr.running(), wanted.listen, wanted.port)
    assert lines(running) == lines(wanted)
    assert sync.sync(wanted, full=True).problems == ()
    assert sync.drift == 0


def peer(rest: str) -> str:
    return f"[{{{PEER}, {rest}}}]"


def password(text: str) -> str:
    return peer(f"password: {base64.b64encode(text.encode()).decode()}")


ROUTERS = [
    f"[{{{PEER}}}]",
    *(peer(f"port: {port}") for port in (1, 179, 1790, 65535)),
    *(peer(f"holdtime: {seconds}") for seconds in (3, 4, 5, 90, 65535)),
    *(peer(f"multihop: {hops}") for hops in (0, 1, 2, 255)),
    *(peer(f"gtsm: {hops}") for hops in ("true", 2, 254)),
    *(peer(f"gracefulrestart: {switch}") for switch in ("true", "false")),
    *(
        peer(f"bfd: {{enabled: true, {parameters}}}")
        for parameters in (
            "",
            "detection_multiplier: 2, desired_min_tx_interval: 10, required_min_rx_interval: 10",
            "detection_multiplier: 255, desired_min_tx_interval: 60000",
            "required_min_rx_interval: 60000",
            "desired_min_tx_interval: 300, required_min_rx_interval: 300",
        )
    ),
    peer("bfd: {enabled: true}, multihop: 3"),
    peer("bfd: {enabled: true}, gtsm: 3"),
    peer("localip: 10.9.9.9"),
    peer("passwordsecretref: {name: bgp, key: tor}"),
    *(
        password(text)
        for text in ("secret", '!#"$|?\\', "!", "#", "ö" * 40, "x" * 80, "no", "<cr>", "(a|b)", "9")
    ),
    *(
        f"[{{remoteip: {address!r}, remoteasn: {asn}}}]"
        for address, asn in (
            ("169.254.1.1", 1),
            ("0.0.0.1", 23455),
            ("240.0.0.1", 64512),
            ("255.255.255.254", 65534),
            ("2001:db8::1", 131072),
            ("::5", 4294967294),
            ("64:ff9b::1", "internal"),
            ("2001:db8:0:0:1:0:0:1", "external"),
            ("::ffff:192.0.2.9", 65000),
        )
    ),
    "[{remoteip: 192.0.2.1, remoteasn: internal, multihop: 4}]",
    "[{remoteip: 192.0.2.1, remoteasn: 64512, gtsm: 254, bfd: {enabled: true}}]",
    *(
        f"[{{interface: {name!r}}}]"
        for name in ("eth0", "eth0.100", "br-lan", "a" * 15, "1", "10.0.0", "-", "_", "...", "PG")
    ),
    "[{interface: eth0, remoteasn: 65000, gtsm: true, password: YQ==, holdtime: 9}]",
    "[{interface: eth0, remoteasn: internal, bfd: {enabled: true}}]",
    "[{listenrange: 10.9.0.0/16, remoteasn: external}]",
    "[{listenrange: 0.0.0.0/0, remoteasn: 65000}, {listenrange: '::/0', remoteasn: 65000}]",
    "[{listenrange: 10.9.0.1/32, remoteasn: internal, password: YQ==, gtsm: 2, holdtime: 9,"
    " bfd: {enabled: true}, gracefulrestart: true, localip: 10.9.9.9}]",
    "[{listenrange: 10.9.0.0/24, remoteasn: 65000, multihop: 255}]",
    "[{remoteip: 192.0.2.1, remoteasn: 65000}, {remoteip: '2001:db8::1', remoteasn: 65000},"
    " {remoteip: 192.0.2.2, remoteasn: 65001, password: YQ==}, {interface: eth1}]",
]


def test_all_that_may_be_said_of_routers(frr: Frr) -> None:
    sync = FrrSync(frr, "node1")
    for text in ROUTERS:
        config = compiled({"peers": text})
        # Nobody was left out: each is one mapping that says where the router is.
        named = sum(text.count(key) for key in ("remoteip", "interface", "listenrange"))
        assert len(config.neighbors) + len(config.listen_ranges) == named
        apply(frr, sync, config)


def test_all_that_flags_may_say_of_routers(frr: Frr) -> None:
    sync = FrrSync(frr, "node1")
    plain: dict[str, Any] = {
        "peer_addresses": (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
        "peer_asns": (65000, 65001),
    }
    for more in (
        {},
        {"peer_multihop": 255, "hold_s": 65535},
        {"peer_multihop": 2, "hold_s": 3, "override_nexthop": True},
        {"peer_bfd": True, "bfd": Bfd(255, 60000, 10), "graceful_restart_outside": True},
        {"peer_ports": (1, 65535), "peer_passwords": ("!#", "")},
    ):
        settings = RoutingSettings(ipv6=True, port=1790, **{**plain, **more})
        apply(frr, sync, compiled({}, settings))


def test_all_that_nodes_may_say_of_themselves(frr: Frr) -> None:
    sync = FrrSync(frr, "node1")
    most = ",".join(f"65000:{number}" for number in range(64))
    for annotations in (
        {"path-prepend.as": "4294967295", "path-prepend.repeat-n": "250"},
        {"path-prepend.as": "1", "path-prepend.repeat-n": "1"},
        {"node.bgp.communities": most},
        {"node.bgp.communities": "4294967295:4294967295:4294967295,0:0:0,no-export,4294967295,0"},
        {"node.bgp.customimportreject": "0.0.0.0/0,10.0.0.0/8,fd00::/8,192.0.2.1/32"},
        {"rr.server": "1"},
        {"rr.server": "4294967295"},
        {"rr.server": ""},
        {"rr.client": "42"},
    ):
        apply(frr, sync, compiled({"peers": f"[{{{PEER}}}]", **annotations}))


def test_nodes_come_go_and_change(frr: Frr) -> None:
    sync = FrrSync(frr, "node1")
    others = [node(f"node{number}", number) for number in range(2, 12)]
    server = node("node2", 2, {"rr.server": "42"})
    client = node("node3", 3, {"rr.client": "42"})
    bfd = RoutingSettings(ipv6=True, port=1790, node_bfd=True, bfd=Bfd(5, 200, 100))
    for annotations, settings, nodes in (
        ({}, SETTINGS, others[:1]),
        ({}, SETTINGS, others),
        ({}, bfd, others),
        ({}, bfd, others[5:]),
        ({"rr.server": "42"}, SETTINGS, [server, client, *others[2:]]),
        ({"rr.client": "42"}, SETTINGS, [server, client, *others[2:]]),
        ({}, SETTINGS, []),
    ):
        apply(frr, sync, compiled(annotations, settings, tuple(nodes)))
