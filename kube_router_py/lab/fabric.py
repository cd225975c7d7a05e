"""The wires of the lab and who has which address.

    client ---- router ----+---------+---------+---------+--- ...   (the fabric, one bridge)
    outside     outside|   |         |         |         |
                       |apiserver  desk      node1     node2
                       |                    outside
                       +------------------------------ node3        (a second, with two subnets)

The desk is no part of the cluster and knows no way to pods or Services: what it reaches, it reaches
because somebody on its wire answers by ARP or NDP.

With a routing daemon on the router (``has_bgp``) nobody is told where pods are: the agents' own
routes and tunnels lead there, and the router learns of pods and Services by BGP.

Everything is computed first (``compile_topology``, pure) and then built: one ``ip -batch`` per
namespace. Addresses depend only on the node's number and the family, never on the run.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from kube_router_py.lab.netns import Namespaces, write_sysctl

Networks = dict[int, IPv4Network | IPv6Network]

FABRIC = "fabric"
ROUTER = "router"
CLIENT = "client"
DESK = "desk"
APISERVER = "apiserver"
MAX_NODES = 50

# AS numbers, where the router speaks BGP.
ROUTER_ASN = 65000
CLUSTER_ASN = 64512

FABRIC_NETS: Networks = {4: IPv4Network("10.10.0.0/24"), 6: IPv6Network("fd10:10::/64")}
SECOND_NETS: Networks = {4: IPv4Network("10.11.0.0/24"), 6: IPv6Network("fd10:11::/64")}
SUBNETS = (FABRIC_NETS, SECOND_NETS)
OUTSIDE_NETS: Networks = {4: IPv4Network("10.20.0.0/24"), 6: IPv6Network("fd10:20::/64")}
SERVICE_CIDRS = {4: "10.96.0.0/12", 6: "fd10:96::/112"}
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


@dataclass(frozen=True)
class Host:
    """One namespace: links with their addresses, then routes as ``ip route`` words."""

    name: str
    links: tuple[tuple[str, tuple[str, ...]], ...]
    routes: tuple[str, ...] = ()
    forwards: bool = False

    def address(self, family: int) -> str | None:
        """Its first address of that family, without the prefix length."""
        for _, addresses in self.links:
            for address in addresses:
                if (":" in address) == (family == 6):
                    return address.split("/")[0]
        return None


@dataclass(frozen=True)
class LabNode:
    """A node as Kubernetes sees it; ``gateways`` are the router's addresses in its ``subnet``."""

    name: str
    number: int
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    subnet: int = 0
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topology:
    """All hosts of the lab; ``families`` in order of preference."""

    families: tuple[int, ...]
    hosts: tuple[Host, ...]
    nodes: tuple[LabNode, ...]
    service_cidrs: tuple[str, ...]
    has_bgp: bool = False

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def agent_args(self, node: LabNode) -> tuple[str, ...]:
        """What the agent of ``node`` must be told about this cluster; IPv4 alone is the default."""
        found: list[str] = []
        if self.families != (4,):
            found += [f"--enable-ipv{f}={str(f in self.families).lower()}" for f in (4, 6)]
            found += [f"--service-cluster-ip-range={','.join(self.service_cidrs)}"]
        if self.has_bgp:
            asns = [str(ROUTER_ASN)] * len(node.gateways)
            found += [
                f"--cluster-asn={CLUSTER_ASN}",
                f"--peer-router-ips={','.join(node.gateways)}",
                f"--peer-router-asns={','.join(asns)}",
                "--bgp-graceful-restart",
                "--advertise-cluster-ip",
                "--advertise-external-ip",
                "--advertise-loadbalancer-ip",
            ]
            found += ["--router-id=generate"] if 4 not in self.families else []
        return tuple(found)

    def environment(self) -> dict[str, str]:
        """``LAB_<NAME>_IP4`` and ``_IP6`` of every host that has such an address."""
        found = {}
        for host in self.hosts:
            for family in self.families:
                if address := host.address(family):
                    found[f"LAB_{host.name.upper()}_IP{family}"] = address
        return found


def pod_cidr(family: int, number: int) -> str:
    return f"10.244.{number}.0/24" if family == 4 else f"fd10:244:0:{number:x}::/64"


