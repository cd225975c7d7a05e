"""ServiceProxy on fakes: turns, restarts, drift, failures, draining."""

import errno
import ipaddress
import logging
from collections.abc import Hashable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointPort, EndpointSlice, Node, Service, ServicePort
from kube_router_py.errors import StateUnknownError
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.loop import Outcome
from kube_router_py.observe.log_fields import values
from kube_router_py.problem import Problem
from kube_router_py.proxy import controller
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import CLUSTER_NODES, OWN_NODE
from kube_router_py.proxy.model import (
    Connections,
    RealServer,
    Verb,
    Vip,
    VirtualServer,
    VirtualServerState,
)
from kube_router_py.proxy.settings import ProxyOptions

OPTIONS = ProxyOptions(strict_external_ips=False)


class Rig:
    """A cache, a fake host and a proxy whose turns the test takes by hand."""

    def __init__(self, make: Any, host: Any, options: ProxyOptions = OPTIONS) -> None:
        self.make, self.host, self.options = make, host, options
        self.now_s = 1000.0
        self.dirty: set[Hashable] = set()
        self.cache = Cache((Service, EndpointSlice, Node))
        self.cache.replace(Service, [], "1")
        self.cache.replace(EndpointSlice, [], "1")
        self.cache.replace(Node, [make.node()], "1")
        self.proxy: ServiceProxy
        self.restart()

    def mark(self, keys: Iterable[Hashable]) -> None:
        self.dirty.update(keys)

    def restart(self) -> None:
        self.proxy = ServiceProxy(
            self.cache, self.options, "node1", self.host.open, lambda: self.now_s
        )
        self.proxy.open()
        self.proxy.subscribe(self.cache, self)

    def turn(self, *, full: bool = False) -> Outcome:
        dirty, self.dirty = frozenset(self.dirty), set()
        return self.proxy.reconcile(dirty, full)

    def put(self, *objects: Any) -> None:
        for each in objects:
            self.cache.put(type(each), each)

    def table(self) -> dict[str, dict[str, int] | None]:
        return {str(k): self.make.weights(state) for k, state in self.host.ipvs.read().items()}

    def vips(self) -> set[str]:
        return {str(vip) for vip in self.host.links.vips}


@pytest.fixture
def rig(make: Any, host: Any) -> Rig:
    return Rig(make, host)


