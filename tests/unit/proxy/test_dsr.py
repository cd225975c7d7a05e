"""compile_dsr, with_direct_servers and compile_marks: tables and properties."""

import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.cluster.objects import (
    EndpointPort,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodSpec,
    ServicePort,
)
from kube_router_py.marks import DSR_MARK_TCP
from kube_router_py.proxy import dsr
from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.model import Forward, Vip, VirtualServerKey
from kube_router_py.proxy.settings import ProxyOptions

OPTIONS = ProxyOptions(ipv6=True, strict_external_ips=False)
TUNNEL = {dsr.DSR_ANNOTATION: "tunnel"}
VIP4, VIP6 = "203.0.113.10", "2001:db8:5::10"
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


def backend(
    make: Any, address: str = "10.244.1.5", *, uid: str = "uid-a", node: str = "node1"
) -> Any:
    target = ObjectReference("Pod", name=f"pod-{uid}", namespace="default", uid=uid)
    return structs.replace(make.endpoint(address, node=node), target_ref=target)


def web(make: Any, external: tuple[str, ...] = (VIP4,), /, **other: Any) -> Any:
    return make.service(**{"annotations": TUNNEL, "external_ips": external, **other})


def slice_of(make: Any, *endpoints: Any, port: int = 80, family: str = "IPv4") -> Any:
    return make.slice(
        *endpoints, ports=(EndpointPort(port=port),), family=family, name=f"web-{family}"
    )


class Found:
    """The outcome for one Service."""

    def __init__(
        self,
        make: Any,
        service: Any,
        *slices: Any,
        shared: frozenset[str] = frozenset(),
        pod: Pod | None = None,
        isolated: Callable[[str], bool] = lambda uid: False,
    ) -> None:
        node = make.place()
        self.compiled: CompiledService = compile_service(service, slices, node, OPTIONS)
        self.direct = dsr.compile_dsr(
            service,
            slices,
            self.compiled,
            node,
            is_shared=lambda vip: str(vip) in shared,
            pod_of=lambda key: pod,
            is_isolated=isolated,
        )

    def reasons(self) -> list[str]:
        return [each.reason for each in self.direct.problems]

    def uids(self) -> list[list[str]]:
        return [[each.uid for each in server.backends] for server in self.direct.servers]


# --- marks ----------------------------------------------------------------------------------------


def test_marks_are_these_for_ever(make: Any) -> None:
    """Other nodes and the agent before a restart count on them."""
    assert hex(dsr.dsr_mark(make.key(VIP4))) == "0x7de58feb"
    assert hex(dsr.dsr_mark(make.key(VIP4, 80, "UDP"))) == "0x7d053a21"
    assert hex(dsr.dsr_mark(make.key(VIP6))) == "0x7dc45287"


@given(st.sampled_from([6, 17, 132]), st.binary(min_size=4, max_size=4), st.integers(1, 65535))
def test_a_mark_is_in_our_range_and_tells_tcp(protocol: int, address: bytes, port: int) -> None:
    mark = dsr.dsr_mark(VirtualServerKey(V4, protocol, address, port))
    assert mark & 0xFF000000 == 0x7D000000
    assert bool(mark & DSR_MARK_TCP) == (protocol == 6)


# --- which virtual servers ------------------------------------------------------------------------


def test_external_and_load_balancer_ips_are_served_directly_and_nothing_else(make: Any) -> None:
    service = web(make, lb_ips=("203.0.113.11",), node_port=30080)
    found = Found(make, service, slice_of(make, backend(make)))
    assert {str(each.vip) for each in found.direct.servers} == {VIP4, "203.0.113.11"}
    assert found.uids() == [["uid-a"], ["uid-a"]]
    assert found.reasons() == []
    adapted = dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: True)
    ordinary = {key for key in adapted.virtual_servers if not key.fwmark}
    assert ordinary == {make.key("10.96.0.10"), make.key("192.168.1.1", 30080)}
    assert {str(vip) for vip in adapted.vips} & {VIP4, "203.0.113.11"} == set()
    for server in found.direct.servers:
        assert server.key.fwmark == server.mark
        (real,) = adapted.virtual_servers[server.key].real_servers.values()
        assert real.forward == Forward.TUNNEL


