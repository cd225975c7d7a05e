"""What this node announces: its Pod CIDRs, and addresses of Services, one Service at a time. Pure.

Two Services may have the same address. It is announced if either of them wants that, on the terms
of the older one that does (by creation time, then by name); a younger one with other terms gets a
Problem. There is an end to how many different terms there can be, see ``distinct_terms``. Where the
service proxy runs on this node, nothing is announced that it has not programmed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from kube_router_py.cluster.objects import EndpointSlice, Service
from kube_router_py.problem import Problem
from kube_router_py.routing.distinct_terms import DistinctTerms
from kube_router_py.routing.exports import (
    COMMUNITIES_ANNOTATION,
    LOCAL_PREFERENCE_ANNOTATION,
    PEERS_ANNOTATION,
    ServiceExport,
    compile_export,
)
from kube_router_py.routing.imports import service_ranges
from kube_router_py.routing.model import Address, Announcement, Kind, Network
from kube_router_py.routing.prefixes import host_prefix, prefix_order
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import annotation_field
from kube_router_py.services import is_inside, unusable_address

_NOTHING = ServiceExport("")

_TOO_MANY = (
    "metadata.annotations",
    "there are more combinations of communities, local preference and peers than FRR can take, and "
    "those of older Services count: it is announced to nobody; annotate it as another Service is",
)

T = TypeVar("T")


def pod_announcements(
    cidrs: Iterable[Network], settings: RoutingSettings, node: str
) -> tuple[tuple[Announcement, ...], tuple[Problem, ...]]:
    """The Pod CIDRs of this node in the enabled families, sorted, each once.

    What cannot be a network of Pods (everything, loopback, multicast) is left out and told.
    """
    found: set[Network] = set()
    problems: set[Problem] = set()
    for cidr in cidrs:
        wrong = unusable_address(cidr.network_address.packed) if cidr.prefixlen else "everything"
        if wrong:
            reason = f"{cidr} is {wrong}, no network of Pods; it is not announced"
            problems.add(Problem(f"Node {node}", "spec.podCIDRs", reason))
        elif cidr.version in settings.versions:
            found.add(cidr)
    ordered = sorted(found, key=prefix_order)
    return tuple(Announcement(prefix=each, kind=Kind.PODS) for each in ordered), tuple(
        sorted(problems)
    )


class Announcements:
    """An index over Services; every method costs what it touches, not what it holds.

    What changes something returns the prefixes that are announced otherwise than before, or no
    more, or newly.
    """

    def __init__(self, node: str, settings: RoutingSettings, peers: Set[str] = frozenset()) -> None:
        self._node, self._settings = node, settings
        self._ranges = service_ranges(settings)
        self._peers = frozenset(peers)
        # Packed addresses that the proxy has programmed; None: there is no proxy to wait for.
        self._programmed: set[bytes] | None = set() if settings.has_proxy else None
        self._exports: dict[str, ServiceExport] = {}
        # Who wants an address announced: mostly one Service, so that tuples are enough.
        self._claimants: dict[bytes, tuple[str, ...]] = {}
        # Addresses outside the ranges of flags and pools, and how many Services have each.
        self._outside: dict[bytes, int] = {}
        self._outside_shown: tuple[Address, ...] | None = None
        self._with_problems: set[str] = set()
        self._with_peers: set[str] = set()
        self._contested: set[bytes] = set()
        self._distinct = DistinctTerms(self._peers)
        # Announcements by address, sorted; kept so, since sorting them all would cost more than
        # anything else that one change does.
        self._order: list[tuple[int, bytes]] = []
        self._sorted: list[Announcement] = []
        self._current: tuple[Announcement, ...] | None = None

    # --- what changes it --------------------------------------------------------------------

    def update(
        self, key: str, service: Service | None, slices: Sequence[EndpointSlice] = ()
    ) -> frozenset[Network]:
        """Replace Service ``key`` (``namespace/name``) and its slices; None: there is none."""
        new = _NOTHING
        if service is not None:
            new = compile_export(service, slices, self._node, self._settings)
        old = self._exports.get(key, _NOTHING)
        if new.addresses or new.problems:
            self._exports[key] = new
        else:
            self._exports.pop(key, None)
        _set_member(self._with_problems, key, is_member=bool(new.problems))
        _set_member(self._with_peers, key, is_member=bool(new.addresses and new.terms.peers))
        for packed in new.addresses - old.addresses:
            self._note_outside(packed)
        for packed in old.addresses - new.addresses:
            if packed in self._outside:
                self._outside[packed] -= 1
                if not self._outside[packed]:
                    del self._outside[packed]
                    self._outside_shown = None
        for packed in old.announced ^ new.announced:
            self._claim(packed, key, is_claimed=packed in new.announced)
        touched = old.announced ^ new.announced
        if (old.created, old.terms, old.pooled) != (new.created, new.terms, new.pooled):
            touched = old.announced | new.announced
        return self._place(touched | self._reconsidered(key, old, new))

    def _note_outside(self, packed: bytes) -> None:
        if not is_inside(packed, self._ranges):
            self._outside[packed] = self._outside.get(packed, 0) + 1
            self._outside_shown = None

    def _reconsidered(self, key: str, old: ServiceExport, new: ServiceExport) -> frozenset[bytes]:
        """What is announced by Services whose terms are now admitted, or not any more."""
        before, after = old.unusual, new.unusual
        if before == after and (not after or old.created == new.created):
            return frozenset()
        services = self._distinct.update(key, before, after, _rank(key, new))
        return frozenset(packed for each in services for packed in self._announced_by(each))

    def _announced_by(self, key: str) -> frozenset[bytes]:
        return self._exports.get(key, _NOTHING).announced

    def remove(self, key: str) -> frozenset[Network]:
        """Forget a Service."""
        return self.update(key, None)

    def follow_settings(self, settings: RoutingSettings) -> None:
        """Replace flags and pools. What depends on them changes as each Service is updated."""
        ranges = service_ranges(settings)
        self._settings = settings
        if ranges == self._ranges:
            return
        self._ranges, self._outside_shown = ranges, None
        self._outside.clear()
        for export in self._exports.values():
            for packed in export.addresses:
                self._note_outside(packed)

    def follow_peers(self, peers: Set[str]) -> frozenset[Network]:
        """Replace the keys of the neighbors outside that Services may choose among."""
        if peers == self._peers:
            return frozenset()
        self._peers = frozenset(peers)
        touched = self._with_peers | self._distinct.follow_peers(peers)
        return self._place({packed for key in touched for packed in self._announced_by(key)})

    def follow_programmed(self, programmed: Set[Address] | None) -> frozenset[Network]:
        """Replace the addresses that this node's proxy has programmed; None: it has no proxy.

        Costs what there is; ``change_programmed`` costs what differs.
        """
        old = self._programmed
        new = None if programmed is None else {each.packed for each in programmed}
        self._programmed = new
        if old is None or new is None:
            return self._place(self._claimants) if old is not new else frozenset()
        return self._place(old ^ new)

    def change_programmed(
        self, added: Iterable[Address] = (), removed: Iterable[Address] = ()
    ) -> frozenset[Network]:
        """The proxy of this node has programmed some addresses, and is about to remove others."""
        if self._programmed is None:
            return frozenset()
        gone = {each.packed for each in removed}
        come = {each.packed for each in added}
        self._programmed -= gone
        self._programmed |= come
        return self._place(gone | come)

    # --- what it says -----------------------------------------------------------------------

    def keys(self) -> frozenset[str]:
        """The Services of which something is held."""
        return frozenset(self._exports)

    def services_at(self, address: Address) -> tuple[str, ...]:
        """The Services that want an address announced; the terms of the first one count."""
        return self._claimants.get(address.packed, ())

    @property
    def number(self) -> int:
        """How many there are. For any thread: ``current`` is for the one that changes them."""
        return len(self._sorted)

    def current(self) -> tuple[Announcement, ...]:
        """What is announced of Services, sorted by prefix."""
        if self._current is None:
            self._current = tuple(self._sorted)
        return self._current

    def outside_ranges(self) -> tuple[Address, ...]:
        """The Services' addresses, announced or not, that lie in no range of flags and pools.
        Sorted."""
        if self._outside_shown is None:
            self._outside_shown = tuple(map(_address, sorted(self._outside, key=_address_order)))
        return self._outside_shown

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with Services, as far as it concerns announcing them; sorted."""
        found = {each for key in self._with_problems for each in self._exports[key].problems}
        found.update(self._unknown_peers())
        found.update(self._conflicts())
        found.update(Problem(f"Service {key}", *_TOO_MANY) for key in self._distinct.refused())
        return tuple(sorted(found))

    def _unknown_peers(self) -> Iterator[Problem]:
        for key in self._with_peers:
            terms = self._exports[key].terms
            for peer in terms.peers or ():
                if peer not in self._peers:
                    reason = f"{peer} is no configured router outside the cluster; it is left out"
                    yield Problem(f"Service {key}", annotation_field(PEERS_ANNOTATION), reason)

    def _conflicts(self) -> Iterator[Problem]:
        for packed in self._contested:
            holder, *others = self._claimants[packed]
            for key in others:
                for name, differs in self._differences(packed, holder, key):
                    if differs:
                        reason = (
                            f"{_address(packed)} is announced as the older Service {holder} says; "
                            "give both the same annotation"
                        )
                        yield Problem(f"Service {key}", annotation_field(name), reason)

    def _differences(self, packed: bytes, one: str, other: str) -> Iterator[tuple[str, bool]]:
        a, b = self._exports[one].terms_of(packed), self._exports[other].terms_of(packed)
        yield COMMUNITIES_ANNOTATION, a.communities != b.communities
        yield LOCAL_PREFERENCE_ANNOTATION, a.local_preference != b.local_preference
        yield PEERS_ANNOTATION, a.peers != b.peers

    # --- the index ----------------------------------------------------------------------------

    def _claim(self, packed: bytes, key: str, *, is_claimed: bool) -> None:
        left = [each for each in self._claimants.get(packed, ()) if each != key]
        if is_claimed:
            left.append(key)
        if left:
            self._claimants[packed] = tuple(left)
        else:
            self._claimants.pop(packed, None)

    def _place(self, touched: Iterable[bytes]) -> frozenset[Network]:
        """Bring the announcements of some addresses up to date."""
        changed: set[Network] = set()
        for packed in touched:
            claimants = self._claimants.get(packed, ())
            if len(claimants) > 1:
                claimants = self._claimants[packed] = self._ranked(claimants)
            _set_member(self._contested, packed, is_member=len(claimants) > 1)
            place = _address_order(packed)
            index = bisect_left(self._order, place)
            is_known = index < len(self._order) and self._order[index] == place
            old = self._sorted[index] if is_known else None
            new = self._announcement(packed, claimants, old)
            if new == old:
                continue
            if new is None:
                del self._order[index], self._sorted[index]
            elif is_known:
                self._sorted[index] = new
            else:
                self._order.insert(index, place)
                self._sorted.insert(index, new)
            shown = new or old
            assert shown is not None
            changed.add(shown.prefix)
        if changed:
            self._current = None
        return frozenset(changed)

    def _ranked(self, keys: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(keys, key=lambda key: _rank(key, self._exports[key])))

    def _announcement(
        self, packed: bytes, claimants: tuple[str, ...], old: Announcement | None
    ) -> Announcement | None:
        is_programmed = self._programmed is None or packed in self._programmed
        if not claimants or not is_programmed:
            return None
        terms = self._exports[claimants[0]].terms_of(packed)
        if not self._distinct.admits(terms):
            return None
        peers = terms.peers
        if peers is not None:
            peers = tuple(each for each in peers if each in self._peers)
        return Announcement(
            prefix=old.prefix if old else host_prefix(_address(packed)),
            kind=Kind.SERVICE,
            communities=terms.communities,
            local_preference=terms.local_preference,
            peers=peers,
        )


def compile_announcements(
    services: Mapping[str, tuple[Service, Sequence[EndpointSlice]]],
    node: str,
    settings: RoutingSettings,
    peers: Set[str] = frozenset(),
    programmed: Set[Address] | None = None,
) -> Announcements:
    """The index over all Services at once, for documents; see ``Announcements``."""
    index = Announcements(node, settings, peers)
    index.follow_programmed(programmed)
    for key, (service, slices) in services.items():
        index.update(key, service, slices)
    return index


def _set_member(members: set[T], each: T, *, is_member: bool) -> None:
    if is_member:
        members.add(each)
    else:
        members.discard(each)


def _rank(key: str, export: ServiceExport) -> tuple[str, str]:
    """The older Service comes first; one that does not say its age comes last."""
    return export.created or "~", key


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _address_order(packed: bytes) -> tuple[int, bytes]:
    return len(packed), packed
