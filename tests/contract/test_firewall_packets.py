"""What ``render`` prints, loaded into an empty namespace, against real connections.

A node with routed pods; everything that is not on it (other nodes, their pods, the Internet) is one
namespace behind a link. No bridge: not every kernel filters bridged packets.
"""

import errno
import itertools
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.controller import KINDS, Firewall
from kube_router_py.firewall.counters import pod_counters
from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain, policy_chain
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.host import open_host
from kube_router_py.manifests import Manifests

pytestmark = [
    pytest.mark.netfilter,
    pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"]),
]

SEMANTICS = Path(__file__).parents[1] / "golden" / "policies" / "semantics.yaml"
_TIMEOUT_S = 60.0
SCTP = 132
LOCAL = ("x/a", "x/c", "y/a")
OUTSIDE = {4: "203.0.113.10", 6: "2001:db8::10"}
FAR = ("x/b", "y/b", "node2", "outside")
Probe = tuple[str, str, str, int, int]
"""From, to, protocol, port and family."""
PORTS = (("tcp", 80), ("tcp", 81), ("udp", 80), ("udp", 81), ("sctp", 80))

POLICIES = {
    "both directions, by selectors": """
        x/p:
          podSelector: {}
          policyTypes: [Ingress, Egress]
          ingress:
            - {from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}
            - {from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: 81, protocol: UDP}]}
          egress:
            - {to: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81, protocol: UDP}]}
            - {to: [{namespaceSelector: {}}], ports: [{port: 80, protocol: SCTP}]}
    """,
    "nothing in or out but ports": """
        x/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress],
              ingress: [{ports: [{port: 79, endPort: 80}, {port: 81, protocol: UDP}]}]}
        y/p: {podSelector: {}, policyTypes: [Egress],
              egress: [{ports: [{protocol: UDP}]}, {ports: [{protocol: SCTP, port: 80}]}]}
    """,
    "blocks with holes": """
        x/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress],
              ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.2.0/24]}},
                                {ipBlock: {cidr: "fd00::/8", except: ["fd00:10:244:1::/64"]}}]}],
              egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.20/32]}},
                             {ipBlock: {cidr: "::/0"}}]}]}
        x/q: {podSelector: {matchLabels: {pod: c}},
              ingress: [{from: [{ipBlock: {cidr: 192.168.1.0/30}},
                                {ipBlock: {cidr: 203.0.113.10/32}}]}]}
    """,
    "names of ports": """
        x/p: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: web}]}],
              egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}, {port: ghost}]}]}
        y/p: {podSelector: {}, policyTypes: [Egress],
              egress: [{ports: [{port: dns, protocol: UDP}]}]}
    """,
}


def sh(*commands: str) -> None:
    for command in commands:
        run(*command.split())


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


# --- SCTP without a kernel that has it: the first two packets of an association, by hand ---


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_packet(sport: int, dport: int, tag: int, kind: int) -> bytes:
    """INIT (kind 1) or INIT ACK (kind 2) of RFC 9260, 3.3.2 and 3.3.3."""
    cookie = struct.pack("!HH4s", 7, 8, b"cake") if kind == 2 else b""
    body = struct.pack("!IIHHI", 0x1234, 65536, 1, 1, 1) + cookie
    chunk = struct.pack("!BBH", kind, 0, 4 + len(body)) + body
    blank = struct.pack("!HHII", sport, dport, tag, 0) + chunk
    return blank[:8] + struct.pack("<I", _crc32c(blank)) + blank[12:]


def sctp_part(packet: bytes, version: int) -> bytes:
    """Raw sockets of IPv4 give the IP header too."""
    return packet[(packet[0] & 15) * 4 :] if version == 4 else packet


# --- both ends ---