def test_the_first_turn_programs_everything(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2", "10.244.2.2"))
    outcome = rig.turn(full=True)
    assert outcome.failed == frozenset()
    both = {"10.244.1.2": 1, "10.244.2.2": 1}
    assert rig.table() == {"TCP 10.96.0.10:80": both, "TCP 192.168.1.1:30080": both}
    vip = Vip(2, bytes([10, 96, 0, 10]))
    assert rig.host.ports.links.read_vips() == {vip: bytes([192, 168, 1, 1])}
    assert rig.host.sysctls["net/ipv4/ip_forward"] == "1"
    assert rig.host.sysctls["net/ipv4/vs/expire_nodest_conn"] == "1"
    assert rig.host.sysctls["net/ipv4/conf/eth0/rp_filter"] == "2"
    assert rig.host.sysctls["net/ipv4/conf/all/rp_filter"] == "0"
    assert rig.host.sysctls["net/ipv6/conf/all/forwarding"] == "0"
    chains = rig.host.iptables.chains("inet", "nat")
    assert len(chains["KUBE-ROUTER-MASQ"]) == 2
    assert len(chains["POSTROUTING"]) == 2


def test_a_restart_with_nothing_to_change_writes_nothing(rig: Rig) -> None:
    rig.put(
        rig.make.service(node_port=30080, session_affinity="ClientIP"),
        rig.make.slice("10.244.1.2", rig.make.endpoint("10.244.1.3", rig.make.NOT_READY)),
        rig.make.service("dns", ("10.96.0.53",), external_ips=("192.168.1.1", "203.0.113.1")),
    )
    rig.turn(full=True)
    assert rig.host.writes > 0
    rig.restart()
    outcome = rig.turn(full=True)
    assert outcome.failed == frozenset()
    assert rig.host.writes == 0
    rig.turn(full=True)
    assert rig.host.writes == 0


def test_one_endpoint_change_sends_one_operation(rig: Rig) -> None:
    for number in range(1, 21):
        name = f"s{number}"
        rig.put(
            rig.make.service(name, (f"10.96.1.{number}",)),
            rig.make.slice(f"10.244.1.{number}", service=name),
        )
    rig.turn(full=True)
    before = rig.host.writes
    rig.host.ipvs.operations.clear()
    rig.put(rig.make.slice("10.244.1.7", "10.244.2.7", service="s7"))
    assert rig.dirty == {"default/s7"}
    rig.turn()
    (operation,) = rig.host.ipvs.operations
    assert operation.verb is Verb.ADD_REAL_SERVER
    assert operation.key == rig.make.key("10.96.1.7")
    assert rig.host.writes == before + 1


def test_an_incremental_turn_does_not_read_the_table(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)

    def fail() -> None:
        raise AssertionError("the kernel was read back")

    monkeypatch.setattr(rig.host.ipvs, "read", fail)
    rig.put(rig.make.slice("10.244.1.2", "10.244.1.3"))
    assert rig.turn().failed == frozenset()


def test_unchanged_objects_and_foreign_events_send_nothing(rig: Rig) -> None:
    other = rig.make.node("node2", ("192.168.1.2",))
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"), other)
    rig.turn(full=True)
    before = rig.host.writes
    rig.put(rig.make.slice("10.244.1.2", rig.make.endpoint("10.244.1.9", rig.make.NOT_READY)))
    beat = structs.replace(other.metadata, annotations={"example.org/heartbeat": "1"})
    rig.put(structs.replace(other, metadata=beat))
    assert rig.dirty == {"default/web"}
    rig.turn()
    assert rig.host.writes == before


def test_deleting_a_service_removes_what_it_had(rig: Rig) -> None:
    rig.put(
        rig.make.service(node_port=30080),
        rig.make.service("other", ("10.96.0.11",)),
        rig.make.slice("10.244.1.2"),
    )
    rig.turn(full=True)
    rig.cache.delete(Service, "default/web")
    rig.turn()
    assert rig.table() == {"TCP 10.96.0.11:80": {}}
    assert rig.vips() == {"10.96.0.11"}


def test_drift_is_repaired_and_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put(rig.make.service(), rig.make.service("dns", ("10.96.0.53",)))
    rig.put(rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    web, dns = rig.make.key("10.96.0.10"), rig.make.key("10.96.0.53")
    stray = rig.make.key("10.96.9.9")
    rig.host.ipvs.drop(dns)
    rig.host.ipvs.put(
        web,
        VirtualServerState(
            VirtualServer(scheduler="lc"), {rig.make.real("10.244.1.2"): RealServer(weight=7)}
        ),
    )
    rig.host.ipvs.put(stray, VirtualServerState(VirtualServer(), {}))
    rig.host.links.vips.pop(Vip(dns.family, dns.address))
    assert rig.proxy.repaired == 0
    with caplog.at_level(logging.WARNING):
        rig.turn(full=True)
    assert rig.proxy.repaired == 5
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}, "TCP 10.96.0.53:80": {}}
    assert rig.vips() == {"10.96.0.10", "10.96.0.53"}
    told = [values(record.msg, record.args) for record in caplog.records]
    assert told == [
        [("service", "default/dns"), ("what", "add virtual server TCP 10.96.0.53:80 scheduler rr")],
        [("service", "default/web"), ("what", "set virtual server TCP 10.96.0.10:80 scheduler rr")],
        [
            ("service", "default/web"),
            ("what", "set real server TCP 10.96.0.10:80 -> 10.244.1.2:8080 weight 1"),
        ],
        [("service", "default/dns"), ("what", "put address 10.96.0.53")],
        [("what", "TCP 10.96.9.9:80 (scheduler rr)")],
    ]


