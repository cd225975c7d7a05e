"""Packets become records: who the ends are, what was meant, which policies isolate."""

from typing import Any

import pytest
from msgspec import convert, structs

from kube_router_py.cluster.objects import EndpointSlice, NetworkPolicy, Pod, Service
from kube_router_py.commands.drops import cells
from kube_router_py.drops import naming
from kube_router_py.drops.naming import Names
from kube_router_py.drops.record import AUDITED, REFUSED, DropRecord, End, Prefix, read_prefix
from kube_router_py.firewall import chains, frame
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.settings import FirewallOptions, NodeFacts

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
CLIENT = End("10.244.2.3", 40000, "default/client", "node2")
DB = End("10.244.2.2", 5432, "shop/db", "node2", ("shop/db",))


# --- prefixes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KUBE-POD-FW-A ingress policy ", Prefix(INGRESS, REFUSED, "policy", "KUBE-POD-FW-A")),
        ("KUBE-POD-FW-A egress audit ", Prefix(EGRESS, AUDITED, "policy", "KUBE-POD-FW-A")),
        ("ingress invalid ", Prefix(INGRESS, REFUSED, "invalid")),
        ("egress audit-invalid ", Prefix(EGRESS, AUDITED, "invalid")),
        ("egress default-deny", Prefix(EGRESS, REFUSED, "default-deny")),
        ("egress dsr ", Prefix(EGRESS, REFUSED, "dsr")),
    ],
)
def test_prefixes(text: str, expected: Prefix) -> None:
    assert read_prefix(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "DROP by policy x/p ", "ingress", "ingress other", "sideways policy"),
        *("KUBE-POD-FW-A", "KUBE-POD-FW-A ingress", "ingress policy more", "ingress audit-other"),
        "ingress auditor",
    ],
)
def test_prefixes_of_others(text: str) -> None:
    assert read_prefix(text) is None


def test_every_prefix_of_the_firewall_is_understood() -> None:
    """As its rules are today, whoever writes them."""
    options = FirewallOptions(families=("inet",), default_deny=True)
    node = NodeFacts(pod_networks={"inet": ("10.244.2.0/24",)})
    rules = [rule for each in frame.frame_chains("inet", node, options).values() for rule in each]
    for direction in Direction:
        rules += frame.direction_rules(direction, "inet", ())
        for is_audited in (False, True):
            rules += chains.pod_rules(
                "x/p", direction, "inet", ["10.244.2.2"], ["x/a"], is_audited=is_audited
            )
    prefixes = {
        each.split('"')[1]
        for rule in rules
        for each in [rule.split("--nflog-prefix ")[-1]]
        if "NFLOG" in rule
    }
    found = [read_prefix(each) for each in prefixes]
    assert None not in found
    assert {(each.verdict, each.cause) for each in found if each} == {
        *((REFUSED, "policy"), (REFUSED, "invalid"), (REFUSED, "default-deny"), (REFUSED, "dsr")),
        *((AUDITED, "policy"), (AUDITED, "invalid")),
    }
    assert {each.chain != "" for each in found if each and each.cause == "policy"} == {True}


# --- records -------------------------------------------------------------------------------------


def test_a_record_of_ingress(world: Any, packet: Any) -> None:
    found = world.names.record(packet())
    assert found == DropRecord(
        time="2023-11-14T22:13:20.500Z",
        node="node2",
        direction=INGRESS,
        verdict=REFUSED,
        cause="policy",
        reason="no policy that isolates the pod allows it",
        protocol="tcp",
        source=CLIENT,
        destination=DB,
        pod="shop/db",
        policies=("shop/all", "shop/only-web"),
        chain=found.chain,
    )
    assert found.chain.startswith("KUBE-POD-FW-")
    assert found.port_text == "5432/TCP"


def test_a_record_of_egress(world: Any, packet: Any) -> None:
    found = world.names.record(packet("default/client", "egress", destination="203.0.113.9"))
    assert (found.source, found.destination) == (CLIENT, End("203.0.113.9", 5432))
    assert (found.pod, found.policies) == ("default/client", ("default/way-out",))


