"""Source NAT rules and kernel parameters."""

import ipaddress
import re
import socket
from typing import Any

import pytest

from kube_router_py.kernel.fake_host import FakeSysctls
from kube_router_py.proxy.host import settle_sysctls
from kube_router_py.proxy.service_rules import compile_rules
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.proxy.surroundings import Surroundings
from kube_router_py.proxy.sysctls import sysctls

DUAL = ProxyOptions(ipv6=True)


NOTHING_AROUND = Surroundings()


def nat(node: ThisNode, options: ProxyOptions, around: Surroundings = NOTHING_AROUND) -> Any:
    """IPv4's chains, the entries of its set of local addresses, and all problems."""
    families, problems = compile_rules(node, around, options, random_fully=False)
    v4 = families[0]
    return v4.tables["nat"].chains, v4.entries[v4.sets.local], problems


def test_rules_and_sets_of_each_family(make: Any) -> None:
    (v4, v6), problems = compile_rules(make.place(), Surroundings(), DUAL, random_fully=True)
    assert problems == ()
    assert v4.family == "inet"
    assert v4.entries[v4.sets.local] == {"10.244.1.0/24", "192.168.1.1"}
    to_node = "-j SNAT --to-source 192.168.1.1 --random-fully"
    assert v4.tables["nat"].chains == {
        "KUBE-ROUTER-HAIRPIN": (f"-m set --match-set kube-router-hairpin src,dst,dst {to_node}",),
        "KUBE-ROUTER-MASQ": (
            "-m set ! --match-set kube-router-local-cidrs src "
            f"-m set ! --match-set kube-router-local-cidrs dst {to_node}",
            "-m set --match-set kube-router-local-cidrs src "
            f"-m set ! --match-set kube-router-cluster dst {to_node}",
        ),
    }
    assert [(jump.parent, jump.rule) for jump in v4.tables["nat"].jumps] == [
        ("POSTROUTING", "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-HAIRPIN"),
        ("POSTROUTING", "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-MASQ"),
    ]
    assert v6.family == "inet6"
    assert v6.sets.local.name == "inet6:kube-router-local-cidrs"
    assert v6.entries[v6.sets.local] == {"fd00:10:244:1::/64", "fd00:1::1"}
    # Every set a rule names is one that is made.
    for each in (v4, v6):
        text = " ".join(
            rule
            for table in each.tables.values()
            for rules in (*table.chains.values(), [jump.rule for jump in table.jumps])
            for rule in rules
        )
        assert set(re.findall(r"--match-set (\S+)", text)) == {s.name for s in each.sets.all()}


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
    _, entries, _ = nat(node, ProxyOptions())
    networks = [ipaddress.ip_network(entry) for entry in entries]

    def is_here(text: str) -> bool:
        return any(ipaddress.ip_address(text) in network for network in networks)

    assert (not is_here(source) and not is_here(backend)) is is_translated


def test_masquerade_all(make: Any) -> None:
    chains, _, problems = nat(make.place(), ProxyOptions(masquerade_all=True))
    assert chains["KUBE-ROUTER-MASQ"] == ("-j SNAT --to-source 192.168.1.1",)
    assert problems == ()


@pytest.mark.parametrize(
    ("own_pod_network", "pod_egress", "rules"),
    [(True, True, 2), (True, False, 1), (False, True, 1), (False, False, 1)],
)
def test_pods_are_translated_on_their_way_off_the_cluster_where_they_have_to_be(
    make: Any, own_pod_network: bool, pod_egress: bool, rules: int
) -> None:
    options = ProxyOptions(own_pod_network=own_pod_network, pod_egress=pod_egress)
    chains, _, _ = nat(make.place(), options)
    assert len(chains["KUBE-ROUTER-MASQ"]) == rules


def test_pods_are_known_by_their_own_addresses_in_another_pod_network(make: Any) -> None:
    pods = {int(socket.AF_INET): frozenset({"172.30.5.9"})}
    _, entries, problems = nat(make.place(), ProxyOptions(), Surroundings(local_pods=pods))
    assert entries == {"172.30.5.9", "192.168.1.1"}
    bare = ThisNode("node1", {int(socket.AF_INET): bytes((192, 168, 1, 1))})
    _, entries, problems = nat(bare, ProxyOptions(), Surroundings(local_pods={}))
    assert (entries, problems) == ({"192.168.1.1"}, ())


def test_what_a_node_lacks_is_told_and_breaks_nothing() -> None:
    chains, _, problems = nat(ThisNode("node1"), ProxyOptions())
    assert chains == {"KUBE-ROUTER-HAIRPIN": (), "KUBE-ROUTER-MASQ": ()}
    assert [problem.field for problem in problems] == ["status.addresses"]
    bare = ThisNode("node1", {int(socket.AF_INET): bytes((192, 168, 1, 1))})
    _, entries, problems = nat(bare, ProxyOptions())
    assert entries == {"192.168.1.1"}
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


def test_room_for_connections_grows_with_the_cores_and_is_never_taken() -> None:
    options = ProxyOptions(
        conntrack_max_per_core=32768, conntrack_min=131072, conntrack_established_s=86400
    )

    def limits(cores: int) -> dict[str, str]:
        found = sysctls(options, [], (6, 1), cores)
        return {each.name: each.value for each in found if "nf_conntrack" in each.name}

    assert limits(2) == {
        "net/netfilter/nf_conntrack_buckets": "32768",
        "net/netfilter/nf_conntrack_max": "131072",
        "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    }
    assert limits(64)["net/netfilter/nf_conntrack_max"] == "2097152"
    name = "net/netfilter/nf_conntrack_max"
    for before, after in (("65536", "131072"), ("400000", "400000")):
        port = FakeSysctls({name: before})
        wanted = [each for each in sysctls(options, [], (6, 1), 2) if each.name == name]
        assert settle_sysctls(port, wanted, "node1") == ([], [])
        assert port.read(name) == after
    # In a network namespace that is not the host's it cannot be set, and need not.
    port = FakeSysctls({name: "65536"}, read_only=[name])
    assert settle_sysctls(port, wanted, "node1") == ([], [])
    assert port.writes == 0
