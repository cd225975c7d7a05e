"""Modules, parameters, room, others on the node, BGP, MTU and CNI, as findings."""

import ipaddress
import json

import pytest

from kube_router_py.cluster.node import NodeView
from kube_router_py.doctor import bgp, facts_host, leftovers, network, resources
from kube_router_py.doctor.bgp import Looked, Process
from kube_router_py.doctor.network import CniFiles, Link
from kube_router_py.kernel.ports_frr import SessionState
from kube_router_py.options import Options
from kube_router_py.proxy.sysctls import Sysctl

NONE = {"run_service_proxy": False, "run_firewall": False, "run_router": False}
ROUTER = Options(**{**NONE, "run_router": True})
FIREWALL = Options(**{**NONE, "run_firewall": True})
PROXY = Options(**{**NONE, "run_service_proxy": True})


def codes(findings):
    return [each.code for each in findings]


# --- modules and parameters ----------------------------------------------------------------------


def test_modules_are_those_of_the_parts_that_run():
    proxy = resources.needed_modules(PROXY, ["sh"], tunnels=False)
    assert {"ip_vs", "ip_vs_sh", "dummy", "xt_ipvs"} <= set(proxy)
    assert "br_netfilter" not in proxy
    assert "br_netfilter" in resources.needed_modules(FIREWALL, tunnels=False)
    assert resources.needed_modules(ROUTER, tunnels=False) == {}
    assert set(resources.needed_modules(ROUTER, tunnels=True)) == {"ipip"}
    fou = Options(**{**NONE, "run_router": True, "overlay_encap": "fou", "enable_ipv6": True})
    assert set(resources.needed_modules(fou, tunnels=True)) == {"ipip", "fou", "ip6_tunnel", "fou6"}


def test_a_module_that_lacks_is_told_with_what_it_is_for():
    needs = resources.needed_modules(PROXY, tunnels=False)
    (only,) = resources.modules(["ip_vs"], needs)
    assert (only.code, only.object) == ("kernel-module-missing", "module ip_vs")
    assert "any Service" in only.what
    assert "modprobe ip_vs" in only.remedy


def test_a_scheduler_that_somebody_named_in_a_service_stops_no_node():
    needs = resources.needed_modules(PROXY, ["lblc"], tunnels=False)
    found = resources.modules(["ip_vs_lblc", "ip_vs_rr"], needs)
    assert {each.object: each.severity for each in found} == {
        "module ip_vs_lblc": "warning",
        "module ip_vs_rr": "error",
    }


@pytest.mark.parametrize(
    ("sysctl", "actual", "is_wrong"),
    [
        (Sysctl("a", "1"), "1", False),
        (Sysctl("a", "1"), "0", True),
        (Sysctl("a", "1"), None, True),
        (Sysctl("a", "1", is_optional=True), None, False),
        (Sysctl("a", "2", only_from="1"), "0", False),
        (Sysctl("a", "2", only_from="1"), "1", True),
        (Sysctl("a", "5", is_minimum=True), "6", False),
        (Sysctl("a", "5", is_minimum=True), "4", True),
        (Sysctl("a", "5", is_tuning=True), "4", False),
    ],
)
def test_parameters(sysctl, actual, is_wrong):
    found = resources.parameters([sysctl], {"a": actual})
    assert codes(found) == ["sysctl-wrong"] * is_wrong


GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "count", "memory", "cores", "expected"),
    [
        (262144, 10, 16 * GIB, 2, []),
        (131072, 10, 16 * GIB, 2, []),
        (65536, 10, 2 * GIB, 2, []),  # what the kernel chooses on a small node
        (1000, 10, 16 * GIB, 2, [("conntrack-small", "warning")]),
        (262144, 10, 16 * GIB, 16, []),
        (131072, 10, 16 * GIB, 16, [("conntrack-small", "warning")]),
        (262144, 200000, 16 * GIB, 2, [("conntrack-full", "warning")]),
        (262144, 250000, 16 * GIB, 2, [("conntrack-full", "error")]),
        (None, None, GIB, 2, []),
    ],
)
def test_room_for_connections(limit, count, memory, cores, expected):
    found = resources.conntrack(limit, count, memory, cores, Options())
    assert [(each.code, each.severity) for each in found] == expected


@pytest.mark.parametrize(
    ("used", "limit", "is_short"),
    [(50, 1024, False), (900, 1024, True), (50, 512, True), (None, 1024, False), (9, None, False)],
)
def test_file_descriptors(used, limit, is_short):
    assert codes(resources.descriptors(used, limit)) == ["file-descriptors-short"] * is_short


# --- others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "left", "options", "expected"),
    [
        (None, [], PROXY, []),
        ("ipvs", [], PROXY, [("kube-proxy-running", "error")]),
        ("iptables", ["3 chains"], PROXY, [("kube-proxy-running", "warning")]),
        (None, ["3 chains"], PROXY, [("kube-proxy-leftovers", "warning")]),
        ("ipvs", ["3 chains"], FIREWALL, []),
    ],
)
def test_kube_proxy(mode, left, options, expected):
    found = leftovers.kube_proxy(mode, left, options)
    assert [(each.code, each.severity) for each in found] == expected


