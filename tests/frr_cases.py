"""Routers for the tests of FRR's configuration: one for each feature, and random ones."""

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from random import Random
from typing import Any

from msgspec import structs

from kube_router_py.routing.model import (
    Aggregate,
    Announcement,
    Bfd,
    Community,
    GracefulRestart,
    Kind,
    ListenRange,
    Neighbor,
    Network,
    PrefixRange,
    Prepend,
    Role,
    RouterConfig,
    Session,
)

ASN = 64512
POD_RANGE = PrefixRange(ip_network("10.244.0.0/16"), 24, 24)
POD_RANGE6 = PrefixRange(ip_network("fd00:244::/48"), 64, 64)


def exact(text: str) -> PrefixRange:
    network = ip_network(text)
    return PrefixRange(network, network.prefixlen, network.prefixlen)


def node(address: str, *accept: str, **more: Any) -> Neighbor:
    session = Session(
        **{
            "role": Role.NODE,
            "remote_as": "internal",
            "versions": (4,),
            "graceful_restart": True,
            "accept": tuple(exact(each) for each in accept),
            "description": f"node {address}",
            **more,
        }
    )
    return Neighbor(address=ip_address(address), session=session)


def outside(address: str, remote_as: Any = 65000, **more: Any) -> Neighbor:
    session = Session(**{"role": Role.EXTERNAL, "remote_as": remote_as, "versions": (4, 6), **more})
    return Neighbor(address=ip_address(address), session=session)


def link(name: str) -> Neighbor:
    session = Session(
        role=Role.EXTERNAL,
        remote_as="external",
        versions=(4, 6),
        password="x",
        ttl_security=5 if name == "eth2" else 0,
        multihop=5,
        local_address=ip_address("10.9.0.1"),
        bfd=Bfd(3, 300, 300),
        description="flag --peer-router-interfaces",
    )
    return Neighbor(interface=name, session=session)


def pods(prefix: str, **more: Any) -> Announcement:
    return Announcement(prefix=ip_network(prefix), kind=Kind.PODS, **more)


def vip(prefix: str, **more: Any) -> Announcement:
    return Announcement(prefix=ip_network(prefix), kind=Kind.SERVICE, **more)


def community(*parts: int) -> Community:
    return Community(parts)  # type: ignore[arg-type]


def router(**more: Any) -> RouterConfig:
    return RouterConfig(**{"asn": ASN, "router_id": IPv4Address("10.9.0.1"), **more})


_OWN = (pods("10.244.1.0/24"), vip("192.0.2.7/32"), vip("192.0.2.8/32"))
_OWN6 = (pods("fd00:244:1::/64"), vip("2001:db8::7/128"))
_ROUTER = outside("10.9.0.254")