def test_ipv6(world: Any, packet: Any) -> None:
    ends = {"source": "fd10:244:0:2::3", "destination": "fd10:244:0:2::2", "family": 6}
    found = world.names.record(packet(**ends))
    assert (found.source.pod, found.destination.pod) == ("default/client", "shop/db")


def test_packets_of_others_are_no_records(world: Any, packet: Any) -> None:
    assert world.names.record(packet(prefix="DROP by policy x/p ")) is None


def test_an_audited_packet(world: Any, packet: Any) -> None:
    found = world.names.record(packet(says="audit"))
    assert (found.verdict, found.cause) == (AUDITED, "policy")


def test_what_is_invalid_is_told_by_address(world: Any, packet: Any) -> None:
    found = world.names.record(packet("", "ingress", "invalid"))
    assert (found.pod, found.cause, found.chain) == ("shop/db", "invalid", "")
    assert "conntrack" in found.reason
    assert found.policies == ("shop/all", "shop/only-web")


def test_direct_server_return_is_told_as_what_it_is(world: Any, packet: Any) -> None:
    """The packet is for the Service's address: nobody has chosen an endpoint yet."""
    found = world.names.record(
        packet("", "egress", "dsr", destination="203.0.113.10", destination_port=80)
    )
    assert (found.pod, found.policies) == ("default/client", ("default/way-out",))
    assert found.reason == "egress policies cannot follow direct server return"
    assert [*cells(found)][-1] == "direct server return (default/way-out)"


def test_a_pod_that_is_not_known_yet(world: Any, packet: Any) -> None:
    found = world.names.record(packet("", "ingress", "default-deny", destination="10.244.2.9"))
    assert (found.pod, found.policies) == ("", ())
    assert found.destination == End("10.244.2.9", 5432, "", "node2", (), is_in_pod_range=True)


def test_nodes(world: Any, packet: Any) -> None:
    found = world.names.record(packet(source="10.10.0.11"))
    assert found.source == End("10.10.0.11", 40000, "", "node1")
    for address in ("10.244.1.1", "10.244.1.77", "fd10:244:0:1::77"):  # its bridge's, a pod's once
        found = world.names.record(packet(source=address))
        assert found.source == End(address, 40000, "", "node1", (), is_in_pod_range=True)
    for address in ("10.244.3.1", "fd10:244:0:2::77", "203.0.113.9"):
        assert world.names.record(packet(source=address)).source == End(address, 40000)


def test_a_packet_without_an_address_is_nobodys(world: Any, packet: Any) -> None:
    """Though every Node has the name of its host among its addresses."""
    found = world.names.record(packet("", "ingress", "invalid", source="", destination=""))
    assert (found.source, found.destination) == (End("", 40000), End("", 5432))


def test_a_finished_pod_has_no_address_any_more(world: Any, packet: Any) -> None:
    world.cache.delete(Pod, "default/client")
    assert world.names.record(packet()).source.pod == ""


def test_of_two_pods_with_one_address_the_chain_says_which(world: Any, packet: Any) -> None:
    pod = world.cache.get(Pod, "shop/db")
    twin = structs.replace(pod, metadata=structs.replace(pod.metadata, name="a-twin"))
    world.cache.put(Pod, twin)
    assert world.names.record(packet()).destination.pod == "shop/db"
    assert world.names.record(packet("shop/a-twin")).destination.pod == "shop/a-twin"
    assert world.names.record(packet("", "ingress", "invalid")).pod == "shop/a-twin"


def test_a_pod_that_is_gone_keeps_its_name_for_a_moment(world: Any, packet: Any) -> None:
    world.names.record(packet())
    world.cache.delete(Pod, "shop/db")
    found = world.names.record(packet())
    assert (found.pod, found.destination.pod, found.policies) == ("shop/db", "shop/db", ())
    assert not found.destination.is_in_pod_range
    world.now_s = 30.0  # its chain may stand that long
    assert world.names.record(packet()).pod == "shop/db"


def test_many_pods_that_are_gone_are_not_all_remembered(
    world: Any, packet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "_GONE_MOST", 2)  # both directions of one
    for key in ("default/client", "shop/db"):
        world.names.record(packet())
        world.cache.delete(Pod, key)
        world.now_s += 1.0
    world.names.record(packet())
    assert world.names.record(packet()).pod == "shop/db"
    assert world.names.record(packet("default/client", "egress")).pod == ""