class Server:
    """Answers on these addresses of the namespace that it is made in."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._selector = selectors.DefaultSelector()
        self._stopped, self._stop = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ, None)
        for address in addresses:
            version = ip_address(address).version
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            for protocol, port in PORTS:
                if protocol == "tcp":
                    found = socket.create_server((address, port), family=family)
                elif protocol == "udp":
                    found = socket.socket(family, socket.SOCK_DGRAM)
                    found.bind((address, port))
                else:
                    found = socket.socket(family, socket.SOCK_RAW, SCTP)
                    found.bind((address, 0))
                found.setblocking(False)
                self._selector.register(found, selectors.EVENT_READ, (protocol, version))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                found: Any = key.fileobj
                try:
                    self._answer(found, *key.data)
                except OSError:
                    continue  # gone before it was looked at, or an error of an older answer

    @staticmethod
    def _answer(found: socket.socket, protocol: str, version: int) -> None:
        if protocol == "tcp":
            found.accept()[0].close()
            return
        data, peer = found.recvfrom(256)
        if protocol == "udp":
            found.sendto(b"here", peer)
            return
        packet = sctp_part(data, version)
        sport, dport = struct.unpack("!HH", packet[:4])
        if packet[12] == 1 and dport == 80:
            found.sendto(sctp_packet(dport, sport, 0x1234, 2), (peer[0], 0))

    def close(self) -> None:
        self._stop.send(b"x")
        self._thread.join(_TIMEOUT_S)
        for key in list(self._selector.get_map().values()):
            found: Any = key.fileobj
            found.close()
        self._stop.close()
        self._selector.close()


_source_ports = itertools.count(20000)
Attempt = tuple[str | None, str, str, int]
"""Source address (None: any of this namespace), destination, protocol, port."""


def reach(attempts: Iterable[Attempt]) -> list[bool]:
    """Whether each connection comes about, or is refused; anything else is an error.

    All TCP connections are tried at once: a refusal may be heard by the second SYN only, if the
    first is still on its way out of connect(2) when it comes.
    """
    found: dict[int, bool] = {}
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for number, (src, dst, protocol, port) in enumerate(attempts):
            if protocol != "tcp":
                found[number] = _reaches(src, dst, protocol, port)
                continue
            family = socket.AF_INET6 if ":" in dst else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            if src is not None:
                sock.bind((src, 0))
            sock.connect_ex((dst, port))
            selector.register(sock, selectors.EVENT_WRITE, number)
        while selector.get_map():
            ready = selector.select(_TIMEOUT_S)
            assert ready, "neither a connection nor a refusal"
            for key, _ in ready:
                selector.unregister(key.fileobj)
                tried: Any = key.fileobj
                error = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                assert error in (0, errno.ECONNREFUSED), error
                found[key.data] = not error
    return [found[number] for number in sorted(found)]


def _reaches(src: str | None, dst: str, protocol: str, port: int) -> bool:
    version = ip_address(dst).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    is_sctp = protocol == "sctp"
    kind = socket.SOCK_RAW if is_sctp else socket.SOCK_DGRAM
    with socket.socket(family, kind, SCTP if is_sctp else 0) as sock:
        # Never one that a connection had before, which conntrack might remember.
        sport = next(_source_ports)
        sock.bind((src or ("0.0.0.0" if version == 4 else "::"), 0 if is_sctp else sport))
        try:
            sock.connect((dst, 0 if is_sctp else port))
            if is_sctp:
                return _answered(sock, sctp_packet(sport, port, 0, 1), sport, version)
            return _answered(sock, b"?", 0, version)
        except ConnectionRefusedError:
            return False


def _answered(sock: socket.socket, data: bytes, sport: int, version: int) -> bool:
    """Send until there is an answer (ConnectionRefusedError is one, too)."""
    sock.settimeout(2.0)
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        sock.send(data)
        try:
            while True:
                found = sock.recv(256)
                if not sport:
                    return True
                # A raw socket hears all that its peer sends in this protocol.
                packet = sctp_part(found, version)
                if packet[12] == 2 and struct.unpack("!H", packet[2:4]) == (sport,):
                    return True
        except TimeoutError:
            continue
    raise AssertionError("neither an answer nor a refusal")


def load(document: Any, variant: str) -> None:
    """Sets and rules, into a namespace that has neither."""
    lines = []
    for each in document["ipsets"]:
        options = f"family {each['family']} maxelem {each['maxelem']}"
        lines.append(f"create {each['name']} {each['type']} {options}")
        lines += [f"add {each['name']} {entry}" for entry in each["entries"]]
    run("ipset", "restore", stdin="\n".join((*lines, "")))
    for family, program in programs(variant):
        text = document["iptables"][family]["filter"]
        run(f"{program}-restore", "--noflush", stdin=text)


def programs(variant: str) -> tuple[tuple[str, str], ...]:
    return ("ipv4", variant), ("ipv6", variant.replace("ip", "ip6", 1))


# --- the node ---


class Rig:
    """Stands in the node's namespace, where there are no rules and no sets."""

    def __init__(self, peer: Any, stack: ExitStack, clusters: Any) -> None:
        web = {"name": "web", "containerPort": 80}
        dns = {"name": "dns", "containerPort": 81, "protocol": "UDP"}
        named = clusters.canonical()
        for key, *ports in (
            ("x/a", web, dns),
            ("x/c", {"name": "web", "containerPort": 81}),
            ("y/a", {"name": "web", "containerPort": 81}),
            ("y/b", web),
            ("x/b", dns),
        ):
            space, name = key.split("/")
            older = next(o for o in named if clusters.identity(o) == ("Pod", space, name))
            ips = [each["ip"] for each in older["status"]["podIPs"]]
            newer = clusters.pod(key, older["spec"]["nodeName"], ips, ports=ports)
            named = clusters.replaced(named, newer)
        self.objects = named
        self.cluster = clusters.Cluster(self.objects)
        # Refusals are the answers here; the kernel would send but a few a second.
        sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "
            "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 "
            "net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0 net.ipv6.icmp.ratemask=129"
        )
        self.places: dict[str, Any] = {}
        for key in LOCAL:
            own = self.cluster.addresses_of(key)
            link = f"pod-{key.replace('/', '-')}"
            place = peer(link, "10.244.1.1/32", f"{own[4]}/24")
            # Pods beside each other meet at the node: their only neighbour.
            place.run(sh, "ip route del 10.244.1.0/24 dev veth0")
            self._sixth(place, link, own[6], "fe80::1/64", "fe80::1")
            sh(f"ip route add {own[4]}/32 dev {link}", f"ip -6 route add {own[6]}/128 dev {link}")
            self.places[key] = place
        far = peer("eth0", "192.168.1.1/24", "192.168.1.2/24")
        self._sixth(far, "eth0", "fd00:1::2", "fd00:1::1/64", "fd00:1::1")
        for key in FAR:
            self.places[key] = far
            if key == "node2":
                continue
            for version, address in self.addresses(key).items():
                # Without nodad an address of lo, too, is tentative for a moment.
                far.run(sh, f"ip addr add {address} dev lo{' nodad' * (version == 6)}")
                gateway = "fd00:1::2" if version == 6 else "192.168.1.2"
                sh(f"ip {'-6 ' * (version == 6)}route add {address} via {gateway}")
        served: dict[Any, list[str]] = {}
        for key, place in self.places.items():
            served.setdefault(place, []).extend(self.addresses(key).values())
        for place, found in served.items():
            stack.callback(place.run(Server, found).close)
        stack.callback(Server(self.addresses("node1").values()).close)

    @staticmethod
    def _sixth(place: Any, link: str, address: str, node: str, gateway: str) -> None:
        sh(f"ip -6 addr add {node} dev {link} nodad")
        place.run(
            sh,
            f"ip -6 addr add {address}/128 dev veth0 nodad",
            f"ip -6 route add {gateway} dev veth0",
            f"ip -6 route add default via {gateway} dev veth0",
        )

    def addresses(self, place: str) -> dict[int, str]:
        found: dict[int, str] = OUTSIDE if place == "outside" else self.cluster.addresses_of(place)
        return found

    def matrix(self) -> Iterator[Probe]:
        """Everything that comes by this node."""
        ends = (*LOCAL, *FAR, "node1")
        for src, dst in itertools.permutations(ends, 2):
            if src in FAR and dst in FAR:
                continue
            for protocol, port in PORTS:
                for version in (4, 6):
                    yield src, dst, protocol, port, version

    def probe(self, probes: Iterable[Probe]) -> dict[Probe, bool]:
        """Try all of these, from all places at once."""
        by_place: dict[Any, list[Probe]] = {}
        for each in probes:
            by_place.setdefault(self.places.get(each[0]), []).append(each)
        with ThreadPoolExecutor(len(by_place)) as pool:
            running = [
                (some, pool.submit(place.run, reach, self._attempts(some)))
                for place, some in by_place.items()
                if place is not None
            ]
            own = by_place.get(None, [])
            found = dict(zip(own, reach(self._attempts(own)), strict=True))
            for some, future in running:
                found.update(zip(some, future.result(), strict=True))
        return found

    def _attempts(self, probes: Iterable[Probe]) -> list[Attempt]:
        return [
            (
                None if src == "node1" else self.addresses(src)[version],
                self.addresses(dst)[version],
                protocol,
                port,
            )
            for src, dst, protocol, port, version in probes
        ]