CASES: dict[str, RouterConfig] = {
    "alone": router(),
    "full-mesh": router(
        neighbors=(
            node(
                "10.9.0.2",
                "10.244.2.0/24",
                next_hop_self=True,
                local_address=ip_address("10.9.0.1"),
            ),
            node("10.9.0.3", "10.244.3.0/24", "10.245.3.0/26"),
            node("10.9.0.10", "10.244.10.0/24", port=1790),
        ),
        announcements=_OWN,
        graceful_restart=GracefulRestart(),
        source=(ip_address("10.9.0.1"),),
    ),
    "dual-stack": router(
        neighbors=(
            node("10.9.0.2", "10.244.2.0/24"),
            node("fd00:9::2", "fd00:244:2::/64", versions=(6,)),
            _ROUTER,
        ),
        announcements=_OWN + _OWN6,
        source=(ip_address("10.9.0.1"), ip_address("fd00:9::1")),
    ),
    "external": router(
        neighbors=(
            outside(
                "10.9.0.253",
                65001,
                port=1790,
                password='k8s!md5#1$?"|é',
                local_address=ip_address("10.9.0.1"),
                multihop=5,
                hold_s=90,
                description="flag --peer-router-ips[0]",
                next_hop_self=True,
            ),
            outside("10.9.0.254", "external", hold_s=0, ttl_security=1, versions=(4,)),
            outside("fd00:9::fe", 4200000000, hold_s=9, ttl_security=3, versions=(6,)),
        ),
        announcements=_OWN + _OWN6,
        announce_pods_outside=False,
    ),
    "same-as-outside": router(
        neighbors=(
            outside("10.9.0.254", ASN, multihop=4, next_hop_self=True),
            outside("10.9.0.255", "internal", ttl_security=254),
        ),
        announcements=(*_OWN, vip("192.0.2.9/32", local_preference=250)),
        prepend=Prepend(asn=ASN, times=3),
    ),
    "as-per-node": router(
        neighbors=(
            node("10.9.0.2", "10.244.2.0/24", remote_as=64513),
            node("10.9.0.3", "10.244.3.0/24", remote_as="external", multihop=255),
        ),
        announcements=_OWN,
    ),
    "reflector": router(
        cluster_id=IPv4Address("0.0.0.42"),
        neighbors=(
            node("10.9.0.2", "10.244.2.0/24", reflector_client=True),
            node("10.9.0.3", "10.244.3.0/24", reflector_client=True),
            node("10.9.0.4", accept=(POD_RANGE,)),
            _ROUTER,
        ),
        announcements=_OWN,
    ),
    "reflector-client": router(
        neighbors=(node("10.9.0.2", accept=(POD_RANGE, POD_RANGE6), versions=(4, 6)),),
        announcements=_OWN,
    ),
    "bfd": router(
        neighbors=(
            node("10.9.0.2", "10.244.2.0/24", bfd=Bfd()),
            node("10.9.0.3", "10.244.3.0/24", bfd=Bfd(3, 300, 300)),
            outside("10.9.0.251", bfd=Bfd(3, 300, 300), ttl_security=3),
            outside("10.9.0.252", bfd=Bfd(3, 300, 300)),
            outside("10.9.0.253", bfd=Bfd(5, 100, 250)),
            outside("10.9.0.254", bfd=Bfd(5, 100, 250), multihop=3),
        ),
    ),
    "graceful-restart": router(
        neighbors=(node("10.9.0.2", "10.244.2.0/24"), outside("10.9.0.254", graceful_restart=True)),
        graceful_restart=GracefulRestart(restart_s=120, deferral_s=20),
    ),
    "policy": router(
        neighbors=(outside("10.9.0.253", 65001), outside("10.9.0.254", ASN)),
        announcements=(
            pods("10.244.1.0/24", communities=(community(65000, 1),), local_preference=50),
            vip("192.0.2.1/32", communities=(community(65535, 65281), community(65000, 9))),
            vip("192.0.2.2/32", communities=(community(4200000000, 1, 2), community(65000, 2, 3))),
            vip("192.0.2.3/32", local_preference=0),
            vip("192.0.2.4/32", peers=("10.9.0.254",)),
            vip("192.0.2.5/32", peers=("10.9.0.253", "10.9.0.254"), local_preference=4294967295),
            vip("192.0.2.6/32", peers=()),
            vip("192.0.2.7/32", communities=(community(65535, 65281), community(65000, 9))),
        ),
        communities=(community(65000, 100), community(65535, 666), community(65000, 1, 1)),
        prepend=Prepend(asn=65010, times=2),
    ),
    "well-known-communities": router(
        neighbors=(_ROUTER,),
        communities=(
            *(community(65535, low) for low in (*range(10), 665, 666, *range(65280, 65286))),
            community(0, 0),
            community(0, 1),
            community(65535, 65535),
        ),
    ),
    "long-lines": router(
        neighbors=(_ROUTER,),
        announcements=(
            vip("192.0.2.1/32", communities=tuple(community(65000, n) for n in range(64))),
            vip(
                "192.0.2.2/32",
                communities=tuple(community(4294967295, 4294967295, n) for n in range(64)),
            ),
        ),
        prepend=Prepend(asn=4294967295, times=255),
        communities=tuple(community(65001, n) for n in range(64)),
    ),
    "aggregate": router(
        neighbors=(outside("10.9.0.253", 65001), outside("10.9.0.254", 65002), node("10.9.0.2")),
        announcements=(
            *_OWN,
            vip("192.0.2.9/32", peers=("10.9.0.253",)),
            vip("198.51.100.1/32"),
            vip("203.0.113.0/32"),
        ),
        aggregates=(
            Aggregate(prefix=ip_network("192.0.2.0/24"), specific_to=("10.9.0.254",)),
            Aggregate(prefix=ip_network("198.51.100.0/24")),
            Aggregate(prefix=ip_network("203.0.112.0/24")),
            Aggregate(prefix=ip_network("203.0.113.0/32")),
        ),
    ),
    "imports": router(
        neighbors=(
            outside("10.9.0.251", accept=()),
            outside("10.9.0.252", accept=(PrefixRange(ip_network("0.0.0.0/0"), 0, 32),)),
            outside(
                "10.9.0.253",
                accept=(
                    PrefixRange(ip_network("172.16.0.0/12"), 12, 32),
                    PrefixRange(ip_network("172.16.0.0/12"), 16, 24),
                    PrefixRange(ip_network("2001:db8::/32"), 32, 128),
                    PrefixRange(ip_network("2001:db8::/32"), 48, 48),
                    exact("10.0.0.0/24"),
                    exact("10.0.1.0/24"),
                ),
            ),
            _ROUTER,
        ),
        refuse=(
            PrefixRange(ip_network("0.0.0.0/0"), 0, 0),
            PrefixRange(ip_network("10.96.0.0/12"), 12, 32),
            PrefixRange(ip_network("10.0.0.0/8"), 32, 32),
            PrefixRange(ip_network("fd00:96::/108"), 108, 128),
        ),
    ),
    "drain": router(
        neighbors=(node("10.9.0.2", "10.244.2.0/24"), _ROUTER), announcements=_OWN, drain=True
    ),
    "unnumbered": router(
        neighbors=(
            *map(link, ("bond0.100", "eth10", "eth2", "eth-1", "eth1", "ens1f0", "ens1f0np0")),
            _ROUTER,
        ),
        announcements=_OWN,
    ),
    "listen-ranges": router(
        listen_ranges=(
            ListenRange(
                network=ip_network("10.9.0.0/24"),
                session=Session(
                    role=Role.EXTERNAL, remote_as=65000, versions=(4,), password="secret", hold_s=30
                ),
                limit=30,
            ),
            ListenRange(
                network=ip_network("10.10.0.0/16"),
                session=Session(
                    role=Role.NODE,
                    remote_as="internal",
                    versions=(4, 6),
                    reflector_client=True,
                    bfd=Bfd(3, 300, 300),
                    graceful_restart=True,
                    accept=(POD_RANGE,),
                    description="clients",
                ),
            ),
            ListenRange(
                network=ip_network("fd00:9::/64"),
                session=Session(
                    role=Role.EXTERNAL,
                    remote_as="external",
                    versions=(6,),
                    multihop=3,
                    local_address=ip_address("fd00:9::1"),
                ),
            ),
        ),
        announcements=(*_OWN, vip("192.0.2.9/32", peers=("10.9.0.0/24",))),
    ),
    "paths": router(maximum_paths=1, neighbors=(_ROUTER,)),
    "most-paths": router(maximum_paths=256, neighbors=(_ROUTER,)),
    "crowd": router(
        neighbors=(
            *(node(f"10.9.{n >> 8}.{n & 255}", f"10.244.{n}.0/24") for n in range(2, 104)),
            outside("10.9.9.9", accept=(exact("198.18.0.0/24"),)),
        ),
        announcements=_OWN,
    ),
    "listener": router(
        listen=(ip_address("10.9.0.1"), ip_address("fd00:9::1")), port=1790, neighbors=(_ROUTER,)
    ),
    "odd-descriptions": router(
        neighbors=(
            outside("10.9.0.253", description=" annotation\nno router bgp  [1]\0 é " + "x" * 200),
            outside("10.9.0.254", description="\n\t"),
        )
    ),
}