def test_who_has_the_address_of_a_pod_that_is_gone_is_not_blamed(world: Any, packet: Any) -> None:
    """Its chain tells whose packet it was."""
    pod = world.cache.get(Pod, "shop/db")
    heir = structs.replace(pod, metadata=structs.replace(pod.metadata, name="heir"))
    world.cache.delete(Pod, "shop/db")
    world.cache.put(Pod, heir)
    found = world.names.record(packet("shop/db"))
    assert (found.pod, found.destination.pod, found.policies) == ("", "", ())
    assert found.destination.node == "node2"


def test_a_pod_that_came_just_now_is_known_by_its_chain(world: Any, packet: Any) -> None:
    world.names.record(packet())
    pod = world.cache.get(Pod, "shop/db")
    twin = structs.replace(pod, metadata=structs.replace(pod.metadata, name="twin"))
    world.cache.put(Pod, twin)
    found = world.names.record(packet("shop/twin"))
    assert (found.pod, found.destination.pod) == ("shop/twin", "shop/twin")


# --- Services ------------------------------------------------------------------------------------


def test_what_the_client_meant(world: Any, packet: Any) -> None:
    found = world.names.record(packet(meant=("10.96.0.10", 3306)))
    assert found.meant == End("10.96.0.10", 3306, "", "", ("shop/db",))
    assert found.destination == DB
    # A port that this Service does not have.
    assert world.names.record(packet(meant=("10.96.0.10", 1))).meant == End("10.96.0.10", 1)


def test_a_node_port_that_was_meant(world: Any, packet: Any) -> None:
    found = world.names.record(packet(meant=("10.10.0.11", 30306)))
    assert found.meant == End("10.10.0.11", 30306, "", "node1", ("shop/db",))
    assert found.services == ("shop/db",)


def test_who_is_known_to_have_meant_no_service_is_not_said_to(world: Any, packet: Any) -> None:
    """As through a port of a host, though the pod has a Service."""
    found = world.names.record(packet(meant=("10.10.0.12", 8080)))
    assert found.destination.services == ("shop/db",)
    assert found.services == ()


def test_an_external_ip_does_not_speak_for_a_pod(world: Any, packet: Any) -> None:
    """Whoever may write Services can name any address in one."""
    spec = {"externalIPs": ["10.244.2.2"], "ports": [{"port": 5432}]}
    metadata = {"name": "evil", "namespace": "evil"}
    world.cache.put(Service, convert({"metadata": metadata, "spec": spec}, Service))
    found = world.names.record(packet())
    assert found.destination.services == ("shop/db",)
    assert not found.concerns("evil")


def test_who_meant_the_pod_itself_meant_nothing_else(world: Any, packet: Any) -> None:
    assert world.names.record(packet(meant=("10.244.2.2", 5432))).meant is None


def test_endpoints_are_told_by_address_port_and_protocol(world: Any, packet: Any) -> None:
    for changes in ({"destination_port": 80}, {"protocol": "udp"}, {"destination_port": None}):
        assert world.names.record(packet(**changes)).destination.services == ()


def test_without_endpoints_selectors_tell(world_without_endpoints: Any, packet: Any) -> None:
    names = world_without_endpoints.names
    assert names.record(packet()).destination.services == ("shop/db",)
    for changes in ({"destination_port": 80}, {"protocol": "udp"}):
        assert names.record(packet(**changes)).destination.services == ()
    assert names.record(packet(destination="203.0.113.9")).destination.services == ()


def test_an_address_of_a_service_itself(world: Any, packet: Any) -> None:
    found = world.names.record(packet("default/client", "egress", destination="10.96.0.10"))
    assert found.destination.services == ("shop/db",)


# --- how fresh -----------------------------------------------------------------------------------


def test_changes_are_seen_after_a_second(world: Any, packet: Any) -> None:
    assert len(world.names.record(packet()).policies) == 2
    world.cache.delete(NetworkPolicy, "shop/all")
    world.now_s = 0.99
    assert len(world.names.record(packet()).policies) == 2
    world.now_s = 1.0
    assert world.names.record(packet()).policies == ("shop/only-web",)


