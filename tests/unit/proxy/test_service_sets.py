"""The sets of Services: what is in them, in which order it comes and goes, and what fails."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node, Pod, PodSpec, PodStatus, Service
from kube_router_py.errors import KernelError
from kube_router_py.loop import Outcome
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import KINDS, LOCAL_PODS, OWN_NODE
from kube_router_py.proxy.settings import ProxyOptions

OPTIONS = ProxyOptions(strict_external_ips=False)


class Rig:
    """A service proxy on fakes; the test is its loop. ``steps`` are the writes in their order."""

    def __init__(self, make: Any, host: Any, options: ProxyOptions = OPTIONS) -> None:
        self.make, self.host = make, host
        self.cache = Cache((*KINDS, Pod))
        self.dirty: set[Any] = set()
        self.put(make.node(), make.node("node2", ("192.168.1.2",), ("10.244.2.0/24",)))
        self.cache.replace(Pod, (), "1")
        self.proxy = ServiceProxy(self.cache, options, "node1", host.open)
        self.proxy.open()
        self.proxy.subscribe(self.cache, self)
        self.steps: list[str] = []

    def mark(self, keys: Iterable[Any]) -> None:
        self.dirty.update(keys)

    def put(self, *objects: Any) -> None:
        for each in objects:
            self.cache.put(type(each), each)

    def turn(self, *, full: bool = False) -> Outcome:
        dirty, self.dirty = frozenset(self.dirty), set()
        outcome = self.proxy.reconcile(dirty, full)
        self.dirty.update(outcome.failed)
        return outcome

    def entries(self, name: str) -> set[str]:
        found = self.host.ports.ipsets.read(f"kube-router-{name}")
        assert found is not None, f"there is no set {name}"
        return set(found)

    def watch(self) -> None:
        """Note writes from now on."""
        ports = self.host.ports
        apply, change, vips = ports.ipvs.apply, ports.ipsets.change, ports.links.apply_vips

        def noted_apply(operations: Any) -> Any:
            self.steps += (each.verb.name for each in operations)
            return apply(operations)

        def noted_change(spec: Any, add: Any, remove: Any) -> int:
            name = spec.name.removeprefix("kube-router-")
            self.steps += [f"+{name}"] * bool(add) + [f"-{name}"] * bool(remove)
            return int(change(spec, add, remove))

        def noted_vips(put: Any, remove: Any) -> Any:
            self.steps += ["+vip"] * bool(put) + ["-vip"] * bool(remove)
            return vips(put, remove)

        ports.ipvs.apply, ports.ipsets.change, ports.links.apply_vips = (
            *(noted_apply, noted_change, noted_vips),
        )


@pytest.fixture
def rig(make: Any, host: Any) -> Iterator[Rig]:
    found = Rig(make, host)
    yield found
    found.proxy.close()


def test_what_is_served_is_in_the_sets(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2"))
    assert rig.turn(full=True).problems == ()
    assert rig.entries("svip") == {"10.96.0.10"}
    assert rig.entries("svip-prt") == {"10.96.0.10,tcp:80", "192.168.1.1,tcp:30080"}
    assert rig.entries("local-ips") >= {"192.168.1.1"}
    assert rig.entries("cluster") == {
        *("192.168.1.1", "192.168.1.2", "10.244.1.0/24", "10.244.2.0/24"),
    }
    for name in ("drop", "no-local", "limited", "allowed", "hairpin"):
        assert rig.entries(name) == set()


def test_a_service_comes_and_goes_in_the_order_of_safety(rig: Rig) -> None:
    rig.turn(full=True)
    rig.watch()
    service = rig.make.service(
        lb_ips=("192.0.2.10",), load_balancer_source_ranges=("203.0.113.0/24",)
    )
    rig.put(service, rig.make.slice("10.244.1.2"))
    rig.turn()
    assert list(dict.fromkeys(rig.steps)) == [
        *("+allowed", "+limited", "+svip-prt", "+svip"),
        *("ADD_VIRTUAL_SERVER", "ADD_REAL_SERVER", "+vip"),
    ]
    assert rig.entries("limited") == {"192.0.2.10,tcp:80"}
    assert rig.entries("allowed") == {"192.0.2.10,tcp:80,203.0.113.0/24"}
    rig.steps.clear()
    rig.cache.delete(Service, "default/web")
    rig.turn()
    assert list(dict.fromkeys(rig.steps)) == [
        *("-vip", "DELETE_VIRTUAL_SERVER", "-svip", "-svip-prt", "-limited", "-allowed"),
    ]


def test_a_change_of_endpoints_changes_no_set(rig: Rig) -> None:
    rig.put(rig.make.service(node_port=30080), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    before = rig.host.ports.ipsets.writes
    rig.put(rig.make.slice("10.244.1.2", "10.244.1.3", "10.244.2.9"))
    rig.turn()
    rig.put(rig.make.slice("10.244.2.9"))
    rig.turn()
    assert rig.host.ports.ipsets.writes == before


def test_a_restart_writes_nothing(make: Any, host: Any) -> None:
    first = Rig(make, host)
    service = make.service(node_port=30080, annotations={"kube-router.io/service.hairpin": ""})
    first.put(service, make.slice("10.244.1.2"))
    first.turn(full=True)
    assert first.entries("hairpin") == {"10.244.1.2,tcp:8080,10.244.1.2"}
    first.proxy.close()
    second = Rig(make, host)
    second.put(service, make.slice("10.244.1.2"))
    assert second.turn(full=True).problems == ()
    assert second.proxy.ports is not None
    assert second.proxy.ports.writes == 0


def local(rig: Rig, *endpoints: str) -> tuple[Service, Any]:
    service = rig.make.service(node_port=30080, external_traffic_policy="Local")
    listed = [
        rig.make.endpoint(each, node="node1" if each.startswith("10.244.1.") else "node2")
        for each in endpoints
    ]
    return service, rig.make.slice(*listed)


def test_outsiders_are_kept_out_where_no_endpoint_is_local(rig: Rig) -> None:
    rig.put(*local(rig, "10.244.1.2", "10.244.2.2"))
    rig.turn(full=True)
    assert rig.entries("no-local") == set()
    rig.watch()
    rig.put(*local(rig, "10.244.2.2"))
    rig.turn()
    assert rig.entries("no-local") == {"192.168.1.1,tcp:30080"}
    assert rig.steps[0] == "+no-local"  # before they could get anywhere
    rig.steps.clear()
    rig.put(*local(rig, "10.244.1.3", "10.244.2.2"))
    rig.turn()
    assert rig.entries("no-local") == set()
    assert rig.steps[-1] == "-no-local"


def test_an_internal_policy_without_local_endpoints_drops(rig: Rig) -> None:
    service = rig.make.service(internal_traffic_policy="Local")
    remote = rig.make.slice(rig.make.endpoint("10.244.2.2", node="node2"))
    rig.put(service, remote)
    rig.turn(full=True)
    assert rig.entries("drop") == {"10.96.0.10,tcp:80"}


def test_two_services_share_a_hairpin_entry(rig: Rig) -> None:
    entry = "10.244.1.2,tcp:8080,10.244.1.2"
    annotations = {"kube-router.io/service.hairpin": ""}
    for name, address in (("a", "10.96.0.1"), ("b", "10.96.0.2")):
        rig.put(
            rig.make.service(name, (address,), annotations=annotations),
            rig.make.slice("10.244.1.2", service=name),
        )
    rig.turn(full=True)
    assert rig.entries("hairpin") == {entry}
    rig.cache.delete(Service, "default/a")
    rig.turn()
    assert rig.entries("hairpin") == {entry}
    rig.cache.delete(Service, "default/b")
    rig.turn()
    assert rig.entries("hairpin") == set()


@pytest.mark.parametrize(
    ("cidr", "entry"),
    [("203.0.113.7/32", "203.0.113.7"), ("203.0.113.0/24", "203.0.113.0/24")],
)
def test_ranges_of_one_address_outlast_every_look_at_the_kernel(
    rig: Rig, cidr: str, entry: str
) -> None:
    """The kernel prints them without a prefix length."""
    service = rig.make.service(lb_ips=("192.0.2.10",), load_balancer_source_ranges=(cidr,))
    rig.put(service, rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    assert rig.entries("limited") == {"192.0.2.10,tcp:80"}
    before = rig.host.ports.ipsets.writes
    for _ in range(3):
        rig.turn(full=True)
        assert rig.entries("allowed") == {f"192.0.2.10,tcp:80,{entry}"}
    assert rig.host.ports.ipsets.writes == before


def test_entries_of_every_kind_read_back_as_they_were_written(make: Any, host: Any) -> None:
    """Else a full turn would take them for too many, and remove them."""
    rig = Rig(make, host, structs.replace(OPTIONS, ipv6=True))
    service = make.service(
        "web",
        ("10.96.0.10", "fd00:10:96:0:0::10"),
        lb_ips=("192.0.2.10", "2001:db8:0::10"),
        ip_families=("IPv4", "IPv6"),
        load_balancer_source_ranges=("203.0.113.7/32", "2001:db8:7:0::1/128", "2001:db8::/32"),
        annotations={"kube-router.io/service.hairpin": ""},
        node_port=30080,
    )
    rig.put(service, make.slice("10.244.1.2"))
    rig.put(make.slice("fd00:10:244:1::2", name="web-2", family="IPv6"))
    rig.turn(full=True)
    found = host.ports.ipsets.read("inet6:kube-router-allowed")
    assert found == {f"2001:db8::10,tcp:80,{each}" for each in ("2001:db8:7::1", "2001:db8::/32")}
    before = host.ports.ipsets.writes
    rig.turn(full=True)
    assert host.ports.ipsets.writes == before


def test_entries_that_others_changed_are_repaired(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    spec, _ = rig.host.ipsets.sets["kube-router-svip-prt"]
    rig.host.ipsets.sets["kube-router-svip-prt"] = (spec, frozenset({"10.9.9.9,tcp:1"}))
    assert rig.turn(full=True).problems == ()
    assert rig.entries("svip-prt") == {"10.96.0.10,tcp:80"}


def test_a_set_that_others_destroyed_is_made_again(rig: Rig) -> None:
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    del rig.host.ipsets.sets["kube-router-svip-prt"]
    rig.put(rig.make.service("b", ("10.96.0.11",)), rig.make.slice("10.244.1.3", service="b"))
    rig.turn()
    rig.turn()
    assert rig.entries("svip-prt") == {"10.96.0.10,tcp:80", "10.96.0.11,tcp:80"}


def test_who_cannot_be_kept_out_finds_nothing_there(rig: Rig) -> None:
    """A guard that cannot be put: its virtual server waits, all others go on."""
    rig.turn(full=True)
    change, ensure = rig.host.ports.ipsets.change, rig.host.ports.ipsets.ensure

    def refuse(spec: Any, *rest: Any) -> Any:
        if spec.name == "kube-router-limited":
            raise KernelError("ipset kube-router-limited: no room")
        return (change if len(rest) > 1 else ensure)(spec, *rest)

    rig.host.ports.ipsets.change = rig.host.ports.ipsets.ensure = refuse
    limited = rig.make.service(
        lb_ips=("192.0.2.10",), load_balancer_source_ranges=("203.0.113.0/24",)
    )
    rig.put(limited, rig.make.slice("10.244.1.2"))
    rig.put(rig.make.service("b", ("10.96.0.11",)), rig.make.slice("10.244.1.3", service="b"))
    outcome = rig.turn()
    assert "default/web" in outcome.failed
    assert any("no room" in problem.reason for problem in outcome.problems)
    found = {str(key) for key in rig.host.ipvs.read()}
    assert "TCP 192.0.2.10:80" not in found
    assert {"TCP 10.96.0.10:80", "TCP 10.96.0.11:80"} <= found
    assert "192.0.2.10" not in {str(vip) for vip in rig.host.links.vips}
    rig.host.ports.ipsets.change, rig.host.ports.ipsets.ensure = change, ensure
    outcome = rig.turn()
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert "TCP 192.0.2.10:80" in {str(key) for key in rig.host.ipvs.read()}
    assert "192.0.2.10" in {str(vip) for vip in rig.host.links.vips}
    assert rig.entries("limited") == {"192.0.2.10,tcp:80"}


def test_without_permission_for_service_ports_nothing_is_accepted_or_rejected(
    make: Any, host: Any
) -> None:
    rig = Rig(make, host, structs.replace(OPTIONS, permit_service_ports=False))
    rig.put(make.service(), make.slice("10.244.1.2"))
    rig.turn(full=True)
    assert host.iptables.chains("inet", "filter")["INPUT"] == ["-j KUBE-ROUTER-GUARD"]


def test_the_pods_of_another_pod_network_are_followed(make: Any, host: Any) -> None:
    rig = Rig(make, host, structs.replace(OPTIONS, own_pod_network=False))

    def pod(name: str, address: str, *, node: str = "node1", **spec: Any) -> Pod:
        meta = structs.replace(make.service(name).metadata, namespace="default")
        return Pod(meta, PodSpec(node_name=node, **spec), PodStatus("Running", pod_ip=address))

    rig.put(pod("a", "172.30.0.1"), pod("host", "192.168.1.1", host_network=True))
    rig.put(pod("elsewhere", "172.30.9.9", node="node2"))
    rig.turn(full=True)
    assert rig.entries("local-cidrs") == {"172.30.0.1", "192.168.1.1"}
    rig.dirty.clear()
    rig.put(pod("b", "172.30.0.2"))
    assert rig.dirty == {LOCAL_PODS}
    rig.turn()
    assert rig.entries("local-cidrs") == {"172.30.0.1", "172.30.0.2", "192.168.1.1"}
    rig.put(
        structs.replace(pod("b", "172.30.0.2"), status=PodStatus("Failed", pod_ip="172.30.0.2"))
    )
    rig.turn()
    assert rig.entries("local-cidrs") == {"172.30.0.1", "192.168.1.1"}


def test_a_node_that_joins_is_no_outsider(rig: Rig) -> None:
    rig.turn(full=True)
    rig.put(rig.make.node("node3", ("192.168.1.3",), ("10.244.3.0/24",)))
    rig.turn()
    assert rig.entries("cluster") >= {"192.168.1.3", "10.244.3.0/24"}
    rig.cache.delete(Node, "node3")
    rig.turn()
    assert not rig.entries("cluster") & {"192.168.1.3", "10.244.3.0/24"}


def test_sets_and_rules_that_others_destroyed_together_stand_again(rig: Rig) -> None:
    """Without a full turn: rules that cannot stand for want of a set make the sets be looked at."""
    rig.put(rig.make.service(), rig.make.slice("10.244.1.2"))
    rig.turn(full=True)
    ensure = rig.host.ports.iptables.ensure

    def needs_its_sets(family: str, table: str, rules: Any) -> Any:
        if "kube-router-svip" not in rig.host.ipsets.sets:
            raise KernelError("Set kube-router-svip doesn't exist")
        return ensure(family, table, rules)

    rig.host.ports.iptables.ensure = needs_its_sets
    del rig.host.ipsets.sets["kube-router-svip"]
    rig.dirty.add(OWN_NODE)
    assert OWN_NODE in rig.turn().failed
    outcome = rig.turn()
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert rig.entries("svip") == {"10.96.0.10"}
