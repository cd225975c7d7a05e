"""A flow held against a kernel that the agent's own loops have programmed: nothing differs; what
somebody changes is named, and nothing else."""

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import structs

from kube_router_py import flow_answers
from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import (
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.errors import ApiError, ConfigurationError, KubeRouterError
from kube_router_py.firewall.controller import Firewall
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.flow_answers import FlowAnswers
from kube_router_py.kernel import ports
from kube_router_py.kernel.fake import FakeIpsets, FakeIptables, FakeIpvs, FakeLinks, FakeSysctls
from kube_router_py.kernel.fake_host import (
    LOOPBACK,
    FakeIpsetKernel,
    FakeIptablesKernel,
    FakeLinkKernel,
    connect,
)
from kube_router_py.kernel.fake_reading import FakeReading
from kube_router_py.kernel.ports_reading import Tables, Way
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.settings import proxy_options

KINDS = (Service, EndpointSlice, Pod, Namespace, NetworkPolicy, Node)
PATHS = {
    "Pod": "pods",
    "Namespace": "namespaces",
    "Node": "nodes",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "NetworkPolicy": "networkpolicies",
}
FLAGS = ("--run-router=false", "--enable-ipv6=false")
VIP = "10.96.0.1"
CLIENT = {"matchLabels": {"pod": "client"}}
NOBODY = "an agent with --run-firewall=false enforces none of this"
RULESET = """\
table inet guest {
\tchain all {
\t\ttype filter hook forward priority 0; policy accept;
\t\tip daddr 10.244.1.10 tcp dport 8080 counter packets 0 bytes 0 reject with icmp host-prohibited
\t\ttcp dport 81 drop
\t\tmeta mark 0x7 drop
\t}
}
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority 0; policy drop;
\t}
}
"""


class NoApi:
    """Of the API server nothing is to be had."""

    def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
        raise ApiError(f"{path}: nobody answers")


class FakeNode:
    """A node whose loops have had a full turn, and its agent's answers."""

    def __init__(self, world: Any, name: str = "node1", kinds: Any = KINDS, *flags: str) -> None:
        self.options = world.options(*FLAGS, *flags)
        self.cache, self.name = Cache(KINDS), name
        manifests = world.manifests()
        self.cache = Cache(kinds)
        for kind in kinds:
            self.cache.replace(kind, manifests.list(kind), "1")
        self.addresses = tuple(
            ports.NodeAddress(int(socket.AF_INET), ip.packed, 24, "eth0")
            for node in manifests.list(Node)
            if node.metadata.name == name
            for each in (node.status.addresses or () if node.status else ())
            if (ip := ipaddress.ip_address(each.address)).version == 4
        )
        self.links = FakeLinkKernel(addresses=[*LOOPBACK, *self.addresses])
        self.sets, self.rules = FakeIpsetKernel(), FakeIptablesKernel()
        connect(self.sets, self.rules)
        self.ipvs = FakeIpvs()
        self.reading = FakeReading(self.rules, self.sets)
        self.paused: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None
        self.answers = FlowAnswers(
            *(self.options, self.cache, NoApi(), name),  # type: ignore[arg-type]
            pools=AddressPools,
            open_kernel=self.read,
            read_addresses=lambda: (*LOOPBACK, *self.addresses),
            pause=self._pause,
        )
        self.sync()

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.on_pause()

    def _open(self) -> ports.HostPorts:
        sysctls = FakeSysctls()
        sysctls.values = dict.fromkeys(
            ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"), "1"
        )
        return ports.HostPorts(
            self.ipvs,
            FakeLinks(kernel=self.links),
            FakeIpsets(self.sets),
            FakeIptables(self.rules),
            sysctls,
        )

    def sync(self) -> None:
        """What a full turn of new loops makes of the kernel."""
        if set(KINDS) <= set(self.cache.kinds):
            firewall = Firewall(self.cache, firewall_options(self.options), self.name, self._open)
            firewall.open()
            firewall.reconcile(frozenset(), True)
        proxy = ServiceProxy(self.cache, proxy_options(self.options), self.name, self._open)
        proxy.open()
        proxy.reconcile(frozenset(), True)

    def read(self) -> FakeReading:
        self.reading.ipvs = self.ipvs.read()
        pod_network = ipaddress.ip_network(f"10.244.{self.name[-1]}.0/24")
        for pod in self.cache.list(Pod):
            for each in (pod.status.pod_ips or ()) if pod.status else ():
                ip = ipaddress.ip_address(each.ip)
                if ip in pod_network:
                    self.reading.ways[each.ip] = Way("unicast", "kube-bridge")
        own = (each.address for each in (*LOOPBACK, *self.addresses))
        for packed in (*own, *(vip.address for vip in self.links.vips)):
            self.reading.ways[str(ipaddress.ip_address(packed))] = Way("local", "lo")
        return self.reading

    def explain(
        self, source: str, target: str, port: int = 80, protocol: str = "TCP", **more: Any
    ) -> Any:
        question = {"source": source, "destination": target, "port": port, "protocol": protocol}
        return self.answers.explain(question | more)

    def wrong(self, *flow: Any, **more: Any) -> list[Any]:
        answer = self.explain(*flow, **more)
        assert not answer["error"], answer
        assert not answer["missing"], answer
        return [each for each in answer["kernel"]["checks"] if each["agrees"] is False]

    def chain(self, name: str, table: str = "filter") -> list[str]:
        return self.rules.chains("inet", table)[name]


@pytest.fixture
def busy(world: Any) -> Any:
    """A Service in front of three pods, and policies that let x/client reach x/a and x/b only."""
    world.served(
        type="NodePort", ports=[{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
    )
    world.policy(
        "x/in",
        podSelector={"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]},
        policyTypes=["Ingress"],
        ingress=[
            {"from": [{"podSelector": {"matchLabels": {"pod": "client"}}}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"]}}]},
        ],
    )
    world.policy(
        "x/out",
        podSelector=CLIENT,
        policyTypes=["Egress"],
        egress=[{"to": [{"podSelector": {"matchLabels": {"pod": "a"}}}]}],
    )
    return world


def everything(world: Any) -> Iterator[tuple[str, str, int, dict[str, str]]]:
    ends = (
        "x/client",
        "x/host",
        "192.168.1.2",
        "x/a",
        "x/b",
        "node/node1",
        "node/node2",
        "192.0.2.7",
        "10.1.2.3",
    )
    for source in ends:
        for target in ("10.244.1.10", "10.244.2.10", "10.244.3.10", "192.168.1.1", "192.0.2.9"):
            yield source, target, 8080, {"node": "node1"}
        yield source, VIP, 80, {"node": "node1"}
        yield source, "192.168.1.1", 30080, {"node": "node1"}
        yield source, "192.168.1.2", 30080, {"node": "node2"}


def test_what_the_loops_have_programmed_agrees(busy: Any) -> None:
    for name in ("node1", "node2", "node3"):
        node = FakeNode(busy, name)
        for source, target, port, more in everything(busy):
            assert node.wrong(source, target, port, **more) == [], (name, source, target, port)
        assert node.paused == []


@pytest.mark.parametrize("flag", ["--masquerade-all=true", "--netpol-default-deny=true"])
def test_flags_are_taken_account_of(busy: Any, flag: str) -> None:
    node = FakeNode(busy, "node1", KINDS, flag)
    for source, target, port, more in everything(busy):
        assert node.wrong(source, target, port, **more) == [], (source, target, port)


def test_a_family_that_is_not_enabled_has_no_rules(busy: Any) -> None:
    node = FakeNode(busy, "node1", KINDS, "--enable-ipv4=false", "--enable-ipv6")
    answer = node.explain("x/c", "10.244.1.10", 8080)
    assert answer["trace"]["outcome"] == "denied"
    assert answer["notes"] == ("an agent without --enable-ipv4 does not enforce policies for IPv4",)
    assert node.wrong("x/c", "10.244.1.10", 8080) == []
    assert node.wrong("x/client", "10.244.1.9", 8080) == []


def second_link(node: FakeNode, *texts: str) -> None:
    """Addresses that the Node does not list."""
    found = (
        ports.NodeAddress(int(socket.AF_INET), socket.inet_aton(each), 24, "eth1") for each in texts
    )
    node.addresses = (*node.addresses, *found)


@pytest.mark.parametrize("flags", [(), ("--netpol-allow-own-node",), ("--netpol-default-deny",)])
def test_addresses_of_the_node_that_its_node_does_not_list(
    busy: Any, flags: tuple[str, ...]
) -> None:
    node = FakeNode(busy, "node1", KINDS, *flags)
    second_link(node, "10.0.5.1", "10.244.1.1")
    is_exempt = "--netpol-allow-own-node" in flags
    for address in ("10.0.5.1", "10.244.1.1", "192.168.1.1"):
        for source, outcome in (("x/a", "allowed"), ("x/client", "denied")):
            answer = node.explain(source, address, 22)
            assert answer["trace"]["outcome"] == ("allowed" if is_exempt else outcome)
            assert node.wrong(source, address, 22) == [], (source, address)
    # As a source, too; who sends from it is not known.
    assert node.wrong("10.0.5.1", "x/a", 22) == []
    assert node.wrong("10.0.5.1", VIP, 80, node="node1") == []


def test_an_address_of_no_pod(busy: Any) -> None:
    """Refused by default, and so it is expected."""
    node = FakeNode(busy, "node1", KINDS, "--netpol-default-deny=true")
    node.reading.ways["10.244.1.77"] = Way("unicast", "kube-bridge")
    for source in ("x/client", "x/a", "x/b", "203.0.113.9", "node/node2"):
        answer = node.explain(source, "10.244.1.77", 22)
        assert answer["trace"]["outcome"] == "denied"
        assert node.wrong(source, "10.244.1.77", 22, node="node1") == [], source
    assert node.wrong("node/node1", "10.244.1.77", 22) == []
    for target, port in (("x/c", 22), ("203.0.113.9", 22), ("192.168.1.1", 22), (VIP, 80)):
        answer = node.explain("10.244.1.77", target, port, node="node1")
        assert answer["trace"]["outcome"] == "denied"
        assert node.wrong("10.244.1.77", target, port, node="node1") == [], target
    told = node.explain("x/a", "10.244.2.77", 22)["kernel"]["checks"]
    assert ("ingress of 10.244.2.77", None) in {(each["what"], each["agrees"]) for each in told}


def test_an_endpoint_on_the_clients_own_node(busy: Any) -> None:
    node = FakeNode(busy)
    second_link(node, "10.0.5.1")
    for address in ("192.168.1.1", "10.0.5.1"):
        listed = {"addresses": [address], "conditions": {"ready": True}}
        busy.service("x/api", "10.96.0.9")
        busy.endpoints("x/api", listed)
        for kind in (Service, EndpointSlice):
            node.cache.replace(kind, busy.manifests().list(kind), "2")
        node.sync()
        assert node.explain("x/client", "x/api", 80)["trace"]["outcome"] == "allowed"
        assert node.wrong("x/client", "x/api", 80) == []


def test_what_is_found_by_mark_is_looked_at(busy: Any) -> None:
    """Egress policies cannot follow direct server return, and the rule that refuses it stands."""
    vip = "198.51.100.1"
    busy.served(
        "x/direct",
        "10.96.0.2",
        type="LoadBalancer",
        ports=[{"name": "http", "port": 8080, "targetPort": 8080}],
        annotations={"kube-router.io/service.dsr": "tunnel"},
        ingress=[{"ip": vip}],
    )
    # None of its pods may be isolated for ingress.
    busy.policy("x/in", podSelector={"matchLabels": {"pod": "host"}}, policyTypes=["Ingress"])
    pool = "--loadbalancer-ip-range=198.51.100.0/24"
    node = FakeNode(busy, "node1", KINDS, pool)

    def told(source: str) -> Any:
        answer = node.explain(source, vip, 8080, node="node1")
        what = f"{vip}:8080/TCP, to the virtual server"
        (found,) = [
            each
            for each in answer["kernel"]["checks"]
            if each["what"].startswith("the agent's rules for ") and what in each["what"]
        ]
        return answer["trace"]["outcome"], found["agrees"], found["expected"]

    mark = node.explain("x/client", vip, 8080)["trace"]["service"]["server"]["fwmark"]
    rule = f"-d {vip}/32 -p tcp -m tcp --dport 8080 -j MARK --set-xmark {mark:#x}/0xffffffff"
    mangle = node.rules.chains("inet", "mangle")
    mangle["KUBE-ROUTER-DSR"] = [rule]
    mangle.setdefault("PREROUTING", []).append("-j KUBE-ROUTER-DSR")
    refused = "refuse: egress policies of pod x/client refuse it"
    assert told("x/client") == ("denied", True, refused)
    passes = "pass: nobody is kept from the Service"
    for source in ("x/a", "203.0.113.9", "node/node1", "192.168.1.1"):
        assert told(source) == ("allowed", True, passes), source
    rules = node.chain("KUBE-ROUTER-INPUT")
    rules[:] = [each for each in rules if "direct server return" not in each]
    assert told("x/client") == ("denied", False, refused)
    # Where no firewall runs the policy stands, and nothing refuses it.
    busy.policy("x/out", podSelector=CLIENT, policyTypes=["Egress"], egress=[])
    kinds = (Service, EndpointSlice, Pod, NetworkPolicy, Node)
    node = FakeNode(busy, "node1", kinds, pool, "--run-firewall=false")
    assert told("x/client") == ("denied", True, passes)
    # Without a backend nobody has asked what policies say.
    busy.endpoints("x/direct")
    node = FakeNode(busy, "node1", KINDS, pool)
    checks = node.explain("x/client", vip, 8080)["kernel"]["checks"]
    assert [
        each["agrees"] for each in checks if each["what"] == "the way to the virtual server"
    ] == [None]
    assert not [each for each in checks if "the agent's rules for " in each["what"]]


def whats(found: list[Any]) -> set[str]:
    return {each["what"] for each in found}


def test_a_foreign_rule_is_named_as_it_stands(busy: Any) -> None:
    node = FakeNode(busy)
    rule = "-d 10.244.1.0/24 -p tcp -m tcp --dport 8080 -j DROP"
    node.chain("FORWARD").insert(1, rule)
    (found,) = node.wrong("x/client", "10.244.1.10", 8080)
    assert found["found"] == f"takes it: rule 2 of FORWARD in table filter: {rule}"
    assert "not the agent's" in found["remedy"]
    assert node.paused  # it might have been a change on its way
    assert node.wrong("x/client", "10.244.1.10", 8081) == []
    node.chain("FORWARD").insert(0, node.chain("FORWARD").pop(1))
    told = {each["found"] for each in node.wrong("x/client", "10.244.1.10", 8081)}
    assert told == {f"a rule of others comes before it: {rule}"}
    # One fault is told once: the rule that comes first takes the packet.
    (found,) = node.wrong("x/client", "10.244.1.10", 8080)
    assert found["found"] == f"takes it: rule 1 of FORWARD in table filter: {rule}"
    node.chain("FORWARD").insert(1, "-j LOG")
    told = {each["found"] for each in node.wrong("x/client", "10.244.1.10", 8080)}
    assert f"2 rules of others come before it: {rule}" in told


def test_what_accepts_before_policies_are_asked_is_named(busy: Any) -> None:
    node = FakeNode(busy)
    assert not node.explain("x/c", "10.244.1.10", 8080)["trace"]["path"]["allowed"]
    rule = "-d 10.244.1.10/32 -j ACCEPT"
    node.chain("FORWARD").insert(0, rule)
    (found,) = node.wrong("x/c", "10.244.1.10", 8080)
    assert found["what"].startswith("the agent's rules for ")
    place = f"rule 1 of FORWARD in table filter: {rule}"
    assert found["found"] == f"accepted before they are asked, by {place}"


def test_a_rule_that_may_match_is_told_as_one(busy: Any) -> None:
    node = FakeNode(busy)
    node.chain("FORWARD").insert(1, "-m limit --limit 1/sec -j DROP")
    answer = node.explain("x/client", "10.244.1.10", 8080)
    (found,) = [
        each for each in answer["kernel"]["checks"] if each["found"].startswith("may take it")
    ]
    assert found["agrees"] is None
    assert node.wrong("x/client", "10.244.1.10", 8080) == []


def test_rules_behind_an_accept_are_nobodys_business(busy: Any) -> None:
    node = FakeNode(busy)
    node.chain("FORWARD").append("-j DROP")
    node.reading.policies["filter", "FORWARD"] = "DROP"
    assert node.wrong("x/client", "10.244.1.10", 8080) == []


def test_the_policy_of_a_chain_counts(busy: Any) -> None:
    node = FakeNode(busy)
    node.reading.policies["filter", "OUTPUT"] = "DROP"
    (found,) = node.wrong("node/node1", "10.244.1.10", 8080)
    assert "the policy of OUTPUT is DROP" in found["found"]


def test_rules_of_the_other_variant_and_of_nft_count(busy: Any) -> None:
    node = FakeNode(busy)
    node.reading.others = {
        "inet": Tables(
            {"mangle": {"FORWARD": ["-i kube-bridge -j DROP"], "KUBE-ROUTER-GUARD-OUT": []}}
        )
    }
    node.reading.ruleset = RULESET
    answer = node.explain("x/client", "10.244.1.10", 8080)
    told = [
        (each["what"].rpartition(", ")[2], each["found"], each["agrees"])
        for each in answer["kernel"]["checks"]
        if each["what"].startswith("rules of others")
    ]
    assert told == [
        (
            "iptables-legacy",
            "chains of the agent in the variant it does not use, table mangle: "
            "KUBE-ROUTER-GUARD-OUT",
            False,
        ),
        (
            "iptables-legacy FORWARD",
            "takes it: rule 1 of FORWARD in table mangle: -i kube-bridge -j DROP",
            False,
        ),
        (
            "nft forward",
            "takes it: rule 1 of chain all in nft table inet guest: ip daddr 10.244.1.10 tcp dport "
            "8080 counter packets 0 bytes 0 reject with icmp host-prohibited",
            False,
        ),
        (
            "nft forward",
            "may take it: rule 3 of chain all in nft table inet guest: meta mark 0x7 drop",
            None,
        ),
    ]


def test_what_is_missing_of_the_firewall_is_named(busy: Any) -> None:
    flow = ("x/client", "10.244.1.10", 8080)
    node = FakeNode(busy)
    name = next(
        name
        for name, (_, entries) in node.sets.sets.items()
        if name.startswith("KUBE-SRC-") and entries == {"10.244.1.9"}
    )
    spec, _ = node.sets.sets[name]
    node.sets.sets[name] = (spec, frozenset())
    found = node.wrong(*flow)
    assert whats(found) == {
        "peers or ports of a policy of pod x/a",
        "the agent's rules for 10.244.1.9 -> 10.244.1.10:8080/TCP",
    }
    assert f"it is not in {name}" in {each["found"] for each in found}
    node.sync()
    assert node.wrong(*flow) == []

    del node.sets.sets[name]
    assert f"there is no set {name}" in {each["found"] for each in node.wrong(*flow)}
    node.sets.sets[name] = (spec, frozenset(("10.244.1.9",)))

    chain = next(
        each["expected"].split()[-1]
        for each in node.explain(*flow)["kernel"]["checks"]
        if each["what"] == "address of pod x/a leads to its ingress chain"
    )
    rules = node.chain(chain)
    lost = rules.pop(next(n for n, each in enumerate(rules) if "KUBE-NWPLCY-" in each))
    found = node.wrong(*flow)
    assert f"missing in {chain}: {lost}" in {each["found"] for each in found}
    rules.insert(0, "-j ACCEPT")
    assert any("not the agent's: -j ACCEPT" in each["found"] for each in node.wrong(*flow))

    node.sync()
    node.chain("KUBE-POD-IN-A").clear()
    assert whats(node.wrong(*flow)) == {"address of pod x/a leads to its ingress chain"}

    node.sync()
    node.chain("FORWARD").remove("-j KUBE-ROUTER-FORWARD")
    assert "there is no such rule" in {each["found"] for each in node.wrong(*flow)}
    # A flow that policies refuse passes now: that is told, too.
    told = node.wrong("x/b", "10.244.1.10", 8080)
    assert any(each["what"].startswith("the agent's rules") for each in told)


def test_what_is_missing_of_the_service_proxy_is_named(busy: Any) -> None:
    flow = ("192.0.2.7", VIP, 80)
    more = {"node": "node1"}
    node = FakeNode(busy)
    assert node.wrong(*flow, **more) == []
    key = next(key for key in node.ipvs.read() if key.address == socket.inet_aton(VIP))
    reals = sorted(node.ipvs.read()[key].real_servers)
    node.ipvs.drop(key, reals[0])
    (found,) = node.wrong(*flow, **more)
    assert found["what"] == "virtual server of Service x/web"
    assert f"missing: {reals[0]}" in found["found"]
    node.ipvs.drop(key)
    assert "IPVS has no" in node.wrong(*flow, **more)[0]["found"]
    node.sync()

    # One that drains, and is listed no more, is as it should be.
    state = node.ipvs.read()[key]
    old = structs.replace(reals[0], address=socket.inet_aton("10.244.1.77"))
    paused = structs.replace(state.real_servers[reals[0]], weight=0)
    node.ipvs.put(key, structs.replace(state, real_servers={**state.real_servers, old: paused}))
    assert node.wrong(*flow, **more) == []
    node.ipvs.put(key, state)

    del node.links.vips[next(iter(node.links.vips))]
    node.reading.ways.clear()
    assert "address of the Service" in whats(node.wrong(*flow, **more))
    node.sync()

    spec, entries = node.sets.sets["kube-router-svip-prt"]
    node.sets.sets["kube-router-svip-prt"] = (spec, entries - {f"{VIP},tcp:80"})
    assert whats(node.wrong(*flow, **more)) == {
        "the Service's address and port are served",
        f"the agent's rules for 192.0.2.7 -> {VIP}:80/TCP, to the virtual server",
    }
    node.sync()

    node.chain("KUBE-ROUTER-MASQ", "nat").clear()
    found = node.wrong("192.0.2.7", VIP, 80, **more)
    assert {each["what"].partition(" of ")[0] for each in found} == {"source address"}


def test_a_bridge_that_iptables_does_not_see_is_named(busy: Any) -> None:
    node = FakeNode(busy)
    name = "net/bridge/bridge-nf-call-iptables"
    node.reading.sysctls[name] = "0"
    (found,) = node.wrong("x/client", "10.244.1.10", 8080)
    assert found["found"] == f"{name} is 0"
    del node.reading.sysctls[name]
    (found,) = node.wrong("x/client", "10.244.1.10", 8080)
    assert found["remedy"] == "load the module br_netfilter"
    assert node.wrong("x/client", "10.244.2.10", 8080) == []  # it is routed


def test_what_cannot_be_read_is_told(busy: Any) -> None:
    node = FakeNode(busy)
    node.reading.broken = {"ipset", "nft", "ipvs"}
    answer = node.explain("x/client", VIP, 80)
    unknown = [each["found"] for each in answer["kernel"]["checks"] if each["agrees"] is None]
    for what in ("ipset", "nft", "ipvs"):
        assert any(f"cannot be read: {what}: broken by the test" in each for each in unknown), what
    assert node.reading.closed


def test_other_nodes_are_to_be_asked_themselves(busy: Any) -> None:
    node = FakeNode(busy, "node3")
    checks = node.explain("x/client", "10.244.2.10", 8080)["kernel"]["checks"]
    assert [(each["what"], each["found"], each["agrees"]) for each in checks] == [
        (
            "egress policies of pod x/client",
            "not compared here: runs on node1; ask there",
            None,
        ),
        ("ingress policies of pod x/b", "not compared here: runs on node2; ask there", None),
    ]


def test_a_change_on_its_way_is_no_difference(busy: Any) -> None:
    node = FakeNode(busy)
    node.chain("KUBE-ROUTER-FORWARD").clear()
    node.on_pause = node.sync
    assert node.wrong("x/client", "10.244.1.10", 8080) == []
    assert len(node.paused) == 1


def test_kinds_that_nobody_needs_are_asked_of_the_api(busy: Any) -> None:
    kinds = (Service, EndpointSlice, Pod, NetworkPolicy, Node)
    node = FakeNode(busy, "node1", kinds, "--run-firewall=false")
    answer = node.explain("x/client", VIP, 80)
    *notes, last = answer["notes"]
    assert sorted(each.partition(" ")[0] for each in notes) == ["Namespaces", "Pods"]
    assert all("nobody answers" in each for each in notes)
    assert last == NOBODY


def test_an_api_server_that_hangs_is_asked_once_for_all(busy: Any) -> None:
    """However often the kernel is looked at: who asks does not wait for ever."""
    kinds = (Service, EndpointSlice, Pod, Node)
    node = FakeNode(busy, "node1", kinds, "--run-firewall=false")
    asked: list[tuple[str, float]] = []

    class Hangs:
        def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
            asked.append((path.rpartition("/")[2], timeout_s or 0))
            raise ApiError(f"{path}: no answer in time")

    node.answers = FlowAnswers(
        *(node.options, node.cache, Hangs(), "node1"),  # type: ignore[arg-type]
        pools=AddressPools,
        open_kernel=node.read,
        read_addresses=lambda: (*LOOPBACK, *node.addresses),
        pause=node._pause,
    )
    for key in node.ipvs.read():
        node.ipvs.drop(key)
    answer = node.explain("192.0.2.7", VIP, 80, node="node1")
    assert not answer["error"], answer
    assert len(node.paused) == 2  # looked at again and again
    assert [name for name, _ in asked] == ["pods", "namespaces", "networkpolicies"]
    assert all(0 < timeout_s <= flow_answers._LIST_S for _, timeout_s in asked)
    assert len(answer["notes"]) == 4


def test_one_flow_at_a_time(busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one waits, and is told so when it has waited for long."""
    node = FakeNode(busy)
    monkeypatch.setattr(flow_answers, "_WAIT_S", 0.05)
    is_in, may_go = threading.Event(), threading.Event()
    node.chain("KUBE-ROUTER-FORWARD").clear()

    def hold() -> None:
        is_in.set()
        assert may_go.wait(60)

    node.on_pause = hold
    first = threading.Thread(target=node.explain, args=("x/client", "10.244.1.10", 8080))
    first.start()
    try:
        assert is_in.wait(60)
        with pytest.raises(KubeRouterError, match="try again"):
            node.explain("x/client", "10.244.1.10", 8080)
    finally:
        may_go.set()
        first.join(60)
    assert node.explain("x/client", "10.244.3.10", 8080)["trace"]


def test_the_api_server_gives_what_the_cache_lacks(busy: Any) -> None:
    kinds = (Service, EndpointSlice, Pod, NetworkPolicy, Node)
    node = FakeNode(busy, "node1", kinds, "--run-firewall=false")
    asked: list[tuple[str, Any]] = []

    class Api:
        """Two pages of each kind."""

        def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
            assert timeout_s is not None
            asked.append((path, query.get("continue")))
            name = path.rpartition("/")[2]
            of_kind = [each for (kind, _, _), each in busy.documents.items() if PATHS[kind] == name]
            half = of_kind[1:] if query.get("continue") else of_kind[:1]
            token = "" if query.get("continue") else "more"
            kind = next(kind for kind, plural in PATHS.items() if plural == name)
            metadata = {"resourceVersion": "7", "continue": token}
            body = {"kind": f"{kind}List", "metadata": metadata, "items": half}
            return json.dumps(body).encode()

    node.answers = FlowAnswers(
        *(node.options, node.cache, Api(), "node1"),  # type: ignore[arg-type]
        pools=AddressPools,
        open_kernel=node.read,
        read_addresses=lambda: (*LOOPBACK, *node.addresses),
    )
    answer = node.explain("x/client", VIP, 80)
    assert answer["notes"] == (NOBODY,)
    assert [each for each in answer["kernel"]["checks"] if each["agrees"] is False] == []
    assert asked == [
        (f"/api/v1/{each}", token) for each in ("pods", "namespaces") for token in (None, "more")
    ]
    assert len(answer["trace"]["backends"]) == 3


def test_mistakes(busy: Any) -> None:
    node = FakeNode(busy)
    with pytest.raises(ConfigurationError, match="port"):
        node.answers.explain({"source": "x/a", "destination": "x/b", "port": "http"})
    answer = node.explain("x/nobody", "x/a")
    assert "there is no pod x/nobody" in answer["error"]
    assert answer["trace"] is None
