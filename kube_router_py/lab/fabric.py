"""The wires of the lab and who has which address.

    client ---- router ----+---------+---------+--- ...        (the fabric, one bridge)
    outside     outside    |         |         |
                       apiserver   node1     node2

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
APISERVER = "apiserver"
MAX_NODES = 50

FABRIC_NETS: Networks = {4: IPv4Network("10.10.0.0/24"), 6: IPv6Network("fd10:10::/64")}
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
    """A node as Kubernetes sees it."""

    name: str
    number: int
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]


@dataclass(frozen=True)
class Topology:
    """All hosts of the lab; ``families`` in order of preference."""

    families: tuple[int, ...]
    hosts: tuple[Host, ...]
    nodes: tuple[LabNode, ...]
    service_cidrs: tuple[str, ...]

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def agent_args(self) -> tuple[str, ...]:
        """What the agents must be told about this cluster; IPv4 alone is their default."""
        if self.families == (4,):
            return ()
        families = [f"--enable-ipv{f}={str(f in self.families).lower()}" for f in (4, 6)]
        return (*families, f"--service-cluster-ip-range={','.join(self.service_cidrs)}")

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


def compile_topology(nodes: int, ip_family: str) -> Topology:
    """Who is where; ``ip_family`` is ipv4, ipv6 or dual. Pure."""
    families = FAMILIES[ip_family]

    def on(networks: Networks, number: int) -> tuple[str, ...]:
        return tuple(
            f"{networks[family][number]}/{networks[family].prefixlen}" for family in families
        )

    def bare(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address.split("/")[0] for address in addresses)

    lab_nodes = tuple(
        LabNode(
            name=f"node{number}",
            number=number,
            addresses=bare(on(FABRIC_NETS, 10 + number)),
            pod_cidrs=tuple(pod_cidr(family, number) for family in families),
        )
        for number in range(1, nodes + 1)
    )
    gateway = tuple(f"default via {address}" for address in bare(on(FABRIC_NETS, 1)))

    def to_pods(own: LabNode | None) -> tuple[str, ...]:
        return tuple(
            f"{cidr} via {address}"
            for node in lab_nodes
            if node is not own
            for cidr, address in zip(node.pod_cidrs, node.addresses, strict=True)
        )

    hosts = [
        Host(ROUTER, (("eth0", on(FABRIC_NETS, 1)), ("eth1", on(OUTSIDE_NETS, 1))), forwards=True),
        Host(
            CLIENT,
            (("eth0", on(OUTSIDE_NETS, 2)),),
            tuple(f"default via {address}" for address in bare(on(OUTSIDE_NETS, 1))),
        ),
        Host(APISERVER, (("eth0", on(FABRIC_NETS, 2)),), gateway + to_pods(None)),
    ]
    hosts += [
        Host(node.name, (("eth0", on(FABRIC_NETS, 10 + node.number)),), gateway + to_pods(node))
        for node in lab_nodes
    ]
    return Topology(
        families=families,
        hosts=tuple(hosts),
        nodes=lab_nodes,
        service_cidrs=tuple(SERVICE_CIDRS[family] for family in families),
    )


def render_wiring(topology: Topology) -> str:
    """``ip -batch`` lines for the fabric's namespace: the bridge and all cables."""
    lines = ["link add br0 type bridge", "link set br0 up"]
    for host in topology.hosts:
        lines += [f"link add {host.name} type veth peer name eth0 netns {host.name}"]
        if host.name == CLIENT:  # hangs on the router, not on the fabric
            lines += [f"link set {CLIENT} netns {ROUTER} name eth1"]
        else:
            lines += [f"link set {host.name} master br0 up"]
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
