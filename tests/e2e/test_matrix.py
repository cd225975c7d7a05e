"""Who answers, and which source address it sees, for every sort of address, client, protocol,
family and traffic policy.

What is expected is written down here as kube-proxy documents it, not taken from the code: see
``Case.expected``.
"""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

SERVICES = "/api/v1/namespaces/e2e/services"
NODES = ("node1", "node2")
PORTS = {"TCP": (80, 30280, 30380), "UDP": (53, 30253, 30353)}
# What nothing else in the lab knows the way to: the test leads the outside client there.
VIPS = {
    "cluster": {
        "external": ("192.0.2.51", "2001:db8:51::1"),
        "lb": ("192.0.2.52", "2001:db8:52::1"),
    },
    "local": {"external": ("192.0.2.53", "2001:db8:53::1"), "lb": ("192.0.2.54", "2001:db8:54::1")},
}
HOME = {"e2e/client1": "node1", "e2e/client2": "node2", "node1": "node1", "node2": "node2"}
NOBODY = "nobody"
# How long an answer is waited for that should not come; others are waited for much longer.
_DROPPED_S = 4.0
ENOUGH = 60


@dataclass(frozen=True)
class Case:
    """One client asks one address: ``entry`` is the node where the packet is load-balanced."""

    policy: str
    kind: str
    client: str
    protocol: str
    family: int
    entry: str
    address: str = field(compare=False)
    port: int = field(compare=False)

    @property
    def is_inside(self) -> bool:
        return self.client in HOME

    def expected(self, addresses: dict[tuple[str, int], str]) -> dict[str, str] | str:
        """The source address that each backend sees, by the backend's node; or NOBODY answers.

        policy Cluster: every endpoint is used. Local: those of the entry node; where there are
        none, a ClusterIP drops, and the others drop what comes from outside the cluster.
        """
        backends = NODES
        if self.policy == "local":
            backends = ("node1",)
            if self.entry != "node1" and (self.kind == "cluster-ip" or not self.is_inside):
                return NOBODY
        # A reply finds its way by itself to clients of the entry node, and from backends there.
        own = addresses[self.client, self.family]
        masqueraded = addresses[self.entry, self.family]
        return {
            node: own if HOME.get(self.client) == self.entry or node == self.entry else masqueraded
            for node in backends
        }


class World:
    """The Services of this page, and the cases that can be made of them."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.addresses = {
            (client, family): self._address(client, family)
            for client in (*HOME, "client")
            for family in (4, 6)
        }
        self.cluster_ips = {policy: self._create(policy) for policy in VIPS}

    def _address(self, client: str, family: int) -> str:
        if "/" not in client:
            return str(self.cluster.address(client, family))
        pod = self.cluster.api.get(f"/api/v1/namespaces/e2e/pods/{client.partition('/')[2]}")
        ips = [each["ip"] for each in pod["status"]["podIPs"]]
        return str(next(ip for ip in ips if (":" in ip) == (family == 6)))

    def _create(self, policy: str) -> list[str]:
        number = 1 + list(VIPS).index(policy)
        value = policy.capitalize()
        body = {
            "metadata": {"name": f"matrix-{policy}"},
            "spec": {
                "type": "LoadBalancer",
                "ipFamilyPolicy": "RequireDualStack",
                "selector": {"app": "echo" if policy == "cluster" else "solo"},
                "externalIPs": list(VIPS[policy]["external"]),
                "externalTrafficPolicy": value,
                "internalTrafficPolicy": value,
                "ports": [
                    {
                        "name": protocol.lower(),
                        "port": ports[0],
                        "targetPort": "http" if protocol == "TCP" else "dns",
                        "protocol": protocol,
                        "nodePort": ports[number],
                    }
                    for protocol, ports in PORTS.items()
                ],
            },
        }
        made = self.cluster.api.create(SERVICES, body)
        ingress = [{"ip": ip} for ip in VIPS[policy]["lb"]]
        status = {"status": {"loadBalancer": {"ingress": ingress}}}
        self.cluster.api.merge(f"{SERVICES}/matrix-{policy}/status", status)
        return list(made["spec"]["clusterIPs"])

    def lead_client_to(self, node: str) -> None:
        """The outside client's way to external and load balancer IPs."""
        for policy in VIPS.values():
            for vips in policy.values():
                for family, vip in zip((4, 6), vips, strict=True):
                    via = self.cluster.address(node, family)
                    self.cluster.run("router", "ip", "route", "replace", vip, "via", via)

    def cases(self, entry_of_client: str) -> Iterator[Case]:
        """Every case, the outside client's packets to VIPs going to one node."""
        for policy in VIPS:
            for family in (4, 6):
                for protocol in PORTS:
                    yield from self._cases(policy, protocol, family, entry_of_client)

    def _cases(
        self, policy: str, protocol: str, family: int, entry_of_client: str
    ) -> Iterator[Case]:
        port, *node_ports = PORTS[protocol]
        node_port = node_ports[list(VIPS).index(policy)]
        ips = self.cluster_ips[policy]
        cluster_ip = next(ip for ip in ips if (":" in ip) == (family == 6))

        def case(kind: str, client: str, entry: str, address: str, number: int) -> Case:
            return Case(policy, kind, client, protocol, family, entry, address, number)

        # The outside client's way to VIPs has changed; nobody else's.
        clients = [*HOME, "client"] if entry_of_client == "node1" else ["client"]
        for client in clients:
            home = HOME.get(client, entry_of_client)
            for kind, vips in VIPS[policy].items():
                yield case(kind, client, home, vips[family == 6], port)
            if client in HOME:
                yield case("cluster-ip", client, home, cluster_ip, port)
            for node in NODES if entry_of_client == "node1" else ():
                address = self.addresses[node, family]
                yield case("node-port", client, node, address, node_port)

    def seen(self, case: Case) -> dict[str, str] | str:
        """What really happens; asked until every expected backend has answered."""
        expected = case.expected(self.addresses)
        found: dict[str, str] = {}
        timeout_s = _DROPPED_S if expected == NOBODY else 60.0
        for _ in range(ENOUGH):
            try:
                answer = self.cluster.ask(
                    case.client, case.address, case.port, case.protocol, timeout_s
                )
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return NOBODY
            before = found.setdefault(answer["node"], answer["client"])
            if before != answer["client"]:
                return f"{before} and {answer['client']}"
            if expected == NOBODY or len(found) == len(expected):
                break
        return found