@pytest.mark.parametrize(
    ("links", "chains", "options", "expected"),
    [
        (["eth0", "kube-bridge", "veth1"], ["KUBE-ROUTER-INPUT"], ROUTER, []),
        (["docker0", "cni-podman0", "virbr0", "tailscale0"], [], ROUTER, []),
        (["flannel.1"], [], ROUTER, ["other-cni"]),
        (["cali0123456789a"], ["cali-FORWARD"], ROUTER, ["other-cni"]),
        (["cilium_host"], [], ROUTER, ["other-cni"]),
        ([], ["WEAVE-NPC"], ROUTER, ["other-cni"]),
        (["flannel.1"], ["FLANNEL-FWD"], FIREWALL, []),
        ([], ["cali-FORWARD"], FIREWALL, ["other-policy-engine"]),
        (["flannel.1"], ["cali-FORWARD"], PROXY, []),
    ],
)
def test_other_networks(links, chains, options, expected):
    assert codes(leftovers.other_cni(links, chains, options)) == expected


def test_what_kube_router_left():
    assert codes(leftovers.kube_router([])) == []
    assert codes(leftovers.kube_router(["source NAT"])) == ["kube-router-leftovers"]


# --- BGP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "own", "is_up", "number"),
    [
        ([Process(7, "bgpd"), Process(7, "bgpd", 179)], {7}, True, 0),
        ([Process(7, "bgpd"), Process(7, "bgpd", 179)], set(), True, 1),
        ([Process(8, "bird"), Process(9, "nc", 179)], set(), True, 2),
        ([Process(0, "", 179)], set(), True, 0),
        ([Process(0, "", 179)], set(), False, 1),
    ],
)
def test_a_second_daemon(processes, own, is_up, number):
    found = bgp.daemons(processes, own, ROUTER, frr_is_up=is_up)
    assert codes(found) == ["bgp-second-daemon"] * number
    assert codes(bgp.daemons(processes, own, FIREWALL, frr_is_up=is_up)) == []


def session(neighbor, state="Established", version=4):
    return SessionState(neighbor, version, 64512, state, 0.0, 0, 0, 0, 0)


PASSWORD = frozenset(("192.0.2.1",))


@pytest.mark.parametrize(
    ("looked", "expected"),
    [
        (Looked((session("192.0.2.1"),)), []),
        (Looked((session("192.0.2.1"),), PASSWORD, {"TCPMD5Failure": 9}), []),
        (Looked((session("192.0.2.1", "Idle (Admin)"),)), []),
        (Looked((session("192.0.2.1", "Active"),)), ["bgp-session-down"]),
        (
            Looked((session("192.0.2.1", "Connect"),), PASSWORD, {"TCPMD5Failure": 9}),
            ["bgp-password-wrong"],
        ),
        (
            Looked((session("192.0.2.1", "Connect"),), PASSWORD, {"TCPMD5NotFound": 9}),
            ["bgp-password-wrong"],
        ),
        (Looked((session("192.0.2.1", "Connect"),), PASSWORD, {}), ["bgp-session-down"]),
        (
            Looked((session("192.0.2.1", "Active"),), md5={"TCPMD5Failure": 2}),
            ["bgp-session-down"],
        ),
        (
            Looked((session("192.0.2.1", "Active"),), md5={"TCPMD5Unexpected": 2}),
            ["bgp-password-wrong"],
        ),
        (
            Looked((session("192.0.2.1", "Active"),), PASSWORD, {"TCPMD5Unexpected": 2}),
            ["bgp-session-down"],
        ),
        (Looked((session("192.0.2.1"), session("192.0.2.1", "NoNeg", 6))), []),
    ],
)
def test_sessions(looked, expected):
    assert codes(bgp.sessions(looked)) == expected


def test_the_reason_of_bgpd_is_told():
    down = Looked((session("192.0.2.1", "Active"),), reasons={"192.0.2.1": "Hold Timer Expired"})
    (only,) = bgp.sessions(down)
    assert "Hold Timer Expired" in only.what
    assert only.object == "BGP neighbor 192.0.2.1"


@pytest.mark.parametrize(
    ("missing", "unsupported", "is_up", "runs", "expected"),
    [
        ([], "", True, True, []),
        ([], "", False, False, []),
        ([], "", False, True, ["frr-not-running"]),
        (["bgpd"], "", False, True, ["frr-missing"]),
        ([], "FRR 10.1 is not supported", True, True, ["frr-unsupported"]),
    ],
)
def test_frr(missing, unsupported, is_up, runs, expected):
    found = bgp.frr(missing, unsupported, is_up=is_up, agent_runs=runs, options=ROUTER)
    assert codes(found) == expected


# --- the pod network -----------------------------------------------------------------------------


def view(name="node1", address="192.0.2.11", cidr="10.244.1.0/24"):
    parsed = ipaddress.ip_address(address)
    is_4 = parsed.version == 4
    return NodeView(
        *(name, parsed, parsed if is_4 else None, None if is_4 else parsed, (parsed,)),
        *((ipaddress.ip_network(cidr),), (), "", {}),
    )


