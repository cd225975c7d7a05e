"""The sets that the rules of the service proxy match, and the entries that Services give them.

A rule is never written for a Service: few rules stand for good (see ``service_rules``), and what a
Service changes are entries of sets.

    kube-router-svip         VIP                      addresses that stand for Services only
    kube-router-svip-prt     VIP,protocol:port        what is served there, NodePorts included
    kube-router-drop         VIP,protocol:port        nobody gets there
    kube-router-no-local     VIP,protocol:port        only pods and nodes of the cluster do
    kube-router-limited      VIP,protocol:port        only those in kube-router-allowed do
    kube-router-allowed      VIP,protocol:port,CIDR
    kube-router-hairpin      pod,protocol:port,pod    pods that may reach themselves
    kube-router-cluster      addresses and pod CIDRs of all nodes; this node's pods
    kube-router-local-cidrs  this node's pods, and its address
    kube-router-local-ips    addresses on this node's links

The first seven follow Services, the others nodes and pods. IPv6 has sets of its own, prefixed
``inet6:``. Entries are written as ipset(8) prints them. Pure.
"""

import socket
from collections.abc import Iterable

from msgspec import Struct

from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.proxy.model import PROTOCOL_NAMES, Guard, Hairpin, Vip, VirtualServerKey

FAMILIES = {int(socket.AF_INET): "inet", int(socket.AF_INET6): "inet6"}


class FamilySets(Struct, frozen=True):
    """The sets of one family."""

    svip: IpsetSpec
    svip_port: IpsetSpec
    drop: IpsetSpec
    no_local: IpsetSpec
    limited: IpsetSpec
    allowed: IpsetSpec
    hairpin: IpsetSpec
    cluster: IpsetSpec
    local: IpsetSpec
    local_ips: IpsetSpec

    def of_services(self) -> tuple[IpsetSpec, ...]:
        """Those that follow Services, in the order in which entries are added: whom a rule keeps
        out is known before what it serves, and what is served before its address."""
        return (
            *(self.allowed, self.limited, self.no_local, self.drop),
            *(self.hairpin, self.svip_port, self.svip),
        )

    def all(self) -> tuple[IpsetSpec, ...]:
        return (*self.of_services(), self.cluster, self.local, self.local_ips)


def _family_sets(family: str) -> FamilySets:
    def spec(name: str, kind: str) -> IpsetSpec:
        prefix = "inet6:" if family == "inet6" else ""
        return IpsetSpec(f"{prefix}kube-router-{name}", f"hash:{kind}", family)

    return FamilySets(
        svip=spec("svip", "ip"),
        svip_port=spec("svip-prt", "ip,port"),
        drop=spec("drop", "ip,port"),
        no_local=spec("no-local", "ip,port"),
        limited=spec("limited", "ip,port"),
        allowed=spec("allowed", "ip,port,net"),
        hairpin=spec("hairpin", "ip,port,ip"),
        cluster=spec("cluster", "net"),
        local=spec("local-cidrs", "net"),
        local_ips=spec("local-ips", "ip"),
    )


SETS = {number: _family_sets(name) for number, name in FAMILIES.items()}


def owned_sets() -> tuple[str, ...]:
    """The names of all sets that the service proxy makes, of both families."""
    return tuple(spec.name for sets in SETS.values() for spec in sets.all())


def marker_sets() -> tuple[str, ...]:
    """Sets, one of each family, that tell that this service proxy was here: kube-router has none of
    this name."""
    return tuple(sets.drop.name for sets in SETS.values())


Entries = dict[IpsetSpec, set[str]]
"""Entries by set; a set that is not there has none."""


def vip_entry(vip: Vip) -> tuple[IpsetSpec, str]:
    """Where and how an address is entered that stands for Services."""
    return SETS[vip.family].svip, str(vip)


def port_entry(key: VirtualServerKey) -> tuple[IpsetSpec, str]:
    """Where and how a virtual server (none of a fwmark) is entered."""
    return SETS[key.family].svip_port, _port_text(key)


def hairpin_entry(hairpin: Hairpin) -> tuple[IpsetSpec, str]:
    """Where and how an endpoint is entered that may reach itself."""
    real = hairpin.real_server
    address = socket.inet_ntop(real.family, real.address)
    protocol = PROTOCOL_NAMES[hairpin.protocol]
    return SETS[real.family].hairpin, f"{address},{protocol}:{real.port},{address}"


def guard_entries(key: VirtualServerKey, guard: Guard | None) -> Iterable[tuple[IpsetSpec, str]]:
    """What keeps clients from a virtual server, by set."""
    if guard is None:
        return
    sets, text = SETS[key.family], _port_text(key)
    if guard.everyone:
        yield sets.drop, text
    if guard.outsiders:
        yield sets.no_local, text
    if guard.source_ranges is not None:
        yield sets.limited, text
        host = f"/{8 * len(key.address)}"
        for cidr in guard.source_ranges:
            yield sets.allowed, f"{text},{cidr.removesuffix(host)}"


def _port_text(key: VirtualServerKey) -> str:
    address = socket.inet_ntop(key.family, key.address)
    return f"{address},{PROTOCOL_NAMES[key.protocol]}:{key.port}"


def put_entries(entries: Entries, found: Iterable[tuple[IpsetSpec, str]]) -> None:
    """Note entries by set."""
    for spec, entry in found:
        entries.setdefault(spec, set()).add(entry)
