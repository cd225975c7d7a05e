"""How full the kernel's tables of connections are."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.connection_tables import (
    IpvsConnections,
    ServerConnections,
    Tracked,
    parse_ip_vs,
    read_ipvs_connections,
    read_tracked,
)
from kube_router_py.observe.connections import ConnectionsPage, tracked_text
from kube_router_py.proxy.model import VirtualServerKey

# As Linux 6.1 prints it.
LISTING = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr persistent 10800 FFFFFFFF
  -> 0AF40203:1F90      Masq    1      3          4
  -> 0AF40102:1F90      Masq    0      1          0
UDP  0A60000A:0035 rr
TCP  [fd00:0010:0000:0000:0000:0000:0000:000a]:01BB rr
  -> [fd00:0000:0000:0002:0000:0000:0000:0003]:20FB      Masq    1      7          0
FWM  00004001 mh
  -> [fd00:0000:0000:0002:0000:0000:0000:0004]:20FB      Tunnel  1      1          2
FWM  00004002 mh
  -> 0AF40203:1F90      Tunnel  1      0          5
"""
WEB = VirtualServerKey(socket.AF_INET, 6, socket.inet_aton("10.96.0.10"), 80)
DNS = VirtualServerKey(socket.AF_INET, 17, socket.inet_aton("10.96.0.10"), 53)
WEB6 = VirtualServerKey(socket.AF_INET6, 6, socket.inet_pton(socket.AF_INET6, "fd00:10::a"), 443)
FOUND = {
    WEB: ServerConnections(4, 4),
    DNS: ServerConnections(0, 0),
    WEB6: ServerConnections(7, 0),
    VirtualServerKey(socket.AF_INET6, 0, b"", 0, 0x4001): ServerConnections(1, 2),
    VirtualServerKey(socket.AF_INET, 0, b"", 0, 0x4002): ServerConnections(0, 5),
}


def test_the_kernels_list_is_read(tmp_path: Path) -> None:
    assert parse_ip_vs(LISTING.splitlines()) == IpvsConnections(4096, FOUND)
    path = tmp_path / "ip_vs"
    path.write_text(LISTING)
    assert read_ipvs_connections(path).servers == FOUND
    with pytest.raises(KernelError, match="missing: No such file"):
        read_ipvs_connections(tmp_path / "missing")


def values(text: bytes) -> dict[str, int]:
    found = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.removeprefix("kube_router_")] = int(value)
    return found


def owner_of(key: VirtualServerKey) -> tuple[str, VirtualServerKey] | None:
    """The first of the marked servers is that of a port which has another server, too."""
    owners: Mapping[VirtualServerKey, tuple[str, VirtualServerKey]] = {
        WEB: ("default/web", WEB),
        DNS: ("kube-system/dns", DNS),
        WEB6: ("default/web", WEB6),
        [*FOUND][3]: ("default/web", WEB6),
    }
    return owners.get(key)


def test_connections_are_added_up_by_the_port_of_a_service() -> None:
    page = ConnectionsPage(owner_of, lambda: IpvsConnections(4096, FOUND))
    found = values(page.text())

    def labels(namespace: str, service: str, protocol: str, port: int) -> str:
        return (
            f'{{svc_namespace="{namespace}",service_name="{service}",protocol="{protocol}",'
            f'port="{port}"}}'
        )

    web, web6, dns = (
        labels("default", "web", "tcp", 80),
        labels("default", "web", "tcp", 443),
        labels("kube-system", "dns", "udp", 53),
    )
    assert found == {
        f"service_active_connections{web}": 4,
        f"service_inactive_connections{web}": 4,
        f"service_active_connections{web6}": 8,
        f"service_inactive_connections{web6}": 2,
        f"service_active_connections{dns}": 0,
        f"service_inactive_connections{dns}": 0,
        # Nobody's, too.
        'ipvs_connections{state="active"}': 12,
        'ipvs_connections{state="inactive"}': 11,
        "ipvs_connection_table_buckets": 4096,
        "ipvs_series_dropped": 0,
    }


def test_there_are_never_more_series_than_allowed() -> None:
    page = ConnectionsPage(owner_of, lambda: IpvsConnections(4096, FOUND), limit=1)
    found = values(page.text())
    of_services = {key: value for key, value in found.items() if key.startswith("service_")}
    assert len(of_services) == 4
    other = '{svc_namespace="",service_name="other",protocol="",port="0"}'
    assert of_services[f"service_active_connections{other}"] == 4
    assert of_services[f"service_inactive_connections{other}"] == 4
    assert found["ipvs_series_dropped"] == 2


def test_the_list_is_read_every_15_s_and_without_ipvs_there_is_none() -> None:
    now_s = [0.0]
    reads: list[float] = []

    def read() -> IpvsConnections:
        reads.append(now_s[0])
        raise KernelError("/proc/net/ip_vs: No such file or directory")

    page = ConnectionsPage(owner_of, read, lambda: now_s[0])
    for at in (0.0, 14.9, 15.0):
        now_s[0] = at
        assert values(page.text())['ipvs_connections{state="active"}'] == 0
    assert reads == [0.0, 15.0]


def test_what_conntrack_follows(tmp_path: Path) -> None:
    assert read_tracked(tmp_path) is None
    assert tracked_text(lambda: None) == b""
    (tmp_path / "nf_conntrack_count").write_text("123\n")
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    assert read_tracked(tmp_path) == Tracked(123, 262144)
    found = values(tracked_text(lambda: read_tracked(tmp_path)))
    assert found == {"conntrack_entries": 123, "conntrack_entries_max": 262144}