@pytest.fixture(scope="module")
def world(cluster: Any) -> Iterator[World]:
    found = World(cluster)
    cluster.wait()
    yield found
    for policy in VIPS:
        cluster.api.delete(f"{SERVICES}/matrix-{policy}")
    cluster.wait()


@pytest.mark.parametrize("entry", NODES)
def test_the_matrix(world: World, entry: str) -> None:
    world.lead_client_to(entry)
    cases = list(world.cases(entry))
    assert len(cases) == len(set(cases))
    wrong: list[str] = []
    lock = threading.Lock()

    def judge(case: Case) -> None:
        found, expected = world.seen(case), case.expected(world.addresses)
        if found != expected:
            with lock:
                wrong.append(f"{case}: expected {expected}, but {found}")

    # Side by side, for the sake of those whose answer is silence.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(judge, cases))
    assert not wrong, f"{len(wrong)} of {len(cases)} are wrong:\n" + "\n".join(sorted(wrong))


def ping(address: str) -> bytes:
    """The answer to an echo request (RFC 792, RFC 4443), whose first byte says what it is."""
    is_ipv6 = ":" in address
    family, protocol, kind = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)
        if is_ipv6
        else (socket.AF_INET, socket.IPPROTO_ICMP, 8)
    )
    # The kernel fills in the checksum of ICMPv6; without payload, that of ICMP is this.
    checksum = 0 if is_ipv6 else ~(kind << 8) & 0xFFFF
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(60)
        sock.connect((address, 0))
        sock.send(bytes((kind, 0, *checksum.to_bytes(2, "big"), 0, 0, 0, 0)))
        answer = sock.recv(256)
        return answer if is_ipv6 else answer[20:]


def test_a_vip_is_refused_on_other_ports_and_answers_pings(world: World) -> None:
    world.lead_client_to("node2")
    for vip in VIPS["cluster"]["lb"]:
        with pytest.raises(ConnectionRefusedError):
            world.cluster.ask("client", vip, 9999)
        answer = world.cluster.inside("client", lambda vip=vip: ping(vip))
        assert answer[0] == (129 if ":" in vip else 0)


def test_source_ranges_admit_whom_they_name(world: World) -> None:
    """Outside client and a pod; both families, and one of them without a range."""
    cluster = world.cluster
    world.lead_client_to("node1")
    path = f"{SERVICES}/matrix-cluster"

    def check(family: int, *admitted: str) -> None:
        vip = VIPS["cluster"]["lb"][family == 6]
        for client in ("client", "e2e/client1"):
            if client in admitted:
                assert cluster.ask(client, vip, 80, timeout_s=60)["pod"]
            else:
                with pytest.raises(TimeoutError):
                    cluster.ask(client, vip, 80, timeout_s=_DROPPED_S)

    def admit(*ranges: str) -> None:
        cluster.api.merge(path, {"spec": {"loadBalancerSourceRanges": list(ranges) or None}})
        cluster.wait()

    client4, client6 = (f"{world.addresses['client', family]}" for family in (4, 6))
    admit(f"{client4}/32", f"{client6}/128")
    for family in (4, 6):
        check(family, "client")
    # Node ports and external IPs are not meant.
    assert cluster.ask("e2e/client1", VIPS["cluster"]["external"][0], 80)["pod"]
    assert cluster.ask("e2e/client1", world.addresses["node1", 4], 30280)["pod"]
    admit("10.244.0.0/16")
    check(4, "e2e/client1")
    check(6)
    admit()
    check(4, "client", "e2e/client1")


def test_a_readers_service_reaches_its_own_pod(world: World) -> None:
    """Hairpin, by annotation."""
    cluster = world.cluster
    path = f"{SERVICES}/matrix-local"
    annotation = {"kube-router.io/service.hairpin": "true"}
    cluster.api.merge(path, {"metadata": {"annotations": annotation}})
    cluster.wait()
    for family in (4, 6):
        address = VIPS["local"]["external"][family == 6]
        answer = cluster.ask("e2e/solo", address, 80, timeout_s=60)
        assert (answer["pod"], answer["client"]) == ("solo", world.addresses["node1", family])
    cluster.api.merge(path, {"metadata": {"annotations": dict.fromkeys(annotation)}})
    cluster.wait()
