"""What the overlay leaves of a link's MTU."""

import pytest

from kube_router_py.kernel.overlay_ports import Encap
from kube_router_py.routing.mtu import overhead, pod_mtu, tunnel_mtu
from kube_router_py.routing.settings import RoutingSettings


@pytest.mark.parametrize(
    ("encap", "four", "six"), [("ipip", 20, 40), ("fou", 32, 52), ("vxlan", 50, 70)]
)
def test_what_tunnels_add(encap: str, four: int, six: int) -> None:
    assert (overhead(Encap(encap), 4), overhead(Encap(encap), 6)) == (four, six)
    assert tunnel_mtu(9000, Encap(encap), 4) == 9000 - four
    assert tunnel_mtu(1300, Encap(encap), 6) == 1280


@pytest.mark.parametrize(
    ("links", "flags", "expected"),
    [
        ({4: 1500}, {}, 1480),
        ({4: 1500, 6: 1500}, {}, 1480),  # IPv6 is not enabled
        ({4: 1500, 6: 1500}, {"ipv6": True}, 1460),
        ({4: 1400, 6: 9000}, {"ipv6": True, "overlay_encap": "vxlan"}, 1350),
        ({4: 1500}, {"enable_overlay": False}, 1500),
        ({4: 1500}, {"auto_mtu": False}, None),
    ],
)
def test_the_mtu_of_pods(links: dict[int, int], flags: dict[str, object], expected: int) -> None:
    assert pod_mtu(links, RoutingSettings(**flags), "node1") == (expected, ())  # type: ignore[arg-type]


def test_no_link_has_the_address() -> None:
    found, problems = pod_mtu({}, RoutingSettings(), "node1")
    assert found is None
    assert [(each.object, each.field) for each in problems] == [("Node node1", "status.addresses")]


def test_a_link_that_is_too_small_for_ipv6() -> None:
    settings = RoutingSettings(ipv6=True, overlay_encap="vxlan")
    found, problems = pod_mtu({4: 1300, 6: 1300}, settings, "node1")
    assert found == 1280
    assert "1230" in problems[0].reason