@pytest.fixture
def rig(
    new_namespace: Callable[[], AbstractContextManager[None]],
    request: pytest.FixtureRequest,
    clusters: Any,
) -> Iterator[Rig]:
    with new_namespace():
        peer = request.getfixturevalue("peer")
        with ExitStack() as stack:
            yield Rig(peer, stack, clusters)


def judged(rig: Rig, cluster: Any, probes: Iterable[Probe]) -> dict[Probe, bool]:
    """By the semantics, as far as this node has a say: what is behind the link has no firewall."""
    kinds = (Pod, Namespace, NetworkPolicy, Node, Service)
    rules = Evaluator(*(cluster.manifests.list(kind) for kind in kinds))
    found = {}
    for probe in probes:
        src, dst, protocol, port, version = probe
        source = f"node/{src}" if src.startswith("node") else rig.addresses(src)[version]
        target = rig.addresses(dst)[version]
        flow = Flow(source, target, protocol.upper(), port, f"IPv{version}")
        verdict = rules.evaluate(flow)
        found[probe] = (verdict.egress.allowed or src not in LOCAL) and (
            verdict.ingress.allowed or dst not in LOCAL
        )
    return found


def traced(rig: Rig, cluster: Any, probes: Iterable[Probe], tracer: Any) -> dict[Probe, bool]:
    """The same by the rules, as the tracer of the unit tests understands them."""
    here = {"node1": cluster.firewalls["node1"]}
    found = {}
    for probe in probes:
        src, dst, protocol, port, version = probe
        ends = [OUTSIDE[version] if each == "outside" else each for each in (src, dst)]
        (flow,) = cluster.flows(f"{ends[0]} > {ends[1]} {protocol} {port} v{version}")
        found[probe] = tracer.flow_verdict(here, flow)[0]
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_connections_end_as_judged(
    rig: Rig, variant: str, name: str, tracer: Any, clusters: Any
) -> None:
    probes = list(rig.matrix())
    # What answers now, and not any more later, was refused by the rules.
    assert all(rig.probe(probes).values())
    cluster = clusters.Cluster(rig.objects + clusters.policies(POLICIES[name]))
    load(cluster.documents["node1"], variant)
    said = judged(rig, cluster, probes)
    assert {True, False} == set(said.values())
    assert traced(rig, cluster, probes, tracer) == said
    found = rig.probe(probes)
    wrong = [f"{each}: {found[each]}" for each in probes if found[each] != said[each]]
    assert not wrong, "\n".join(wrong)


