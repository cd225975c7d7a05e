"""Routers outside the cluster, which flags or else this node's annotations name, as neighbors.

Pure. Routers that flags name suppress those of annotations altogether, as in kube-router. A session
carries every enabled address family that the node has an address of, as there, unless the same
router has one in the other family, too: then each carries its own. The n-th IPv4 and the n-th IPv6
router of one AS count as the same one.

What does not work leaves out one router: an address of a family that is not enabled or that the
node lacks, a local address of the other family, a password that FRR cannot take or a Secret that
is not there (a session without password is not what was meant), an address that is a node's or
another router's. The hold time of the flags is for routers outside only, as in kube-router.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import Member
from kube_router_py.routing.bfd import flag_bfd
from kube_router_py.routing.identity import usable_versions
from kube_router_py.routing.model import (
    Address,
    ListenRange,
    Neighbor,
    Role,
    Session,
    Version,
)
from kube_router_py.routing.passwords import (
    SecretRef,
    checked_password,
    decode_password,
    secret_password,
    split_list,
)
from kube_router_py.routing.peer_annotations import annotated_peers
from kube_router_py.routing.peer_spec import DEFAULT_PORT, PeerSpec
from kube_router_py.routing.prefixes import prefix_order
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import shown
from kube_router_py.routing.values import unusable_neighbor

_IPS = "--peer-router-ips"
_FILE = "--peer-router-passwords-file"


class Externals(Struct, frozen=True, kw_only=True):
    """Neighbors outside, sorted by key, and those that may come by themselves, by network."""

    neighbors: tuple[Neighbor, ...] = ()
    listen_ranges: tuple[ListenRange, ...] = ()


def external_peers(
    view: NodeView, settings: RoutingSettings, password_list: str = ""
) -> tuple[tuple[PeerSpec, ...], list[Problem]]:
    """The routers outside that flags, or else annotations, describe.

    ``password_list`` is what the file of ``--peer-router-passwords-file`` holds. While somebody
    writes it, it may be short for a moment, and all sessions would go: whoever reads it asks
    ``password_list_mistake`` first, and goes on with what it held before.
    """
    if not settings.peer_addresses:
        specs, problems = annotated_peers(view)
        return specs, list(problems)
    return _flag_peers(settings, password_list)


def password_list_mistake(text: str, settings: RoutingSettings) -> str:
    """What keeps the content of the passwords file from being used, or ``""``."""
    try:
        found = len(split_list(text))
    except ValueError as error:
        return f"the file {error}"
    wanted = len(settings.peer_addresses)
    if found == wanted:
        return ""
    return f"the file has {found} items, but {_IPS} has {wanted}; give one for each router"


def secret_refs(specs: Iterable[PeerSpec]) -> frozenset[SecretRef]:
    """The entries of Secrets that ``external_neighbors`` needs the content of."""
    return frozenset(spec.secret for spec in specs if spec.secret is not None)


def external_neighbors(
    own: Member,
    asn: int,
    specs: Sequence[PeerSpec],
    settings: RoutingSettings,
    secrets: Mapping[SecretRef, bytes] | None = None,
    nodes: Collection[str] = (),
) -> tuple[Externals, list[Problem]]:
    """Neighbors outside the cluster. ``asn`` is ours, ``nodes`` the keys of neighbors inside."""
    builder = _Builder(own, asn, settings, secrets or {}, nodes)
    admitted = [spec for spec in specs if builder.admits(spec)]
    families = _families(admitted, usable_versions(own, settings))
    neighbors: list[Neighbor] = []
    ranges: list[ListenRange] = []
    for spec, versions in zip(admitted, families, strict=True):
        session = builder.session(spec, versions)
        if spec.network is not None:
            ranges.append(ListenRange(network=spec.network, session=session))
        else:
            neighbor = Neighbor(address=spec.address, interface=spec.interface, session=session)
            neighbors.append(neighbor)
    externals = Externals(
        neighbors=tuple(sorted(neighbors, key=lambda each: each.key)),
        listen_ranges=tuple(sorted(ranges, key=lambda each: prefix_order(each.network))),
    )
    return externals, builder.problems


class _Builder:
    """What routers are judged by, and which of them are taken already."""

    def __init__(
        self,
        own: Member,
        asn: int,
        settings: RoutingSettings,
        secrets: Mapping[SecretRef, bytes],
        nodes: Collection[str],
    ) -> None:
        self._own, self._asn, self._settings = own, asn, settings
        self._secrets, self._nodes = secrets, nodes
        self._versions = usable_versions(own, settings)
        self._taken: dict[str, PeerSpec] = {}
        self._ranges: list[PeerSpec] = []
        self._passwords: dict[SecretRef, str] = {}
        self.problems: list[Problem] = []

    def admits(self, spec: PeerSpec) -> bool:
        """Whether there can be a session as described; if not, why is told."""
        checks = (self._family, self._local_address, self._place, self._password)
        for place, reason in (check(spec) for check in checks):
            if reason:
                reason = f"{reason}; this router is left out"
                self.problems.append(Problem(spec.object, spec.field + place, reason))
                return False
        if spec.network is not None:
            self._ranges.append(spec)
        else:
            self._taken[_key(spec)] = spec
        return True

    def session(self, spec: PeerSpec, versions: tuple[Version, ...]) -> Session:
        # FRR keeps neither for a neighbor of our own AS or behind an interface.
        is_near = bool(spec.interface) or spec.remote_as in ("internal", self._asn)
        hops = self._settings.peer_multihop if spec.multihop is None else spec.multihop
        restarts = spec.graceful_restart
        return Session(
            role=Role.EXTERNAL,
            remote_as=spec.remote_as,
            versions=versions,
            port=spec.port,
            password=self._passwords[spec.secret] if spec.secret else spec.password,
            local_address=self._local(spec),
            multihop=0 if is_near or spec.ttl_security or hops < 2 else hops,
            ttl_security=spec.ttl_security,
            hold_s=self._settings.hold_s if spec.hold_s is None else spec.hold_s,
            bfd=spec.bfd,
            graceful_restart=(
                self._settings.graceful_restart_outside if restarts is None else restarts
            ),
            next_hop_self=self._settings.override_nexthop,
            description=spec.description,
        )

    def _local(self, spec: PeerSpec) -> Address | None:
        if spec.local_address is not None:
            return spec.local_address
        return self._own.address_of(4 if spec.version == 4 else 6) if spec.version else None

    def _family(self, spec: PeerSpec) -> tuple[str, str]:
        if not self._versions:
            return "", "the node has no address that sessions can be held with"
        if not spec.version or spec.version in self._versions:
            return "", ""
        if spec.version in self._settings.versions:
            return "", f"the node has no usable IPv{spec.version} address to reach it from"
        return "", f"it is an IPv{spec.version} address, and --enable-ipv{spec.version}=false"

    def _local_address(self, spec: PeerSpec) -> tuple[str, str]:
        local = spec.local_address
        if local is None or local.version == spec.version:
            return "", ""
        reason = f"{local} is of another address family than the router; give one of IPv"
        return ".localip", f"{reason}{spec.version}"

    def _place(self, spec: PeerSpec) -> tuple[str, str]:
        """Nobody else may be there: FRR tells neighbors apart by their addresses."""
        if spec.network is not None:
            for other in self._ranges:
                if other.network is not None and spec.network.overlaps(other.network):
                    return ".listenrange", f"{spec.network} overlaps with {other.network}"
            return "", ""
        key = _key(spec)
        if spec.address is not None and spec.address in (*self._own.addresses, self._local(spec)):
            return "", f"{key} is this node's own address"
        if key in self._nodes:
            return "", f"{key} is the address of a node of this cluster"
        if key in self._taken:
            return "", f"{key} is named before, by {self._taken[key].description}"
        return "", ""

    def _password(self, spec: PeerSpec) -> tuple[str, str]:
        if spec.secret is None:
            return "", ""
        place = ".passwordsecretref"
        content = self._secrets.get(spec.secret)
        if content is None:
            return place, f"Secret {spec.secret.name} with key {spec.secret.key} cannot be read"
        try:
            self._passwords[spec.secret] = secret_password(content)
        except ValueError as error:
            return place, f"what Secret {spec.secret.name} has as {spec.secret.key} {error}"
        return "", ""


def _key(spec: PeerSpec) -> str:
    return spec.interface or str(spec.address)


def _families(
    specs: Sequence[PeerSpec], versions: tuple[Version, ...]
) -> list[tuple[Version, ...]]:
    """What each session carries: see above. Neighbors and ranges are no pairs of each other."""
    counts: dict[tuple[object, bool, int], int] = defaultdict(int)
    places: list[int] = []
    for spec in specs:
        group = (spec.remote_as, spec.network is None, spec.version)
        places.append(counts[group])
        counts[group] += 1
    carried: list[tuple[Version, ...]] = []
    for spec, place in zip(specs, places, strict=True):
        own: Version = 4 if spec.version == 4 else 6
        other: Version = 6 if own == 4 else 4
        twins = counts[spec.remote_as, spec.network is None, other] if spec.version else 0
        carried.append((own,) if place < twins else versions)
    return carried


# --- routers that flags name --------------------------------------------------------------------


def _flag_peers(
    settings: RoutingSettings, password_list: str
) -> tuple[tuple[PeerSpec, ...], list[Problem]]:
    bfd, problems = flag_bfd(settings) if settings.peer_bfd else (None, [])
    source, passwords = "Flag --peer-router-passwords", settings.peer_passwords
    check: Callable[[str], str] = _checked
    if not passwords and settings.peer_passwords_file:
        source, check = f"Flag {_FILE}", decode_password
        if mistake := password_list_mistake(password_list, settings):
            reason = f"{mistake}; no router outside has a session until then"
            return (), [Problem(source, "", reason), *problems]
        passwords = split_list(password_list)
    specs: list[PeerSpec] = []
    for index, address in enumerate(settings.peer_addresses):
        if reason := unusable_neighbor(address):
            reason = f"{shown(str(address))} is {reason}; this router is left out"
            problems.append(Problem(f"Flag {_IPS}", f"[{index}]", reason))
            continue
        try:
            password = check(passwords[index]) if passwords else ""
        except ValueError as error:
            reason = f"the password {error}; this router is left out"
            problems.append(Problem(source, f"[{index}]", reason))
            continue
        spec = PeerSpec(
            object=f"Flag {_IPS}",
            field=f"[{index}]",
            description=f"flag {_IPS}[{index}]",
            address=address,
            remote_as=settings.peer_asns[index],
            port=settings.peer_ports[index] if settings.peer_ports else DEFAULT_PORT,
            password=password,
            bfd=bfd,
        )
        specs.append(spec)
    return tuple(specs), problems


def _checked(password: str) -> str:
    """One that the flag's own check has decoded."""
    return checked_password(password.encode())