def test_each_service_has_its_story_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """From the first virtual server to the last, the backends at -v=1 only."""
    rig.put(rig.make.service("dns", ("10.96.0.53",)))
    rig.turn(full=True)
    caplog.set_level(logging.DEBUG)
    caplog.clear()

    def told() -> list[tuple[str, list[tuple[str, str]]]]:
        lines = [each for each in caplog.records if each.name.endswith(".telling")]
        caplog.clear()
        found = [(each.levelname, values(each.msg, each.args)) for each in lines]
        return [each for each in found if each[1][0][0] == "service"]

    def story(level: str, what: str) -> list[tuple[str, list[tuple[str, str]]]]:
        return [(level, [("service", "default/web"), ("what", what)])]

    rig.put(rig.make.service())
    rig.turn()
    assert told() == story("INFO", "add virtual server TCP 10.96.0.10:80 scheduler rr")
    rig.put(rig.make.slice("10.244.1.2"))
    rig.turn()
    added = "add real server TCP 10.96.0.10:80 -> 10.244.1.2:8080 weight 1"
    assert told() == story("DEBUG", added)
    rig.cache.delete(EndpointSlice, "default/web-1")
    rig.cache.delete(Service, "default/web")
    rig.turn()
    (gone,) = told()
    assert gone[0] == "INFO"
    assert gone[1][0] == ("service", "default/web")
    assert gone[1][1][1].endswith("delete virtual server TCP 10.96.0.10:80")
    for number in range(30):
        rig.put(rig.make.service(f"s{number}", (f"10.96.1.{number}",)))
    rig.turn()
    assert [level for level, _ in told()] == ["INFO"] * 20 + ["DEBUG"] * 10


def test_every_removed_stranger_is_named_and_repairs_are_counted(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 31):
        rig.put(rig.make.service(f"s{number}", (f"10.96.1.{number}",)))
    rig.turn(full=True)
    for number in range(1, 31):
        rig.host.ipvs.drop(rig.make.key(f"10.96.1.{number}"))
    for number in range(1, 121):
        rig.host.ipvs.put(
            rig.make.key(f"10.99.0.{number}"), VirtualServerState(VirtualServer(), {})
        )
    caplog.clear()
    rig.turn(full=True)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "repaired more that others had changed count=10" in told
    removed = [line for line in told if line.startswith("removed what no Service asked for")]
    assert len(removed) == 3
    text = "".join(removed)
    assert all(f"TCP 10.99.0.{number}:80 " in text for number in range(1, 121))


def test_an_ordinary_change_seen_at_a_resync_is_no_repair(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put(rig.make.service(), rig.make.service("dns", ("10.96.0.53",)))
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.1.2"))
    rig.cache.delete(Service, "default/dns")
    with caplog.at_level(logging.WARNING):
        rig.turn(full=True)
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}
    assert caplog.records == []
    assert rig.proxy.repaired == 0


def test_excluded_cidrs_keep_what_is_not_desired(make: Any, host: Any) -> None:
    excluded = (ipaddress.ip_network("10.99.0.0/16"), ipaddress.ip_network("fd00:99::/64"))
    rig = Rig(make, host, ProxyOptions(excluded_cidrs=excluded))
    state = VirtualServerState(VirtualServer(), {make.real("10.244.9.9"): RealServer()})
    host.ipvs.put(make.key("10.99.0.1"), state)
    host.ipvs.put(make.key("fd00:99::1"), VirtualServerState(VirtualServer(), {}))
    host.ipvs.put(make.key("10.98.0.1"), state)
    rig.put(make.service("inside", ("10.99.0.2",)))
    rig.turn(full=True)
    kept = {"TCP 10.99.0.1:80", "TCP [fd00:99::1]:80", "TCP 10.99.0.2:80"}
    assert rig.table().keys() == kept
    rig.cache.delete(Service, "default/inside")
    rig.turn()
    assert rig.vips() == set()
    rig.turn(full=True)
    assert rig.table().keys() == kept


def test_a_vip_that_the_node_has_gets_ipvs_entries_only(rig: Rig) -> None:
    rig.put(rig.make.service(external_ips=("192.168.1.1", "203.0.113.1")))
    rig.turn(full=True)
    assert "TCP 192.168.1.1:80" in rig.table()
    assert rig.vips() == {"10.96.0.10", "203.0.113.1"}
    rig.host.links.addresses.append(NodeAddress(2, bytes([203, 0, 113, 1]), 24, "eth0"))
    rig.turn(full=True)
    assert rig.vips() == {"10.96.0.10"}
    assert "TCP 203.0.113.1:80" in rig.table()