def test_the_kernel_takes_all_that_the_tracer_takes(
    new_namespace: Callable[[], AbstractContextManager[None]], variant: str, clusters: Any
) -> None:
    """Every case of the semantics, all in one cluster: each of its rules and sets arrives."""
    objects = clusters.canonical()
    for number, case in enumerate(yaml.safe_load(SEMANTICS.read_text())):
        objects = clusters.replaced(objects, *clusters.of_case(case)[len(clusters.canonical()) :])
        for key, spec in case.get("policies", {}).items():
            objects.append(clusters.policy(f"{key}-{number}", spec))
    objects.append(clusters.service("x/s", ("10.96.0.1", "fd00:96::1"), 80, 80, "SCTP"))
    objects[-1]["spec"].update(type="NodePort")
    objects[-1]["spec"]["ports"][0]["nodePort"] = 30080
    cluster = clusters.Cluster(objects, "--netpol-default-deny")
    document = cluster.documents["node1"]
    with new_namespace():
        load(document, variant)
        saved = run("ipset", "save").splitlines()
        entries = {
            f"add {each['name']} {entry}"
            for each in document["ipsets"]
            for entry in each["entries"]
        }
        assert {line for line in saved if line.startswith("add ")} == entries
        for family, program in programs(variant):
            rules = run(f"{program}-save", "-t", "filter").splitlines()
            table = cluster.firewalls["node1"].tables[32 if family == "ipv4" else 128]
            counts = Counter(line.split()[1] for line in rules if line.startswith("-A "))
            assert counts == {name: len(found) for name, found in table.chains.items() if found}


# --- what is audited ---

AUDITED = """
    x/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress],
          ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}],
          egress: [{to: [{podSelector: {matchLabels: {pod: c}}}]}]}
"""
"""Of x/a."""