def test_both_families_and_protocols(make: Any) -> None:
    ports = (ServicePort(port=80, name="t"), ServicePort(port=80, name="u", protocol="UDP"))
    named = (EndpointPort(name="t", port=80), EndpointPort(name="u", port=80, protocol="UDP"))
    slices = [
        make.slice(backend(make, address), ports=named, family=family, name=family)
        for address, family in (("10.244.1.5", "IPv4"), ("fd00:10:244:1::5", "IPv6"))
    ]
    service = web(make, (VIP4, VIP6), ips=("10.96.0.10", "fd00:96::10"), ports=ports)
    found = Found(make, service, *slices)
    keys = {each.address for each in found.direct.servers}
    assert keys == {make.key(vip, 80, name) for vip in (VIP4, VIP6) for name in ("TCP", "UDP")}
    assert found.uids() == [["uid-a"]] * 4
    assert {each.key.family for each in found.direct.servers} == {V4, V6}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": {dsr.DSR_ANNOTATION: "ipip"}}, "'ipip' is not tunnel"),
        ({"external_ips": ()}, "no external or load balancer IP"),
        ({"external_ips": ("192.168.1.1",)}, "an address of this node"),
    ],
)
def test_services_that_are_served_without(make: Any, changes: dict[str, Any], reason: str) -> None:
    found = Found(make, web(make, **changes), slice_of(make, backend(make)))
    assert found.direct.servers == ()
    (said,) = found.reasons()
    assert reason in said
    adapted = dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: True)
    assert adapted.virtual_servers == found.compiled.virtual_servers
    assert adapted.vips == found.compiled.vips
    assert set(found.direct.problems) <= set(adapted.problems)


def test_a_service_that_does_not_ask_is_left_as_it_is(make: Any) -> None:
    found = Found(make, web(make, annotations=None), slice_of(make, backend(make)))
    assert found.direct == dsr.DirectReturn()
    assert (
        dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: False)
        is found.compiled
    )


def test_a_vip_that_others_need_is_served_without_and_the_other_one_directly(make: Any) -> None:
    service = web(make, (VIP4, "203.0.113.11"))
    found = Found(make, service, slice_of(make, backend(make)), shared=frozenset({VIP4}))
    assert [str(each.vip) for each in found.direct.servers] == ["203.0.113.11"]
    assert {str(vip) for vip in found.direct.asked} == {VIP4, "203.0.113.11"}
    (said,) = found.reasons()
    assert "another Service uses it" in said
    adapted = dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: True)
    assert make.key(VIP4) in adapted.virtual_servers
    assert VIP4 in {str(vip) for vip in adapted.vips}


def test_a_mark_taken_twice_serves_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dsr, "dsr_mark", lambda key: 0x7D800001)
    found = Found(make, web(make, (VIP4, "203.0.113.11")), slice_of(make, backend(make)))
    assert [str(each.vip) for each in found.direct.servers] == [VIP4]
    assert found.direct.dropped == (make.key("203.0.113.11"),)
    (said,) = found.reasons()
    assert "0x7d800001" in said
    adapted = dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: True)
    assert make.key("203.0.113.11") not in adapted.virtual_servers


# --- which backends -------------------------------------------------------------------------------


def no_pod(make: Any) -> Any:
    return make.endpoint("10.244.1.6")


def of_other_kind(make: Any) -> Any:
    target = ObjectReference("VirtualMachine", name="x", namespace="default", uid="uid-b")
    return structs.replace(make.endpoint("10.244.1.6"), target_ref=target)


def with_nodes_address(make: Any) -> Any:
    return backend(make, "192.168.1.1", uid="uid-b")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (no_pod, "no pod stands behind"),
        (of_other_kind, "no pod stands behind"),
        (with_nodes_address, "host's network"),
    ],
)
def test_one_bad_endpoint_leaves_the_others(
    make: Any, bad: Callable[[Any], Any], reason: str
) -> None:
    found = Found(make, web(make), slice_of(make, backend(make), bad(make)))
    assert found.uids() == [["uid-a"]]
    (said,) = found.reasons()
    assert reason in said


def test_ports_have_to_be_equal(make: Any) -> None:
    found = Found(make, web(make), slice_of(make, backend(make), port=8080))
    assert found.uids() == [[]]
    assert "targetPort have to be equal" in found.reasons()[0]


def test_a_pod_in_the_hosts_network(make: Any) -> None:
    pod = Pod(ObjectMeta("pod-uid-a", "default"), PodSpec(host_network=True))
    found = Found(make, web(make), slice_of(make, backend(make)), pod=pod)
    assert found.uids() == [[]]
    assert "host's network" in found.reasons()[0]


def test_an_isolated_pod_of_this_node_is_left_out_and_one_elsewhere_its_own_node_judges(
    make: Any,
) -> None:
    endpoints = [
        backend(make),
        backend(make, "10.244.1.6", uid="uid-b"),
        backend(make, "10.244.2.5", uid="uid-c", node="node2"),
    ]
    asked: list[str] = []

    def isolated(uid: str) -> bool:
        asked.append(uid)
        return uid != "uid-b"

    found = Found(make, web(make), slice_of(make, *endpoints), isolated=isolated)
    assert found.uids() == [["uid-b", "uid-c"]]
    assert "uid-c" not in asked
    (said,) = found.reasons()
    assert "NetworkPolicy" in said