def test_a_shared_address_stays_until_its_last_service_goes(rig: Rig) -> None:
    for name, number, port in (("a", 1, 80), ("b", 2, 81)):
        service = rig.make.service(
            name, (f"10.96.0.{number}",), port, external_ips=("203.0.113.1",)
        )
        rig.put(service)
    rig.turn(full=True)
    rig.cache.delete(Service, "default/a")
    rig.turn()
    assert "203.0.113.1" in rig.vips()
    rig.cache.delete(Service, "default/b")
    rig.turn()
    assert rig.vips() == set()


def test_a_changed_node_moves_node_ports_sources_and_nat(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    rig.host.links.addresses.append(NodeAddress(2, bytes([192, 168, 7, 7]), 24, "eth1"))
    rig.put(rig.make.node(addresses=("192.168.7.7",)))
    assert rig.dirty == {OWN_NODE, CLUSTER_NODES}
    rig.turn()
    assert set(rig.table()) == {"TCP 10.96.0.10:80", "TCP 192.168.7.7:30080"}
    assert set(rig.host.ports.links.read_vips().values()) == {bytes([192, 168, 7, 7])}
    rule, _ = rig.host.iptables.chains("inet", "nat")["KUBE-ROUTER-MASQ"]
    assert "192.168.7.7" in rule


def test_a_kubelets_heartbeat_marks_nothing(rig: Rig) -> None:
    node = rig.make.node()
    rig.put(type(node)(node.metadata, node.spec, type(node.status)(node.status.addresses, ())))
    assert rig.dirty == set()


def test_a_node_address_that_no_link_has_is_no_preferred_source(rig: Rig) -> None:
    rig.put(rig.make.node(addresses=("198.51.100.1",)), rig.make.service())
    outcome = rig.turn(full=True)
    assert outcome.failed == frozenset()
    assert rig.vips() == {"10.96.0.10"}


def test_a_deleted_node_object_changes_nothing_and_is_told(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080))
    rig.turn(full=True)
    before = rig.host.writes
    rig.cache.delete(Node, "node1")
    outcome = rig.turn()
    assert rig.host.writes == before
    assert [problem.object for problem in outcome.problems] == ["Node node1"]


def test_a_refused_operation_fails_its_service_alone(rig: Rig) -> None:
    bad = rig.make.real("10.244.6.6")
    rig.host.ipvs.inject(errno.EINVAL, lambda operation: operation.real_server == bad)
    rig.put(
        rig.make.service("bad", ("10.96.0.66",)),
        rig.make.slice("10.244.6.6", "10.244.6.7", service="bad"),
        rig.make.service(),
        rig.make.slice("10.244.1.2"),
    )
    outcome = rig.turn(full=True)
    assert outcome.failed == {"default/bad"}
    assert [problem.object for problem in outcome.problems] == ["Service default/bad"]
    assert rig.table()["TCP 10.96.0.10:80"] == {"10.244.1.2": 1}
    assert rig.table()["TCP 10.96.0.66:80"] == {"10.244.6.7": 1}
    rig.put(rig.make.slice("10.244.1.2", "10.244.1.3"))
    outcome = rig.turn()
    assert rig.table()["TCP 10.96.0.10:80"] == {"10.244.1.2": 1, "10.244.1.3": 1}
    assert outcome.failed == {"default/bad"}
    rig.host.ipvs.heal()
    outcome = rig.turn(full=True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert rig.table()["TCP 10.96.0.66:80"] == {"10.244.6.6": 1, "10.244.6.7": 1}


def test_what_cannot_be_added_leaves_the_old_endpoint_in_place(make: Any, host: Any) -> None:
    rig = Rig(make, host, ProxyOptions(graceful_termination=False))
    rig.put(make.service(), make.slice("10.244.1.2"))
    rig.turn(full=True)
    host.ipvs.inject(errno.ENOMEM, lambda operation: operation.verb is Verb.ADD_REAL_SERVER)
    rig.put(make.slice("10.244.1.3"))
    assert rig.turn().failed == {"default/web"}
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}


