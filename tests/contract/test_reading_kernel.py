"""What ``explain`` reads of a real kernel, in a network namespace of its own."""

import ipaddress
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.ports_reading import Way
from kube_router_py.kernel.reading import NodeReading
from kube_router_py.proxy.model import (
    IpvsOperation,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
)

real = pytest.mark.parametrize("world", ["real"], indirect=True)
VARIANTS = ("iptables-nft", "iptables-legacy")


def sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, timeout=60, capture_output=True)


@pytest.fixture
def reading(world: str) -> Iterator[NodeReading]:
    with closing(NodeReading("iptables-nft")) as found:
        yield found


@pytest.mark.netfilter
@real
@pytest.mark.parametrize("variant", VARIANTS)
def test_rules_of_both_variants(world: str, variant: str) -> None:
    other = VARIANTS[1 - VARIANTS.index(variant)]
    sh(f"{variant} -P FORWARD DROP", f"{variant} -t mangle -A OUTPUT -d 192.0.2.1 -j DROP")
    with closing(NodeReading(variant)) as reading:
        assert reading.variants() == (variant, other)
        found = reading.rules(variant, "inet")
        assert found.chains["mangle"]["OUTPUT"] == ("-d 192.0.2.1/32 -j DROP",)
        assert found.policies["filter", "FORWARD"] == "DROP"
        assert not any(reading.rules(other, "inet").chains.get("mangle", {}).get("OUTPUT", ()))
        # Looking made no table that was not there.
        assert reading.rules("iptables-legacy", "inet6").chains == {}
        wanted = ("--destination 192.0.2.1 -j DROP",)
        standing = found.chains["mangle"]["OUTPUT"]
        assert reading.same("inet", "mangle", "OUTPUT", wanted, standing)
        assert not reading.same("inet", "mangle", "OUTPUT", ("-j DROP",), standing)


@pytest.mark.netfilter
@real
def test_sets_and_other_tables(world: str, reading: NodeReading) -> None:
    sh("ipset create some hash:ip,port", "ipset add some 192.0.2.1,tcp:80")
    found = reading.ipset("some")
    assert found is not None
    assert (found.spec.type, found.entries) == ("hash:ip,port", frozenset(("192.0.2.1,tcp:80",)))
    assert reading.ipset("none") is None
    sh("nft add table inet guest")
    assert "table inet guest" in reading.nft()


@pytest.mark.netfilter
@real
def test_ways(world: str, reading: NodeReading) -> None:
    sh(
        "ip link add one type veth peer name two",
        "ip addr add 192.0.2.1/24 dev one",
        "ip link set one up",
        "ip link set two up",
        "ip route add 198.51.100.0/24 via 192.0.2.9",
        "ip route add blackhole 203.0.113.0/24",
    )
    assert reading.way("192.0.2.1") == Way("local", "lo")
    assert reading.way("192.0.2.7") == Way("unicast", "one")
    assert reading.way("198.51.100.7") == Way("unicast", "one", "192.0.2.9")
    assert reading.way("203.0.113.1").kind == "none"
    assert "unreachable" in reading.way("192.168.77.1").refused
    assert reading.way("2001:db8::1").kind == "none"
    with pytest.raises(KernelError, match="there is no link three"):
        reading.way("198.51.100.7", "192.0.2.7", "three")


@pytest.mark.kernel
@real
def test_one_virtual_server(world: str, reading: NodeReading) -> None:
    address, backend = (ipaddress.ip_address(each).packed for each in ("10.96.0.1", "10.0.0.2"))
    key = VirtualServerKey(int(socket.AF_INET), 6, address, 80)
    real_key = RealServerKey(int(socket.AF_INET), backend, 8080)
    other = VirtualServerKey(int(socket.AF_INET), 17, address, 80)
    with closing(NetlinkIpvs()) as ipvs:
        assert ipvs.read_one(key) is None
        failures = ipvs.apply(
            [
                IpvsOperation(Verb.ADD_VIRTUAL_SERVER, key, VirtualServer("rr")),
                IpvsOperation(Verb.ADD_VIRTUAL_SERVER, other, VirtualServer("rr")),
                IpvsOperation(
                    Verb.ADD_REAL_SERVER, key, real_server=real_key, real=RealServer(weight=3)
                ),
            ]
        )
        assert failures == []
        assert ipvs.read_one(key) == ipvs.read()[key]
    found = reading.virtual_server(key)
    assert found is not None
    assert found.real_servers == {real_key: RealServer(weight=3)}
    assert reading.virtual_server(other) is not None
    unknown = VirtualServerKey(int(socket.AF_INET), 6, address, 81)
    assert reading.virtual_server(unknown) is None