def test_a_policy_that_changes_is_read_again(world: Any, packet: Any) -> None:
    world.names.record(packet())
    spec = {"podSelector": {"matchLabels": {"app": "none"}}}
    changed = convert(
        {"metadata": {"name": "all", "namespace": "shop"}, "spec": spec}, NetworkPolicy
    )
    world.cache.put(NetworkPolicy, changed)
    world.now_s = 1.0
    assert world.names.record(packet()).policies == ("shop/only-web",)


def test_a_policy_that_is_gone_is_not_kept(world: Any, packet: Any) -> None:
    """Where somebody reads all the time, and policies come and go."""
    for number in range(20):
        policy = {"metadata": {"name": f"p{number}", "namespace": "shop"}, "spec": {}}
        world.cache.put(NetworkPolicy, convert(policy, NetworkPolicy))
        world.now_s += 1.0
        assert f"shop/p{number}" in world.names.record(packet()).policies
        world.cache.delete(NetworkPolicy, f"shop/p{number}")
    world.now_s += 1.0
    world.names.record(packet())
    assert set(world.names._compiled) == {"shop/all", "shop/only-web", "shop/others"}


def test_labels_that_change_are_seen_at_once(world: Any, packet: Any) -> None:
    assert len(world.names.record(packet()).policies) == 2
    pod = world.cache.get(Pod, "shop/db")
    other = structs.replace(pod, metadata=structs.replace(pod.metadata, labels={"app": "other"}))
    world.cache.put(Pod, other)
    assert world.names.record(packet()).policies == ("shop/all", "shop/others")


def test_nothing_is_kept_that_nobody_wants(world: Any, packet: Any) -> None:
    world.names.record(packet())
    world.cache.delete(NetworkPolicy, "shop/all")
    world.names.forget()
    assert world.names.record(packet()).policies == ("shop/only-web",)


def test_what_takes_long_is_done_rarely(world: Any, packet: Any) -> None:
    """A list that takes a second: at most a twentieth of the time goes into it."""

    class Slow:
        """The cache, but for the time that it takes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.cache, name)

        def list(self, kind: type) -> Any:
            if kind is Service:
                world.now_s += 1.0
            return world.cache.list(kind)

    names = Names(Slow(), "node2", lambda: world.now_s, lambda: 0.0)  # type: ignore[arg-type]
    names.record(packet())
    world.cache.delete(NetworkPolicy, "shop/all")
    world.now_s = 20.9
    assert len(names.record(packet()).policies) == 2
    world.now_s = 21.0
    assert len(names.record(packet()).policies) == 1


def test_the_time_is_the_kernels_where_it_can_be(world: Any, packet: Any) -> None:
    assert world.names.record(packet(timestamp=1_699_999_999.25)).time == "2023-11-14T22:13:19.250Z"
    for timestamp in (12.0, 1_700_000_001.0, 1_699_999_000.0):  # another clock's
        assert world.names.record(packet(timestamp=timestamp)).time == "2023-11-14T22:13:20.500Z"


# --- what a record says --------------------------------------------------------------------------


def test_which_namespaces_it_concerns(world: Any, packet: Any) -> None:
    found = world.names.record(packet(meant=("10.96.0.10", 3306)))
    assert found.concerns("shop")
    assert found.concerns("default")
    assert not found.concerns("kube-system")
    world.cache.delete(EndpointSlice, "shop/db-1")
    away = world.names.record(
        packet("default/client", "egress", destination="203.0.113.9", meant=("10.96.0.10", 3306))
    )
    assert away.concerns("shop")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"protocol": "icmp", "destination_port": None, "icmp": (3, 1)}, "ICMP type 3"),
        ({"protocol": "udp", "destination_port": None, "is_fragment": True}, "UDP fragment"),
        ({"protocol": "47", "destination_port": None}, "47"),
    ],
)
def test_what_has_no_port(world: Any, packet: Any, changes: dict[str, Any], text: str) -> None:
    assert world.names.record(packet(**changes)).port_text == text