def test_lost_replies_make_the_next_turn_read_the_kernel(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.1.2", "10.244.1.3"))
    rig.host.ipvs.break_next(StateUnknownError("replies were lost", errno.ENOBUFS))
    assert rig.turn().failed == {"default/web", OWN_NODE}
    rig.host.ipvs.drop(rig.make.key("10.96.0.10"))
    assert rig.turn().failed == frozenset()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1, "10.244.1.3": 1}}


def test_a_scheduler_the_kernel_cannot_load_falls_back(rig: Rig) -> None:
    rig.host.ipvs.inject(
        errno.ENOENT, lambda each: each.config is not None and each.config.scheduler == "ovf"
    )
    rig.put(
        rig.make.service(annotations={"kube-router.io/service.scheduler": "ovf"}),
        rig.make.slice("10.244.1.2"),
    )
    assert rig.turn(full=True).failed == {"default/web"}
    outcome = rig.turn(full=True)
    assert outcome.failed == frozenset()
    assert "ip_vs_ovf" in outcome.problems[0].reason
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}


def test_an_unwritable_parameter_is_told_and_retried(make: Any, host: Any) -> None:
    host.refused_sysctls = ("net/ipv4/ip_forward",)
    rig = Rig(make, host)
    rig.put(make.service())
    outcome = rig.turn(full=True)
    assert outcome.failed == {OWN_NODE}
    assert [problem.field for problem in outcome.problems] == ["net/ipv4/ip_forward"]
    assert set(rig.table()) == {"TCP 10.96.0.10:80"}


def test_a_missing_parameter_is_told(make: Any, host: Any) -> None:
    del host.sysctls["net/ipv4/vs/conntrack"]
    rig = Rig(make, host)
    outcome = rig.turn(full=True)
    assert [problem.field for problem in outcome.problems] == ["net/ipv4/vs/conntrack"]


def test_a_kernel_that_does_not_filter_bridges_is_told_and_no_failure(make: Any, host: Any) -> None:
    Rig(make, host).turn(full=True)
    assert host.sysctls["net/bridge/bridge-nf-call-iptables"] == "1"
    del host.sysctls["net/bridge/bridge-nf-call-iptables"]
    outcome = Rig(make, host).turn(full=True)
    assert outcome.failed == frozenset()
    assert [problem.field for problem in outcome.problems] == ["net/bridge/bridge-nf-call-iptables"]
    assert "modprobe br_netfilter" in outcome.problems[0].reason


def test_a_service_that_breaks_the_compiler_keeps_what_it_had(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"), rig.make.service("b", ("10.96.0.2",)))
    rig.turn(full=True)
    real = controller.compile_service

    def breaks(service: Service, *rest: Any) -> Any:
        if service.metadata.name == "web":
            raise ZeroDivisionError("a bug")
        return real(service, *rest)

    monkeypatch.setattr(controller, "compile_service", breaks)
    rig.put(rig.make.slice("10.244.1.3"), rig.make.slice("10.244.1.4", service="b", name="b-1"))
    outcome = rig.turn()
    assert outcome.failed == {"default/web"}
    assert rig.table() == {
        "TCP 10.96.0.10:80": {"10.244.1.2": 1},
        "TCP 10.96.0.2:80": {"10.244.1.4": 1},
    }
    monkeypatch.setattr(controller, "compile_service", real)
    assert rig.turn(full=True).failed == frozenset()
    assert "10.244.1.3" in (rig.table()["TCP 10.96.0.10:80"] or {})


def test_draining_over_its_whole_life(rig: Rig) -> None:
    key, leaving = rig.make.key("10.96.0.10"), rig.make.real("10.244.1.3")
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2", "10.244.1.3"))
    rig.turn(full=True)
    rig.host.ipvs.set_connections(key, leaving, Connections(active=2, inactive=0))
    rig.put(rig.make.slice("10.244.1.2"))
    outcome = rig.turn()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1, "10.244.1.3": 0}}
    assert outcome.wake_after_s == 1.0
    rig.now_s += 1.0
    assert rig.turn().wake_after_s == 1.0
    assert "10.244.1.3" in (rig.table()["TCP 10.96.0.10:80"] or {})
    rig.host.ipvs.set_connections(key, leaving, Connections(active=0, inactive=0))
    rig.now_s += 1.0
    outcome = rig.turn()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}
    assert outcome.wake_after_s is None