class Walk:
    """Routers one after the other, each a few changes from the one before."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._neighbors: dict[str, Neighbor] = {}
        self._ranges: dict[Network, ListenRange] = {}
        self._announced: dict[Network, Announcement] = {}
        self.config = router(announcements=(pods("10.244.1.0/24"),))
        for _ in range(self._random.randrange(12)):
            self.step()

    def step(self) -> RouterConfig:
        for _ in range(self._random.choice((1, 1, 1, 2, 5))):
            change = self._random.choice(
                (
                    self._neighbor,
                    self._neighbor,
                    self._listen_range,
                    self._service,
                    self._service,
                    self._own,
                )
            )
            change()
        self.config = structs.replace(
            self.config,
            neighbors=tuple(sorted(self._neighbors.values(), key=lambda each: each.key)),
            listen_ranges=tuple(sorted(self._ranges.values(), key=lambda each: str(each.network))),
            announcements=tuple(
                sorted(self._announced.values(), key=lambda each: str(each.prefix))
            ),
        )
        return self.config

    def _neighbor(self) -> None:
        chance = self._random
        name = chance.choice(
            ("10.9.0.2", "10.9.0.3", "10.9.0.20", "10.9.1.2", "fd00:9::2", "eth0", "eth10", "eth9")
        )
        if name in self._neighbors and chance.random() < 0.3:
            del self._neighbors[name]
            return
        known = self._neighbors.get(name)
        session = self._session(known.session if known else None)
        if name.startswith("eth"):
            self._neighbors[name] = Neighbor(interface=name, session=session)
        else:
            self._neighbors[name] = Neighbor(address=ip_address(name), session=session)

    def _session(self, known: Session | None) -> Session:
        chance = self._random
        fields: dict[str, Any] = {
            "role": chance.choice(list(Role)),
            "remote_as": chance.choice(("internal", "external", ASN, 65000, 4200000001)),
            "versions": chance.choice(((4,), (6,), (4, 6))),
            "port": chance.choice((179, 179, 1790, 1791)),
            "password": chance.choice(("", "one", "tw!o", "#$?")),
            "local_address": chance.choice((None, ip_address("10.9.0.1"), ip_address("10.9.1.1"))),
            "multihop": chance.choice((0, 1, 2, 5, 255)),
            "ttl_security": chance.choice((0, 0, 1, 3)),
            "hold_s": chance.choice((None, 0, 9, 30, 90)),
            "bfd": chance.choice((None, Bfd(), Bfd(3, 300, 300), Bfd(5, 50, 60))),
            "graceful_restart": chance.random() < 0.5,
            "reflector_client": chance.random() < 0.3,
            "next_hop_self": chance.random() < 0.3,
            "accept": chance.choice(
                (None, (), (POD_RANGE,), (POD_RANGE, POD_RANGE6), (exact("10.244.2.0/24"),))
            ),
            "description": chance.choice(("", "node a", "annotation kube-router.io/peers[1]")),
        }
        if known is not None and chance.random() < 0.8:
            some = chance.sample(sorted(fields), chance.choice((1, 1, 2, 4)))
            fields = {**structs.asdict(known), **{name: fields[name] for name in some}}
        if fields["ttl_security"] and fields["multihop"] > 1:
            fields["multihop"] = 0
        return Session(**fields)

    def _listen_range(self) -> None:
        chance = self._random
        network = ip_network(chance.choice(("10.20.0.0/24", "10.21.0.0/16", "fd00:20::/64")))
        if network in self._ranges and chance.random() < 0.4:
            del self._ranges[network]
            return
        known = self._ranges.get(network)
        session = self._session(known.session if known else None)
        if session.port != 179:
            session = structs.replace(session, port=179)
        self._ranges[network] = ListenRange(
            network=network, session=session, limit=chance.choice((20, 100, 4000))
        )

    def _service(self) -> None:
        chance = self._random
        if chance.random() < 0.2:
            prefix: Network = ip_network(f"2001:db8::{chance.randrange(1, 9)}/128")
        else:
            prefix = IPv4Network((0xC0000200 + chance.randrange(40), 32))
        if prefix in self._announced and chance.random() < 0.4:
            del self._announced[prefix]
            return
        self._announced[prefix] = vip(
            str(prefix),
            communities=chance.choice(
                ((), (), (community(65535, 65281),), (community(65000, 7), community(65000, 8, 9)))
            ),
            local_preference=chance.choice((None, None, 50, 200)),
            peers=chance.choice((None, None, (), ("10.9.0.2",), ("10.9.0.3", "eth0"))),
        )

    def _own(self) -> None:
        chance = self._random
        fields: dict[str, Any] = {
            "cluster_id": chance.choice((None, IPv4Address("0.0.0.42"), IPv4Address("9.9.9.9"))),
            "graceful_restart": chance.choice(
                (None, GracefulRestart(), GracefulRestart(restart_s=120, deferral_s=20))
            ),
            "maximum_paths": chance.choice((1, 8, 64, 256)),
            "aggregates": chance.choice(
                (
                    (),
                    (
                        Aggregate(prefix=ip_network("192.0.2.0/28"), specific_to=("10.9.0.3",)),
                        Aggregate(prefix=ip_network("192.0.2.0/24")),
                        Aggregate(prefix=ip_network("2001:db8::/32")),
                    ),
                )
            ),
            "announce_pods_outside": chance.random() < 0.5,
            "communities": chance.choice(((), (community(65000, 1), community(1, 2, 3)))),
            "prepend": chance.choice((None, Prepend(asn=65010, times=2))),
            "refuse": chance.choice(
                (
                    (),
                    (PrefixRange(ip_network("10.96.0.0/12"), 12, 32),),
                    (PrefixRange(ip_network("10.96.0.0/12"), 12, 32), exact("fd00::1/128")),
                )
            ),
            "source": chance.choice(((), (ip_address("10.9.0.1"),), (ip_address("10.9.1.1"),))),
            "drain": chance.random() < 0.3,
        }
        name = chance.choice(sorted(fields))
        self.config = structs.replace(self.config, **{name: fields[name]})
        for prefix in (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")):
            if chance.random() < 0.5:
                self._announced[prefix] = pods(str(prefix))