def compile_topology(
    nodes: int, ip_family: str, *, subnets: int = 1, has_bgp: bool = False
) -> Topology:
    """Who is where; ``ip_family`` is ipv4, ipv6 or dual. Pure.

    Of two subnets the first has the larger half of the nodes.
    """
    families = FAMILIES[ip_family]
    nets = SUBNETS[:subnets]
    in_first = -(-nodes // subnets)

    def on(networks: Networks, number: int) -> tuple[str, ...]:
        return tuple(
            f"{networks[family][number]}/{networks[family].prefixlen}" for family in families
        )

    def bare(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address.split("/")[0] for address in addresses)

    def lab_node(number: int) -> LabNode:
        subnet = 0 if number <= in_first else 1
        return LabNode(
            name=f"node{number}",
            number=number,
            addresses=bare(on(nets[subnet], 10 + number)),
            pod_cidrs=tuple(pod_cidr(family, number) for family in families),
            subnet=subnet,
            gateways=bare(on(nets[subnet], 1)),
        )

    lab_nodes = tuple(map(lab_node, range(1, nodes + 1)))

    def routes(gateways: tuple[str, ...], own: LabNode | None = None) -> tuple[str, ...]:
        to_pods = () if has_bgp else lab_nodes
        return tuple(f"default via {address}" for address in gateways) + tuple(
            f"{cidr} via {address}"
            for node in to_pods
            if node is not own
            for cidr, address in zip(node.pod_cidrs, node.addresses, strict=True)
        )

    doors = [(f"eth{1 + position}", on(nets[position], 1)) for position in range(1, subnets)]
    hosts = [
        Host(
            ROUTER,
            (("eth0", on(FABRIC_NETS, 1)), ("eth1", on(OUTSIDE_NETS, 1)), *doors),
            forwards=True,
        ),
        Host(
            CLIENT,
            (("eth0", on(OUTSIDE_NETS, 2)),),
            tuple(f"default via {address}" for address in bare(on(OUTSIDE_NETS, 1))),
        ),
        Host(APISERVER, (("eth0", on(FABRIC_NETS, 2)),), routes(bare(on(FABRIC_NETS, 1)))),
        Host(
            DESK,
            (("eth0", on(FABRIC_NETS, 3)),),
            tuple(f"default via {address}" for address in bare(on(FABRIC_NETS, 1))),
        ),
    ]
    hosts += [
        Host(
            node.name,
            (("eth0", on(nets[node.subnet], 10 + node.number)),),
            routes(node.gateways, node),
        )
        for node in lab_nodes
    ]
    return Topology(
        families=families,
        hosts=tuple(hosts),
        nodes=lab_nodes,
        service_cidrs=tuple(SERVICE_CIDRS[family] for family in families),
        has_bgp=has_bgp,
    )


def render_wiring(topology: Topology) -> str:
    """``ip -batch`` lines for the fabric's namespace: a bridge for each subnet, and all cables."""
    far = {node.name for node in topology.nodes if node.subnet == 1}
    lines = ["link add br0 type bridge", "link set br0 up"]
    for name, _ in topology.host(ROUTER).links[2:]:
        lines += ["link add br1 type bridge", "link set br1 up"]
        lines += [f"link add {ROUTER}-far type veth peer name {name} netns {ROUTER}"]
        lines += [f"link set {ROUTER}-far master br1 up"]
    for host in topology.hosts:
        lines += [f"link add {host.name} type veth peer name eth0 netns {host.name}"]
        if host.name == CLIENT:  # hangs on the router, not on the fabric
            lines += [f"link set {CLIENT} netns {ROUTER} name eth1"]
        else:
            lines += [f"link set {host.name} master br{int(host.name in far)} up"]
    return "".join(f"{line}\n" for line in lines)


def render_host(host: Host) -> str:
    """``ip -batch`` lines for one host's namespace: addresses and routes."""
    lines = []
    for link, addresses in host.links:
        lines += [f"link set {link} up"]
        for address in addresses:
            no_detection = " nodad" if ":" in address else ""
            lines += [f"address add {address} dev {link}{no_detection}"]
    lines += [f"route add {route}" for route in host.routes]
    return "".join(f"{line}\n" for line in lines)


def build(namespaces: Namespaces, topology: Topology) -> None:
    """Make the namespaces and wire them. Blocking; raises LabError."""
    for name in (FABRIC, *(host.name for host in topology.hosts)):
        namespaces.create(name)
    namespaces.run(FABRIC, ["ip", "-batch", "-"], stdin=render_wiring(topology))
    for host in topology.hosts:
        namespaces.run(host.name, ["ip", "-batch", "-"], stdin=render_host(host))
        if host.forwards:
            namespaces.inside(host.name, _forward)


def _forward() -> None:
    write_sysctl("net.ipv4.ip_forward", "1")
    write_sysctl("net.ipv6.conf.all.forwarding", "1")
    # Ways side by side: by connection, or one client would always go the same.
    for family in ("ipv4", "ipv6"):
        write_sysctl(f"net.{family}.fib_multipath_hash_policy", "1")