def test_a_restart_goes_on_draining_without_a_write(rig: Rig) -> None:
    key, leaving = rig.make.key("10.96.0.10"), rig.make.real("10.244.1.3")
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2", "10.244.1.3"))
    rig.turn(full=True)
    rig.host.ipvs.set_connections(key, leaving, Connections(active=1, inactive=0))
    rig.put(rig.make.slice("10.244.1.2"))
    rig.turn()
    rig.restart()
    outcome = rig.turn(full=True)
    assert rig.host.writes == 0
    assert outcome.wake_after_s is not None
    rig.now_s += 30.0
    rig.turn()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}


def test_a_returning_endpoint_is_raised_again(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2", "10.244.1.3"))
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.1.2"))
    rig.turn()
    rig.host.ipvs.operations.clear()
    rig.put(rig.make.slice("10.244.1.2", "10.244.1.3"))
    assert rig.turn().wake_after_s is None
    assert [each.verb for each in rig.host.ipvs.operations] == [Verb.SET_REAL_SERVER]


def test_a_readiness_blip_pauses_without_a_deadline(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2", "10.244.1.3"))
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.1.2", rig.make.endpoint("10.244.1.3", rig.make.NOT_READY)))
    assert rig.turn().wake_after_s is None
    rig.now_s += 3600.0
    rig.turn(full=True)
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1, "10.244.1.3": 0}}
    rig.put(rig.make.slice("10.244.1.2"))
    assert rig.turn().wake_after_s == 1.0


def test_udp_endpoints_go_at_once(rig: Rig) -> None:
    ports = (EndpointPort(port=53, protocol="UDP"),)
    rig.put(
        rig.make.service(ports=(ServicePort(port=53, protocol="UDP"),)),
        rig.make.slice("10.244.1.2", "10.244.1.3", ports=ports),
    )
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.1.2", ports=ports))
    rig.turn()
    assert rig.table() == {"UDP 10.96.0.10:53": {"10.244.1.2": 1}}


def test_timeouts_are_set_only_if_asked_for(make: Any, host: Any) -> None:
    Rig(make, host)
    assert host.ipvs.read_timeouts() == (900, 120, 300)
    Rig(make, host, ProxyOptions(tcp_timeout_s=600))
    assert host.ipvs.read_timeouts() == (600, 120, 300)


