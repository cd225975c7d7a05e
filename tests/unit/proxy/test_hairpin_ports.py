"""Whether bridges let pods reach themselves, as the proxy tells it."""

import socket
from typing import Any

import pytest

from kube_router_py.kernel.ports import BridgePort, NodeAddress
from kube_router_py.proxy.hairpin_ports import hairpin_problems

ADDRESSES = (
    NodeAddress(int(socket.AF_INET), bytes((10, 244, 1, 1)), 24, "kube-bridge"),
    NodeAddress(int(socket.AF_INET), bytes((172, 17, 0, 1)), 16, "docker0"),
    NodeAddress(int(socket.AF_INET), bytes((192, 168, 1, 1)), 24, "eth0"),
)


@pytest.mark.parametrize(
    ("ports", "named"),
    [
        ((), None),
        ((BridgePort("kube-bridge", "veth1", True),), None),
        ((BridgePort("docker0", "veth9", False),), None),  # none of its containers is meant
        (
            (BridgePort("kube-bridge", "veth1", True), BridgePort("kube-bridge", "veth2", False)),
            "its ports veth2;",
        ),
        (
            tuple(BridgePort("kube-bridge", f"veth{n}", False) for n in range(8)),
            "veth0, veth1, veth2, veth3, veth4 and 3 more;",
        ),
    ],
)
def test_a_bridge_is_told_of_whose_ports_send_nothing_back(
    make: Any, ports: tuple[BridgePort, ...], named: str | None
) -> None:
    found = hairpin_problems([make.real("10.244.1.2")], ADDRESSES, ports, "node1")
    if named is None:
        assert found == ()
    else:
        (problem,) = found
        assert problem.object == "Node node1"
        assert named in problem.reason
        assert "hairpinMode" in problem.reason
