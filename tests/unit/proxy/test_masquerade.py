"""Source NAT rules and kernel parameters."""

import ipaddress
import socket
from typing import Any

import pytest

from kube_router_py.proxy.masquerade import compile_masquerade
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.proxy.sysctls import sysctls

DUAL = ProxyOptions(ipv6=True)


def test_one_rule_and_one_set_per_family(make: Any) -> None:
    (v4, v6), problems = compile_masquerade(make.place(), DUAL, random_fully=True)
    assert problems == ()
    assert v4.family == "inet"
    assert v4.set.name == "kube-router-local-cidrs"
    assert v4.entries == {"10.244.1.0/24", "192.168.1.1"}
    assert v4.rules.chains == {
        "KUBE-ROUTER-MASQ": (
            "-m set ! --match-set kube-router-local-cidrs src "
            "-m set ! --match-set kube-router-local-cidrs dst "
            "-j SNAT --to-source 192.168.1.1 --random-fully",
        )
    }
    (jump,) = v4.rules.jumps
    assert jump.parent == "POSTROUTING"
    assert jump.rule == "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-MASQ"
    assert v6.family == "inet6"
    assert v6.set.name == "inet6:kube-router-local-cidrs"
    assert v6.entries == {"fd00:10:244:1::/64", "fd00:1::1"}


@pytest.mark.parametrize(
    ("source", "backend", "is_translated"),
    [
        ("10.244.1.2", "10.244.1.3", False),  # pod here -> pod here
        ("10.244.1.2", "10.244.2.3", False),  # pod here -> pod elsewhere
        ("10.245.1.2", "10.244.2.3", False),  # the same from the second CIDR
        ("10.244.1.2", "10.245.1.3", False),  # from the one CIDR to the other
        ("192.168.1.1", "10.244.2.3", False),  # this node -> pod elsewhere
        ("203.0.113.7", "10.244.1.3", False),  # outside -> pod here: the client is seen
        ("203.0.113.7", "192.168.1.1", False),  # outside -> host-network pod here
        ("203.0.113.7", "10.244.2.3", True),  # outside -> pod elsewhere
        ("203.0.113.7", "192.168.1.2", True),  # outside -> host-network pod elsewhere
        ("10.244.2.9", "10.244.2.3", True),  # pod elsewhere, by this node's NodePort
        ("10.96.0.10", "10.244.2.3", True),  # the node with a service address as its source
    ],
)
def test_who_is_translated(make: Any, source: str, backend: str, is_translated: bool) -> None:
    node = ThisNode(
        "node1",
        {int(socket.AF_INET): bytes((192, 168, 1, 1))},
        {int(socket.AF_INET): ("10.244.1.0/24", "10.245.1.0/24")},
    )
    (v4,), _ = compile_masquerade(node, ProxyOptions(), random_fully=False)
    networks = [ipaddress.ip_network(entry) for entry in v4.entries]

    def is_here(text: str) -> bool:
        return any(ipaddress.ip_address(text) in network for network in networks)

    assert (not is_here(source) and not is_here(backend)) is is_translated


def test_masquerade_all(make: Any) -> None:
    options = ProxyOptions(masquerade_all=True)
    (v4,), problems = compile_masquerade(make.place(), options, random_fully=False)
    assert v4.rules.chains == {"KUBE-ROUTER-MASQ": ("-j SNAT --to-source 192.168.1.1",)}
    assert problems == ()


def test_what_a_node_lacks_is_told_and_breaks_nothing() -> None:
    (v4,), problems = compile_masquerade(ThisNode("node1"), ProxyOptions(), random_fully=True)
    assert v4.rules.chains == {"KUBE-ROUTER-MASQ": ()}
    assert [problem.field for problem in problems] == ["status.addresses"]
    bare = ThisNode("node1", {int(socket.AF_INET): bytes((192, 168, 1, 1))})
    (v4,), problems = compile_masquerade(bare, ProxyOptions(), random_fully=True)
    assert v4.entries == {"192.168.1.1"}
    assert [problem.field for problem in problems] == ["spec.podCIDRs"]


def test_sysctls_of_the_enabled_families_only() -> None:
    def names(options: ProxyOptions, kernel: tuple[int, int] = (6, 1)) -> set[str]:
        return {each.name for each in sysctls(options, ["eth0"], kernel)}

    v4, dual = names(ProxyOptions()), names(DUAL)
    assert "net/ipv4/ip_forward" in v4
    assert "net/ipv4/vs/expire_nodest_conn" in v4
    assert "net/bridge/bridge-nf-call-iptables" in v4
    assert not any("ipv6" in name or "ip6" in name for name in v4)
    assert dual - v4 == {
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/bridge/bridge-nf-call-ip6tables",
    }
    assert "net/ipv4/vs/conn_reuse_mode" not in v4
    assert "net/ipv4/vs/conn_reuse_mode" in names(ProxyOptions(), (5, 4))


def test_a_reverse_path_filter_is_loosened_only_from_strict() -> None:
    filters = [each for each in sysctls(DUAL, ["eth0"], (6, 1)) if "rp_filter" in each.name]
    assert {each.name.split("/")[3] for each in filters} == {
        "all",
        "eth0",
        "kube-bridge",
        "kube-dummy-if",
    }
    assert all(each.only_from == "1" and each.value == "2" for each in filters)