class Agent:
    """The firewall's controller of node1 in this namespace."""

    def __init__(self, variant: str, objects: Iterable[Any]) -> None:
        self._cache = Cache(KINDS)
        self._variant = variant
        for each in objects:
            self._put(each)
        options = FirewallOptions(families=("inet", "inet6"))
        self._firewall = Firewall(
            self._cache,
            options,
            "node1",
            lambda: open_host(iptables_variant=variant, needs_ipvs=False),
        )
        self._firewall.open()
        self._turn(full=True)

    def _put(self, document: Any) -> None:
        manifests = Manifests()
        manifests.add(document, "object", "IPv4")
        for kind in KINDS:
            for found in manifests.list(kind):
                self._cache.put(kind, found)

    def _turn(self, *, full: bool) -> None:
        outcome = self._firewall.reconcile(frozenset(), full)
        assert not outcome.failed, outcome.problems

    def change(self, document: Any) -> None:
        self._put(document)
        self._turn(full=True)

    def close(self) -> None:
        self._firewall.close()

    def rules(self, chain: str) -> dict[str, list[tuple[int, str]]]:
        """By family: packets and text of each rule, as the kernel has them."""
        found: dict[str, list[tuple[int, str]]] = {}
        for family, program in programs(self._variant):
            for line in run(f"{program}-save", "-c", "-t", "filter").splitlines():
                counted, _, rule = line.partition(f" -A {chain} ")
                if rule:
                    packets = int(counted[1:].partition(":")[0])
                    found.setdefault(family, []).append((packets, rule.strip()))
        return found


def told(cluster: Any, rig: Rig, probes: Iterable[Probe]) -> Counter[tuple[str, str]]:
    """How many of these x/a would refuse, by family and direction."""
    kinds = (Pod, Namespace, NetworkPolicy, Node, Service)
    rules = Evaluator(*(cluster.manifests.list(kind) for kind in kinds))
    found: Counter[tuple[str, str]] = Counter()
    for src, dst, protocol, port, version in probes:
        source = f"node/{src}" if src.startswith("node") else rig.addresses(src)[version]
        flow = Flow(source, rig.addresses(dst)[version], protocol.upper(), port, f"IPv{version}")
        verdict = rules.evaluate(flow)
        assert verdict.allowed
        found[f"ipv{version}", "ingress"] += verdict.ingress.would_refuse
        found[f"ipv{version}", "egress"] += verdict.egress.would_refuse
    return found


@pytest.mark.parametrize("level", ["policy", "namespace"])
def test_what_is_audited_passes_and_is_counted(
    rig: Rig, variant: str, level: str, clusters: Any
) -> None:
    (policy,) = clusters.policies(AUDITED)
    space = clusters.namespace("x")
    # Connections that conntrack knows by then are not looked at any more: TCP has new ports.
    probes = [each for each in rig.matrix() if "x/a" in each[:2] and each[2] == "tcp"]
    states = {
        None: [clusters.audited(each, None) for each in (policy, space)],
        "true": [
            clusters.audited(each, "true" if each["kind"] == kind else None)
            for each in (policy, space)
            for kind in ({"policy": "NetworkPolicy", "namespace": "Namespace"}[level],)
        ],
    }
    whole = {
        audit: clusters.Cluster(clusters.replaced(rig.objects, *changed))
        for audit, changed in states.items()
    }
    expected = told(whole["true"], rig, probes)
    assert min(expected.values()) > 0
    refused = judged(rig, whole[None], probes)
    assert {True, False} == set(refused.values())
    agent = Agent(variant, whole["true"].objects)
    try:
        assert all(rig.probe(probes).values())
        _counted(agent, expected)
        # Enforced, and audited again: it stays what it is in between.
        for audit in (None, "true", None):
            for each in states[audit]:
                agent.change(each)
            said = refused if audit is None else dict.fromkeys(probes, True)
            assert rig.probe(probes) == said
    finally:
        agent.close()


def _counted(agent: Agent, expected: Counter[tuple[str, str]]) -> None:
    for direction in Direction:
        chain, policy = pod_chain("x/a", direction), policy_chain("x/p", direction)
        for family, rules in agent.rules(chain).items():
            packets = [number for number, _ in rules]
            counters = pod_counters([text for _, text in rules])
            assert counters is not None
            assert counters.is_audited
            # A SYN counts again that is sent again before there is an answer.
            assert packets[counters.refused] >= expected[family, str(direction)]
            assert counters.admitted(packets)[policy] > 0
            ((logged, log),) = [each for each in rules if "NFLOG" in each[1]]
            assert f'--nflog-prefix "{chain} {direction} audit' in log
            # There may be fewer packets than the log's limit lets pass at once.
            assert min(10, expected[family, str(direction)]) <= logged <= packets[counters.refused]