def test_open_after_a_crash_trusts_nothing(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    rig.host.ipvs.drop(rig.make.key("10.96.0.10"))
    rig.proxy.close()
    rig.proxy.open()
    rig.turn()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.2": 1}}


def test_a_refused_endpoint_keeps_neither_the_address_nor_the_others_away(rig: Rig) -> None:
    bad = rig.make.real("10.244.6.6")
    rig.host.ipvs.inject(errno.EINVAL, lambda operation: operation.real_server == bad)
    rig.put(rig.make.service(), rig.make.slice("10.244.6.6", "10.244.6.7"))
    assert rig.turn(full=True).failed == {"default/web"}
    assert rig.vips() == {"10.96.0.10"}
    rig.put(rig.make.slice("10.244.6.6", "10.244.6.8"))
    assert rig.turn().failed == {"default/web"}
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.6.7": 0, "10.244.6.8": 1}}
    rig.now_s += 1.0
    rig.turn()
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.6.8": 1}}


def test_a_repaired_service_recovers_without_waiting_for_the_retry(rig: Rig) -> None:
    bad = rig.make.real("10.244.6.6")
    rig.host.ipvs.inject(errno.EINVAL, lambda operation: operation.real_server == bad)
    rig.put(rig.make.service(), rig.make.slice("10.244.6.6", "10.244.6.7"))
    rig.turn(full=True)
    rig.put(rig.make.slice("10.244.6.7", "10.244.6.8"))
    outcome = rig.turn()
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.6.7": 1, "10.244.6.8": 1}}


def test_one_service_refused_leaves_a_shared_address_to_the_others(rig: Rig) -> None:
    bad = rig.make.key("203.0.113.1", 81)
    rig.host.ipvs.inject(errno.ENOMEM, lambda operation: operation.key == bad)
    rig.put(
        rig.make.service("a", ("10.96.0.1",), 80, external_ips=("203.0.113.1",)),
        rig.make.service("b", ("10.96.0.2",), 81, external_ips=("203.0.113.1",)),
    )
    assert rig.turn(full=True).failed == {"default/b"}
    assert rig.vips() == {"10.96.0.1", "10.96.0.2", "203.0.113.1"}


def test_an_address_is_put_once_one_of_its_virtual_servers_stands(rig: Rig) -> None:
    rig.host.ipvs.inject(errno.ENOMEM, lambda operation: operation.config is not None)
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    assert rig.vips() == set()
    rig.host.ipvs.heal()
    rig.put(rig.make.slice("10.244.1.3"))
    assert rig.turn().failed == frozenset()
    assert rig.vips() == {"10.96.0.10"}
    assert rig.table() == {"TCP 10.96.0.10:80": {"10.244.1.3": 1}}


def test_foreign_changes_that_an_incremental_turn_meets_are_repaired_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.put(rig.make.service("b", ("10.96.0.2",)), rig.make.slice("10.244.2.2", service="b"))
    rig.turn(full=True)
    rig.host.ipvs.drop(rig.make.key("10.96.0.10"))
    state = VirtualServerState(
        VirtualServer(),
        {rig.make.real(f"10.244.2.{number}"): RealServer(weight=9) for number in (2, 3)},
    )
    rig.host.ipvs.put(rig.make.key("10.96.0.2"), state)
    rig.put(
        rig.make.slice("10.244.1.2", "10.244.1.3"),
        rig.make.slice("10.244.2.2", "10.244.2.3", service="b"),
    )
    assert rig.turn().failed == {"default/web", "default/b"}
    caplog.clear()
    assert rig.turn(full=True).failed == frozenset()
    assert rig.table() == {
        "TCP 10.96.0.10:80": {"10.244.1.2": 1, "10.244.1.3": 1},
        "TCP 10.96.0.2:80": {"10.244.2.2": 1, "10.244.2.3": 1},
    }
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "service=default/web what='add virtual server TCP 10.96.0.10:80" in told
    assert "what='set real server TCP 10.96.0.2:80 -> 10.244.2.2:8080 weight 1'" in told


def test_what_was_in_flight_when_replies_were_lost_is_no_repair(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put(rig.make.service(), rig.make.service("b", ("10.96.0.2",)))
    rig.put(rig.make.service("c", ("10.96.0.3",)))
    rig.turn(full=True)
    rig.cache.delete(Service, "default/b")
    rig.put(rig.make.slice("10.244.1.2"))
    rig.host.ipvs.break_next(StateUnknownError("replies were lost", errno.ENOBUFS))
    rig.turn()
    rig.host.ipvs.drop(rig.make.key("10.96.0.3"))
    caplog.clear()
    assert rig.turn(full=True).failed == frozenset()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    what = "service=default/c what='add virtual server TCP 10.96.0.3:80 scheduler rr'"
    assert told == [f"repaired what others had changed {what}"]


@pytest.mark.parametrize("what", ["Node", "address"])
def test_a_start_without_this_nodes_node_removes_nothing(rig: Rig, what: str) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    table = rig.table()
    rules = list(rig.host.iptables.chains("inet", "nat")["KUBE-ROUTER-MASQ"])
    assert len(rules) == 2
    if what == "Node":
        rig.cache.delete(Node, "node1")
    else:
        rig.put(rig.make.node(addresses=()))
    rig.restart()
    rig.turn(full=True)
    rig.turn(full=True)
    assert rig.table() == table
    assert rig.host.iptables.chains("inet", "nat")["KUBE-ROUTER-MASQ"] == rules
    rig.cache.delete(Service, "default/web")
    rig.turn()
    assert set(rig.table()) == {"TCP 192.168.1.1:30080"}
    rig.put(rig.make.node())
    rig.turn()
    assert rig.table() == {}


def test_a_node_without_addresses_for_a_moment_changes_nothing(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    before = rig.host.writes
    rig.put(rig.make.node(addresses=()))
    assert [problem.field for problem in rig.turn().problems] == ["status.addresses"]
    assert rig.host.writes == before


def test_a_start_with_a_service_that_cannot_be_read_removes_nothing(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.service("b", ("10.96.0.2",)))
    rig.turn(full=True)
    rig.cache.delete(Service, "default/b")
    problem = Problem("Service default/b", "spec.ports[0].port", "cannot be decoded")
    rig.cache.report(Service, "default/b", problem)
    rig.restart()
    rig.turn(full=True)
    assert rig.vips() == {"10.96.0.10", "10.96.0.2"}
    assert set(rig.table()) == {"TCP 10.96.0.10:80", "TCP 10.96.0.2:80"}
    # A stray from after the start is none of what that Service had.
    rig.host.ipvs.put(rig.make.key("10.96.9.9"), VirtualServerState(VirtualServer(), {}))
    rig.turn(full=True)
    assert set(rig.table()) == {"TCP 10.96.0.10:80", "TCP 10.96.0.2:80"}
    rig.cache.delete(Service, "default/b")
    rig.turn(full=True)
    assert set(rig.table()) == {"TCP 10.96.0.10:80"}
    assert rig.vips() == {"10.96.0.10"}


def test_an_annotation_of_the_node_is_no_work(rig: Rig) -> None:
    rig.turn(full=True)
    node = rig.make.node()
    beat = structs.replace(node.metadata, annotations={"example.org/heartbeat": "1"})
    rig.put(structs.replace(node, metadata=beat))
    assert rig.dirty == set()
    rig.put(rig.make.node(addresses=("192.168.1.9",)))
    assert rig.dirty == {OWN_NODE, CLUSTER_NODES}


def test_a_host_that_fails_to_close_can_be_opened_again(rig: Rig) -> None:
    def fail() -> None:
        raise OSError("no")

    rig.host.ipvs.close = fail
    with pytest.raises(OSError, match="no"):
        rig.proxy.close()
    rig.proxy.open()
    assert rig.turn(full=True).failed == frozenset()


def test_a_changed_node_looks_at_its_addresses_again(rig: Rig) -> None:
    rig.put(rig.make.service(external_ips=("203.0.113.1",)))
    rig.turn(full=True)
    floating = NodeAddress(2, bytes([203, 0, 113, 1]), 32, "eth0")
    rig.host.links.addresses.append(floating)
    rig.put(rig.make.node(addresses=("192.168.1.1", "203.0.113.1")))
    rig.turn()
    assert rig.vips() == {"10.96.0.10"}
    rig.host.links.addresses.remove(floating)
    rig.put(rig.make.node())
    rig.turn()
    assert rig.vips() == {"10.96.0.10", "203.0.113.1"}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_after_any_refusals_what_is_taken_to_stand_does(make: Any, data: st.DataObject) -> None:
    host = make.Host()
    rig = Rig(make, host)
    pods = st.lists(st.sampled_from([f"10.244.1.{n}" for n in range(2, 7)]), unique=True)
    for _ in range(data.draw(st.integers(1, 6))):
        for number in data.draw(st.sets(st.integers(1, 3))):
            scheduler = data.draw(st.sampled_from(["rr", "lc"]))
            rig.put(
                make.service(
                    f"s{number}",
                    (f"10.96.0.{number}",),
                    annotations={"kube-router.io/service.scheduler": scheduler},
                ),
                make.slice(*data.draw(pods), service=f"s{number}"),
            )
        refused = data.draw(st.sets(st.integers(0, 60)))
        code = data.draw(st.sampled_from([errno.ENOMEM, errno.EINVAL, errno.EEXIST]))
        count = iter(range(10_000))
        host.ipvs.heal()
        host.ipvs.inject(code, lambda _, count=count, refused=refused: next(count) in refused)
        rig.turn(full=data.draw(st.booleans()))
        applied = rig.proxy._applied
        taken = {k: v for k, v in applied.servers.items() if k not in applied.unknown}
        stands = {k: v for k, v in host.ipvs.read().items() if k not in applied.unknown}
        assert taken == stands
        rig.now_s += data.draw(st.sampled_from([0.0, 2.0]))
    host.ipvs.heal()
    assert rig.turn(full=True).failed == frozenset()
    assert rig.turn().failed == frozenset()
