"""Who looks on is told what adapters do, whenever it began and however often they are opened."""

from kube_router_py.adapters import Host
from kube_router_py.kernel.fake_host import FakeIpsets, FakeIptables, FakeLinks, FakeSysctls
from kube_router_py.kernel.fake_ipvs import FakeIpvs
from kube_router_py.kernel.ports import HostPorts, IpsetSpec


def make() -> HostPorts:
    return HostPorts(FakeIpvs(), FakeLinks(), FakeIpsets(), FakeIptables(), FakeSysctls({}))


def test_whoever_looks_on_need_not_be_there_from_the_start() -> None:
    host = Host(make)
    ports = host.open()
    spec = IpsetSpec("one", "hash:ip", "inet")
    ports.ipsets.put_all({spec: {"192.0.2.1"}})  # nobody looks on
    seen: list[str] = []
    host.observe = lambda what, seconds: seen.append(what)
    ports.ipsets.put_all({spec: {"192.0.2.2"}})
    assert seen == ["ipset_v4_restore"]
    again = host.open()
    again.ipsets.put_all({spec: {"192.0.2.1"}})
    again.iptables.observe("iptables_v4_save", 0.1)
    assert seen == ["ipset_v4_restore", "ipset_v4_restore", "iptables_v4_save"]