ETH = Link("eth0", 1500, "", "", ("192.0.2.11",), ("192.0.2.11/24",))
DIRECT = Options(**{**NONE, "run_router": True, "enable_overlay": False})


@pytest.mark.parametrize(
    ("link", "options", "is_wrong"),
    [
        (Link("kube-bridge", 1480, "bridge"), ROUTER, False),
        (Link("kube-bridge", 1500, "bridge"), ROUTER, True),
        (Link("kube-bridge", 1500, "bridge"), DIRECT, False),
        (Link("kube-bridge", 9000, "bridge"), DIRECT, True),
        (Link("veth1", 1480, "veth", "kube-bridge"), ROUTER, False),
        (Link("veth1", 1500, "veth", "kube-bridge"), ROUTER, True),
        (Link("veth1", 9000, "veth", "docker0"), ROUTER, False),
        (Link("tun-1234", 1480, "ipip"), ROUTER, False),
        (Link("tun-1234", 1500, "ipip"), ROUTER, True),
        (Link("kube-bridge", 9000, "bridge"), FIREWALL, False),
    ],
)
def test_mtus(link, options, is_wrong):
    far = view("node2", "198.51.100.12")
    found = list(network.mtus([ETH, link], view(), [view(), far], options))
    assert [(each.code, each.severity) for each in found] == [
        ("mtu-too-large", "warning")
    ] * is_wrong


@pytest.mark.parametrize(("mtu", "severity"), [(1500, "note"), (9000, "warning")])
def test_room_for_tunnels_that_nobody_needs_yet_is_a_note(mtu, severity):
    links = [ETH, Link("kube-bridge", mtu, "bridge"), Link("veth1", mtu, "veth", "kube-bridge")]
    found = list(network.mtus(links, view(), [view(), view("node2", "192.0.2.12")], ROUTER))
    assert [each.severity for each in found] == [severity] * 2


def test_a_path_that_the_kernel_knows_to_be_smaller():
    other = view("node2", "192.0.2.12")
    (only,) = network.paths({"192.0.2.12": 1400, "192.0.2.99": 1000}, [ETH], [other], view())
    assert (only.code, only.object) == ("path-mtu-small", "Node node2")
    assert list(network.paths({"192.0.2.12": 1500}, [ETH], [other], view())) == []


@pytest.mark.parametrize(
    ("other", "kind", "is_needed"),
    [
        ("192.0.2.12", "subnet", False),
        ("198.51.100.12", "subnet", True),
        ("192.0.2.12", "full", True),
    ],
)
def test_tunnels_are_needed_for_nodes_of_other_subnets(other, kind, is_needed):
    options = Options(**{**NONE, "run_router": True, "overlay_type": kind})
    nodes = [view(), view("node2", other)]
    assert network.needs_tunnels([ETH], view(), nodes, options) is is_needed


PATH = "/etc/cni/net.d/10-kuberouter.conflist"


def conflist(subnet="10.244.1.0/24", kind="bridge"):
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
    plugins = [{"type": kind, "bridge": "kube-bridge", "ipam": ipam}, {"type": "portmap"}]
    return json.dumps({"cniVersion": "0.3.1", "name": "kubernetes", "plugins": plugins})


NAME = PATH.rpartition("/")[2]
MULTUS = "00-multus.conf"
ALL = frozenset(("bridge", "host-local", "portmap", "loopback"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (CniFiles(PATH, conflist(), (NAME,), ALL), []),
        (CniFiles(PATH, conflist(), (NAME, "99-other.conf", "05-notes.txt"), None), []),
        (CniFiles(PATH, None, (), ALL), ["cni-missing"]),
        (CniFiles(PATH, "{", (NAME,), ALL), ["cni-invalid"]),
        (CniFiles(PATH, "[]", (NAME,), ALL), ["cni-invalid"]),
        (CniFiles(PATH, conflist(kind="ptp"), (NAME,), None), ["cni-invalid"]),
        (CniFiles(PATH, conflist("10.99.0.0/24"), (NAME,), ALL), ["cni-stale"]),
        (CniFiles(PATH, conflist(), ("05-flannel.conflist", NAME), ALL), ["cni-shadowed"]),
        (CniFiles(PATH, conflist(), (MULTUS, NAME), ALL, frozenset((MULTUS,))), []),
        (CniFiles(PATH, conflist(), (MULTUS, NAME), ALL), ["cni-shadowed"]),
        (CniFiles(PATH, conflist(), (NAME,), frozenset(("bridge",))), ["cni-plugin-missing"]),
    ],
)
def test_cni_files(files, expected):
    assert codes(network.cni(files, view(), ROUTER)) == expected
    assert codes(network.cni(files, view(), FIREWALL)) == []


def test_a_file_of_multus_is_known_by_its_plugin(tmp_path):
    (tmp_path / NAME).write_text(conflist())
    (tmp_path / MULTUS).write_text(json.dumps({"type": "multus-shim"}))
    assert facts_host.cni_files(str(tmp_path / NAME), "").multus == {MULTUS}