def test_only_ready_backends_are_real_servers_and_others_may_stay(make: Any) -> None:
    endpoints = [backend(make), backend(make, "10.244.2.5", uid="uid-b", node="node2")]
    found = Found(make, web(make), slice_of(make, *endpoints))
    adapted = dsr.with_direct_servers(
        found.compiled, found.direct, lambda server, each: each.uid == "uid-b"
    )
    (server,) = found.direct.servers
    assert list(adapted.virtual_servers[server.key].real_servers) == [make.real("10.244.2.5", 80)]
    none = dsr.with_direct_servers(found.compiled, found.direct, lambda server, each: False)
    assert none.virtual_servers[server.key].real_servers == {}
    assert none.virtual_servers.keys() == adapted.virtual_servers.keys()


# --- the rules ------------------------------------------------------------------------------------


def server(make: Any, vip: str, port: int, protocol: str, sources: Any = None) -> dsr.DirectServer:
    key = make.key(vip, port, protocol)
    return dsr.DirectServer(key, dsr.dsr_mark(key), (), sources)


def test_each_vip_and_port_gets_its_mark_whole(make: Any) -> None:
    servers = [server(make, VIP4, 80, "TCP"), server(make, VIP4, 53, "UDP")]
    rules = dsr.compile_marks(servers, {})
    assert list(rules) == ["inet"]
    marks = [rule for rule in rules["inet"].chains[dsr.CHAIN] if "MARK" in rule]
    assert len(marks) == 3
    assert all(re.search(r"--set-xmark 0x7d[0-9a-f]{6}/0xffffffff$", rule) for rule in marks)
    assert marks[2] == f"-d {VIP4}/32 -p icmp -j MARK --set-xmark 0x7d000000/0xffffffff"


def test_who_may_not_connect_is_dropped_where_packets_are_marked(make: Any) -> None:
    one = server(make, VIP4, 80, "TCP", ("198.51.100.0/24",))
    chain = dsr.compile_marks([one], {})["inet"].chains[dsr.CHAIN]
    to = f"-d {VIP4}/32 -p tcp -m tcp --dport 80"
    assert chain[0] == f"-s 198.51.100.0/24 {to} -j MARK --set-xmark {one.mark:#x}/0xffffffff"
    assert chain[1] == f"{to} -m mark ! --mark {one.mark:#x} -j DROP"
    nobody = dsr.compile_marks([server(make, VIP4, 80, "TCP", ())], {})["inet"].chains[dsr.CHAIN]
    assert nobody[0] == f"{to} -m mark ! --mark {one.mark:#x} -j DROP"


def test_segments_leave_room_for_both_headers(make: Any) -> None:
    servers = [server(make, vip, 80, name) for vip in (VIP4, VIP6) for name in ("TCP", "UDP")]
    mtu = {each.vip: 1450 for each in servers}
    rules = dsr.compile_marks(servers, mtu)
    sizes = {
        name: [rule for rule in found.chains[dsr.CHAIN] if "TCPMSS" in rule]
        for name, found in rules.items()
    }
    assert [rule.rpartition(" ")[2] for rule in sizes["inet"]] == ["1390"]
    assert [rule.rpartition(" ")[2] for rule in sizes["inet6"]] == ["1350"]
    assert all("--tcp-flags SYN,ACK SYN,ACK" in rule for name in sizes for rule in sizes[name])
    assert "TCPMSS" not in str(dsr.compile_marks(servers, {}))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([VIP4, "203.0.113.11", VIP6]),
            st.integers(1, 65535),
            st.sampled_from(["TCP", "UDP"]),
            st.sampled_from([None, (), ("198.51.100.0/24",)]),
        ),
        max_size=6,
        unique_by=lambda each: each[:3],
    ),
    st.randoms(),
)
def test_rules_do_not_depend_on_the_order(make: Any, wanted: list[Any], random: Any) -> None:
    servers = [server(make, *each) for each in wanted]
    rules = dsr.compile_marks(servers, {Vip(V4, make.key(VIP4).address): 1500})
    random.shuffle(servers)
    assert dsr.compile_marks(servers, {Vip(V4, make.key(VIP4).address): 1500}) == rules
    text = "\n".join(rule for each in rules.values() for rule in each.chains[dsr.CHAIN])
    assert all(f"{each.mark:#x}" in text for each in servers)
    assert len(text.splitlines()) == len(set(text.splitlines()))


# --- who may connect ------------------------------------------------------------------------------


def test_sources_of_a_service(make: Any) -> None:
    one = slice_of(make, backend(make))
    far = slice_of(make, backend(make, "10.244.2.5", node="node2"))

    def sources(*slices: Any, **spec: Any) -> Any:
        service = web(make, (), lb_ips=(VIP4,), **spec)
        (found,) = Found(make, service, *slices).direct.servers
        return found.sources

    assert sources(one) is None
    assert sources(one, load_balancer_source_ranges=("198.51.100.0/24",)) == ("198.51.100.0/24",)
    local = {"external_traffic_policy": "Local"}
    assert sources(one, **local) is None
    assert sources(far, **local) == ("10.244.1.0/24", "192.168.1.1/32")
