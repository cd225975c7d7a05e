"""What pods send out, with packets: who sees the node's address and who the pod's.

pod --- kube-bridge, node, eth0 --- outside
                         eth1 --- another node
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.iptables_variant import program_name
from kube_router_py.routing.egress import (
    ClusterSets,
    compile_egress,
    compile_forward,
    is_own_chain,
    owned_sets,
)

pytestmark = pytest.mark.netfilter

_TIMEOUT_S = 60.0
POD = {4: "10.244.1.5", 6: "fd00:10:1::5"}
NODE = {4: "192.168.1.1", 6: "fd00:1::1"}
OTHER = {4: "192.168.1.2", 6: "fd00:1::2"}
BORDER = {4: "203.0.113.1", 6: "2001:db8::1"}
OUTSIDE = {4: "203.0.113.7", 6: "2001:db8::7"}
FAMILIES = {4: "inet", 6: "inet6"}


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


def node(name: str, number: int, addresses: dict[int, str]) -> Any:
    found = Node(
        metadata=ObjectMeta(name=name),
        spec=NodeSpec(pod_cidrs=(f"10.244.{number}.0/24", f"fd00:10:{number}::/64")),
        status=NodeStatus(tuple(NodeAddress("InternalIP", each) for each in addresses.values())),
    )
    return node_view(found)[0]


class World:
    def __init__(self, make_peer: Callable[[str, str, str], Any], variant: str) -> None:
        self.pod = make_peer("kube-bridge", "10.244.1.1/24", f"{POD[4]}/24")
        self.outside = make_peer("eth0", f"{BORDER[4]}/24", f"{OUTSIDE[4]}/24")
        self.other = make_peer("eth1", f"{NODE[4]}/24", f"{OTHER[4]}/24")
        for peer, link, here, there in (
            (self.pod, "kube-bridge", "fd00:10:1::1", POD[6]),
            (self.outside, "eth0", BORDER[6], OUTSIDE[6]),
            (self.other, "eth1", NODE[6], OTHER[6]),
        ):
            sh(f"ip addr add {here}/64 dev {link} nodad")
            peer.run(
                sh,
                f"ip addr add {there}/64 dev veth0 nodad",
                f"ip -6 route add default via {here}",
            )
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with open(f"/proc/sys/net/{name}", "w") as file:
                file.write("1")
        self.iptables = IptablesProgram(variant)
        self.ipsets = IpsetProgram()
        self.sets = ClusterSets((4, 6))

    def put_nodes(self, *views: Any) -> None:
        for each in views:
            self.sets.put(each)
        assert self.ipsets.change_all(self.sets.take()) == []

    def put_rules(self, *, egress: bool = True, forward: bool = True) -> None:
        for family in FAMILIES.values():
            fully = self.iptables.random_fully()
            nat = compile_egress(family, is_enabled=egress, random_fully=fully)
            self.iptables.ensure(family, "nat", nat, is_own_chain)
            accepted = compile_forward(["eth0", "eth1"], is_needed=forward)
            self.iptables.ensure(family, "filter", accepted, is_own_chain)

    def drop_forwarded(self) -> None:
        for family in FAMILIES.values():
            sh(f"{program_name(self.iptables.variant, family)} -P FORWARD DROP")

    def close(self) -> None:
        self.iptables.close()
        self.ipsets.close()


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def world(
    request: pytest.FixtureRequest,
    new_namespace: Callable[[], AbstractContextManager[None]],
) -> Iterator[World]:
    with new_namespace():
        peer = request.getfixturevalue("peer")
        with closing(World(peer, request.param)) as found:
            found.put_nodes(node("here", 1, NODE), node("there", 2, OTHER))
            found.put_rules()
            yield found


def seen_by(client: Any, server: Any, address: str, wait_s: float = _TIMEOUT_S) -> str:
    """The address that a server sees a client with."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(server.run(lambda: socket.create_server((address, 0), family=family))) as listener:
        listener.settimeout(_TIMEOUT_S)
        target = address, listener.getsockname()[1]
        with client.run(lambda: socket.create_connection(target, wait_s)):
            connection, found = listener.accept()
            connection.close()
            return str(found[0])


@pytest.mark.parametrize("version", [4, 6])
def test_only_what_leaves_the_cluster_has_the_nodes_address(world: World, version: int) -> None:
    assert seen_by(world.pod, world.outside, OUTSIDE[version]) == BORDER[version]
    assert seen_by(world.pod, world.other, OTHER[version]) == POD[version]
    # Others than pods keep their address.
    assert seen_by(world.outside, world.other, OTHER[version]) == OUTSIDE[version]


def test_a_node_that_joins_is_known_at_once(world: World) -> None:
    world.put_nodes(node("outside", 3, OUTSIDE))
    for version in (4, 6):
        assert seen_by(world.pod, world.outside, OUTSIDE[version]) == POD[version]
    world.sets.remove("outside")
    assert world.ipsets.change_all(world.sets.take()) == []
    for version in (4, 6):
        assert seen_by(world.pod, world.outside, OUTSIDE[version]) == BORDER[version]


def test_what_stands_is_left_and_goes_when_switched_off(world: World) -> None:
    for family in FAMILIES.values():
        nat = compile_egress(family, is_enabled=True, random_fully=world.iptables.random_fully())
        assert world.iptables.ensure(family, "nat", nat, is_own_chain) == ()
        forward = compile_forward(["eth0", "eth1"], is_needed=True)
        assert world.iptables.ensure(family, "filter", forward, is_own_chain) == ()
    world.put_rules(egress=False, forward=False)
    world.ipsets.destroy(owned_sets())
    for version in (4, 6):
        assert seen_by(world.pod, world.outside, OUTSIDE[version]) == POD[version]


def test_pods_are_forwarded_where_the_policy_is_to_drop(world: World) -> None:
    world.drop_forwarded()
    for version in (4, 6):
        assert seen_by(world.pod, world.outside, OUTSIDE[version]) == BORDER[version]
    world.put_rules(forward=False)
    with pytest.raises(TimeoutError):
        seen_by(world.pod, world.outside, OUTSIDE[4], 2.0)
