"""The overlay of Nodes that come, change and go equals that of all of them, compiled at once."""

import random
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.routing import overlay_nodes
from kube_router_py.routing.overlay import NodeLinks, compile_overlay
from kube_router_py.routing.overlay_nodes import OverlayNodes
from kube_router_py.routing.settings import RoutingSettings

# Few enough that nodes have the same all the time: far and near addresses, some with the same
# digits (as names of tunnels have them), some where pods are, none, and useless ones.
ADDRESSES = (
    *((each,) for each in ("21.3.0.4", "2.13.0.4", "2.1.30.4", "192.168.1.7", "192.168.2.7")),
    *((each, "fd00:2::2") for each in ("192.168.3.7", "192.168.3.8", "10.244.2.9", "10.244.3.9")),
    ("192.168.4.7", "10.244.3.8", "fd00:10:244:3::9"),
    ("10.244.4.255",),
    ("fd00:3::3",),
    ("224.0.0.1",),
    ("192.168.1.1",),
    (),
)
CIDRS = (
    *((f"10.244.{number}.0/24",) for number in range(1, 5)),
    *((f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64") for number in range(2, 5)),
    ("10.244.2.0/23",),
    ("10.244.3.0/25", "10.244.3.128/25"),
    ("192.168.0.0/16",),
    (),
)
NAMES = [f"node{number}" for number in range(2, 9)]


@pytest.fixture
def view(make: Any) -> Any:
    def build(name: str, addresses: Sequence[str], cidrs: Sequence[str]) -> NodeView:
        return node_view(make.node(name, addresses, cidrs))[0]

    return build


def links(subnet: str = "192.168.1.0/24") -> NodeLinks:
    addresses = {ip_address("192.168.1.1"): subnet, ip_address("fd00:1::1"): "fd00:1::/64"}
    return NodeLinks(
        {each: ip_network(text) for each, text in addresses.items()},
        dict.fromkeys(addresses, 1500),
    )


@pytest.mark.parametrize("encap", ["ipip", "fou", "vxlan"])
@pytest.mark.parametrize("overlay_type", ["subnet", "full"])
@pytest.mark.parametrize("seed", range(8))
def test_a_walk(encap: str, overlay_type: str, seed: int, view: Any) -> None:
    chance = random.Random(seed)
    settings = RoutingSettings(ipv6=seed % 2 == 0, overlay_encap=encap, overlay_type=overlay_type)
    own = view("node1", ("192.168.1.1", "fd00:1::1"), ("10.244.1.0/24", "fd00:10:244:1::/64"))
    around = links()
    nodes = OverlayNodes(settings)
    there: dict[str, NodeView] = {}
    for step in range(150):
        for _ in range(chance.choice((1, 1, 1, 3))):
            name = chance.choice(NAMES)
            if chance.random() < 0.35:
                there.pop(name, None)
                nodes.remove(name)
            else:
                there[name] = view(name, chance.choice(ADDRESSES), chance.choice(CIDRS))
                nodes.put(there[name])
        if chance.random() < 0.05:
            around = links(chance.choice(("192.168.0.0/20", "192.168.1.0/24")))
            own = view("node1", ("192.168.1.1", "fd00:1::1"), chance.choice(CIDRS))
        wanted = compile_overlay(own, there.values(), settings, around)
        assert nodes.compile(own, around) == wanted, step


def test_what_does_not_change_is_the_same_object(view: Any) -> None:
    own = view("node1", ("192.168.1.1",), ("10.244.1.0/24",))
    nodes = OverlayNodes(RoutingSettings())
    nodes.put(view("node2", ("192.168.2.7",), ("10.244.2.0/24",)))
    before = nodes.compile(own, links())
    assert before[0].tunnels
    assert nodes.compile(own, links()) is before
    nodes.remove("node3")
    nodes.put(view("node2", ("192.168.2.7",), ("10.244.2.0/24",)))
    assert nodes.compile(own, links()) == before


def test_a_node_is_compiled_without_the_others(view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = view("node1", ("192.168.1.1",), ("10.244.1.0/24",))
    nodes = OverlayNodes(RoutingSettings())
    for number in range(2, 100):
        nodes.put(view(f"node{number}", (f"192.168.{number}.7",), (f"10.244.{number}.0/24",)))
    nodes.compile(own, links())
    compiled: list[str] = []

    def spy(own: NodeView, others: Any, *rest: Any) -> Any:
        others = list(others)
        compiled.extend(each.name for each in others)
        return compile_overlay(own, others, *rest)

    monkeypatch.setattr(overlay_nodes, "compile_overlay", spy)
    nodes.put(view("node200", ("192.168.200.7",), ("10.244.200.0/24",)))
    nodes.remove("node50")
    overlay, problems = nodes.compile(own, links())
    assert compiled == ["node200"]
    assert len(overlay.tunnels) == 98
    # The address of another one: these two together, and nobody else.
    compiled.clear()
    nodes.put(view("node201", ("192.168.7.7",), ("10.244.201.0/24",)))
    _, problems = nodes.compile(own, links())
    assert sorted(compiled) == ["node201", "node7"]
    assert [each.object for each in problems] == ["Node node7"]
    compiled.clear()
    nodes.remove("node201")
    assert nodes.compile(own, links()) == (overlay, ())
    assert compiled == ["node7"]
