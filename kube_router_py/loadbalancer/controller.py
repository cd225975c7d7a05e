"""The allocator's loop: Services of type LoadBalancer to addresses in their status.

One agent of the cluster does this, the leader (``election``); the loops of the others do nothing.
The only record is the status of the Services. Who becomes leader lists all Services anew, reserves
what they have (``Allocator.rebuild``), and gives addresses only then. From there on an event about
one Service costs one Service; its cached version counts if it is not older than what was listed or
written (``known_services``).

An address is reserved before it is written, and stays so whatever becomes of the write, which is
done by threads of its own (``status_writer``): what they come back with is one more reason to look
at a Service. A Service that gets no address is a Problem with an Event, and no failure: it is
decided anew as soon as there is room, and by the full turns.

Crash, stop, end of a term: everything is forgotten; what was written counts.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator

from msgspec import structs

from kube_router_py.address_pools import Address
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import Namespace, Node, Service
from kube_router_py.cluster.revision import is_older
from kube_router_py.errors import ApiError
from kube_router_py.kept_addresses import KeptAddresses
from kube_router_py.loadbalancer.allocate import Allocator, Wanted
from kube_router_py.loadbalancer.allocation_values import (
    LEADER,
    Listing,
    Pools,
    Report,
    Tell,
    service_key,
)
from kube_router_py.loadbalancer.decisions import Decision, Reason, Told
from kube_router_py.loadbalancer.ingress import (
    Ingress,
    as_text,
    ingress_without,
    present_ingress,
    wanted_ingress,
)
from kube_router_py.loadbalancer.known_services import KnownServices
from kube_router_py.loadbalancer.node_addresses import node_use
from kube_router_py.loadbalancer.repairs import Repairs
from kube_router_py.loadbalancer.requests import Rules, compile_request, foreign_addresses
from kube_router_py.loadbalancer.status_writer import Done, Result, StatusWriter, Write
from kube_router_py.loop import Loop, Outcome
from kube_router_py.object_key import Key
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

KINDS = (Service, Namespace, Node)
_CONFLICTS = frozenset((Reason.IN_USE, Reason.SHARING))
# Seconds until a new leader looks again whether writes of its last term are over.
_POLL_S = 0.1
# How many decisions one turn makes of one Service at most, on average.
_ROUNDS = 4


class Allocation:
    """See the module docstring. Everything but ``subscribe`` and ``report`` is for the loop's
    thread. ``term`` is the number of the term in which this agent leads, 0 if it does not;
    ``list_services`` as in ``status_writer``."""

    name = "loadbalancer"

    def __init__(
        self,
        cache: Cache,
        rules: Rules,
        pools: Pools,
        term: Callable[[], int],
        writer: StatusWriter,
        list_services: Callable[[], Listing],
        tell: Tell,
    ) -> None:
        self._cache, self._rules, self._pools = cache, rules, pools
        self._leader_term, self._writer = term, writer
        self._list_services, self._tell = list_services, tell
        self._forget()

    def subscribe(self, cache: Cache, loop: Loop) -> None:
        """Have every event mark what it changes."""

        def notify(event: Event) -> None:
            loop.mark((Key(event.kind.__name__, event.key),))

        cache.subscribe(KINDS, notify)

    def open(self) -> None:
        """Nothing to open: a crash ends what was known, and with it the work of the term."""
        self._forget()

    def close(self) -> None:
        self._writer.clear()

    def _forget(self) -> None:
        self._term = 0
        self._known = KnownServices()
        self._allocator = Allocator(self._pools.pools)
        self._kept = KeptAddresses()
        self._again: deque[str] = deque()
        self._wrong: dict[str, tuple[Told, ...]] = {}
        self._having: dict[str, Ingress] = {}  # by key, what Services of ours are to list
        self._writing: dict[str, Write] = {}  # are on their way
        self._written: dict[str, Ingress] = {}
        self._failing: dict[str, Problem] = {}  # could not be written
        self._unsure: dict[str, Write] = {}  # failed, and may have been made all the same
        self._broken: dict[str, Problem] = {}  # could not be decided about
        self._repairs = Repairs()
        self._settled: set[Hashable] = set()
        self.report = Report()

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """One turn, over what changed or (``full``) over all Services."""
        term = self._leader_term()
        if term != self._term:
            self._writer.clear()
            self._settled.update(map(service_key, (*self._failing, *self._broken)))
            settled = frozenset(self._settled)
            self._forget()
            if term and not self._writer.is_idle:
                return self._outcome(settled, wake_after_s=_POLL_S)
            self._settled.update(settled)
        if not term:
            return self._outcome(frozenset((*self._settled, LEADER)))
        try:
            if not self._term:
                self._begin(term)
            elif full:
                self._look_at_all()
        except ApiError as error:
            problem = Problem("Service", "", f"the Services cannot be listed: {error}")
            return self._outcome(frozenset(), failed={LEADER}, problems=(problem,))
        if self._allocator.pools is not self._pools.pools:
            self._again.extend(self._allocator.set_pools(self._pools.pools))
        for done in self._writer.take():
            self._follow_write(done)
        self._follow_nodes(dirty)
        for key in sorted(frozenset(self._services(dirty)), key=self._age):
            self._follow(key)
        self._decide_again()
        settled = frozenset((*self._settled, LEADER))
        self._settled.clear()
        wake_after_s = _POLL_S if self._again else None
        failed = map(service_key, (*self._failing, *self._broken))
        return self._outcome(settled, failed, wake_after_s)

    def _outcome(
        self,
        settled: frozenset[Hashable],
        failed: Iterable[Hashable] = (),
        wake_after_s: float | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> Outcome:
        told = [each for found in self._wrong.values() for each in found]
        waiting = self._allocator.waiting
        self.report = Report(
            term=self._term,
            allocated=sum(1 for each in self._having.values() if each),
            waiting=len(waiting),
            refused=sum(1 for key, wrong in self._wrong.items() if wrong and key not in waiting),
            conflicts=sum(1 for each in told if each.reason in _CONFLICTS),
            writing=len(self._writing),
            occupancy=self._allocator.occupancy() if self._term else (),
            kept=self._kept.text(self._allocator.pools),
            pools=self._allocator.pools,
        )
        found = {*problems, *self._pools.problems}
        found.update(self._failing.values(), self._broken.values())
        found.update(each.problem for each in told)
        found.update(self._repairs.problems)
        return Outcome(frozenset(failed), tuple(sorted(found)), wake_after_s, settled)

    # --- a term begins -------------------------------------------------------------------------

    def _begin(self, term: int) -> None:
        """Take over: what the API server has now is all that counts. Raises ApiError."""
        services = self._listed()
        self._allocator = Allocator(self._pools.pools)
        wanted: list[Wanted] = []
        foreign: dict[str, Iterable[Address]] = {}
        for key, service in services.items():
            try:
                asked = self._asked(service)
            except Exception as error:  # noqa: BLE001 - one Service must not stop the others
                self._break(key, error)
                asked = None
            if asked is not None:
                wanted.append(asked)
            foreign[key] = foreign_addresses(service, asked is not None, self._rules)
        foreign.update(node_use(each.metadata.name, each) for each in self._cache.list(Node))
        self._again.extend(self._allocator.rebuild(wanted, foreign))
        self._term = term
        _log.info("Services are given addresses services=%d term=%d", len(wanted), term)
        for key in services.keys() - {each[0].key for each in wanted} - self._broken.keys():
            self._release(services[key])

    def _listed(self) -> dict[str, Service]:
        """All Services anew; of one that cannot be read, what it was before. Raises ApiError."""
        services, revision, unreadable = self._list_services()
        for key in unreadable:
            if (cached := self._cache.get(Service, key)) is not None:
                services[key] = cached
        self._known.replace(services.values(), revision)
        return services

    # --- one Service ---------------------------------------------------------------------------

    def _look_at_all(self) -> None:
        """Every Service is looked at again. Raises ApiError."""
        self._repairs.begin_anew()
        for write in self._unsure.values():
            self._write(write.service, write.ingress)
        before = frozenset(self._known.keys())
        if is_older(self._reached(), self._known.latest):
            # The cache lags, or etcd was restored and counts from before again: a list knows.
            self._listed()
        found = {each.metadata.key for each in self._cache.list(Service)}
        for key in sorted(before | self._known.keys() | found, key=self._age):
            self._follow(key)

    def _follow_nodes(self, dirty: Iterable[Hashable]) -> None:
        for key in dirty:
            if isinstance(key, Key) and key.kind == Node.__name__:
                use = node_use(key.name, self._cache.get(Node, key.name))
                self._again.extend(self._allocator.note_foreign(*use))

    def _services(self, dirty: Iterable[Hashable]) -> Iterator[str]:
        for key in dirty:
            if not isinstance(key, Key):
                continue
            if key.kind == Service.__name__:
                yield key.name
            elif key.kind == Namespace.__name__:
                prefix = f"{key.name}/"
                yield from (each for each in self._having if each.startswith(prefix))

    def _age(self, key: str) -> tuple[str, str]:
        """Sorts Services, the oldest first."""
        found = self._cache.get(Service, key)
        return (found.metadata.creation_timestamp or "") if found is not None else "", key

    def _follow(self, key: str) -> None:
        """Bring the allocator up to date with one Service, and its status with the allocator."""
        if self._broken.pop(key, None) is not None:
            self._settled.add(service_key(key))
        try:
            reached = self._reached()  # first: what the cache gets meanwhile is not gone
            service = self._known.see(key, self._cache.get(Service, key), reached)
            under_way = self._writing.get(key) or self._unsure.get(key)
            if under_way is not None and service == under_way.service:
                return  # what its status lists is not known before that is over
            self._unsure.pop(key, None)
            asked = self._asked(service) if service is not None else None
            is_ours = asked is not None
            foreign = foreign_addresses(service, is_ours, self._rules) if service else ()
            self._again.extend(self._allocator.note_foreign(key, foreign))
            if asked is not None:
                self._apply(self._allocator.put(*asked))
                return
            self._again.extend(self._allocator.remove(key))
            self._wrong.pop(key, None)
            if service is not None:
                self._release(service)
            else:
                self._having.pop(key, None)
                self._kept.put(key, ())
                self._written.pop(key, None)
                self._is_written(key)
        except Exception as error:  # noqa: BLE001 - one Service must not stop the others
            self._break(key, error)

    def _break(self, key: str, error: Exception) -> None:
        _log.exception("cannot allocate service=%s", key)
        reason = f"cannot be decided about ({error!r}); it keeps what it has"
        self._broken[key] = Problem(f"Service {key}", "", reason)

    def _decide_again(self) -> None:
        """Services for which there may be room now; each turn has its limit."""
        for _ in range(_ROUNDS * max(1, len(self._again))):
            if not self._again:
                break
            key = self._again.popleft()
            if key not in self._known:
                continue
            try:
                self._apply(self._allocator.decide(key))
            except KeyError:
                continue  # not ours any more
            except Exception as error:  # noqa: BLE001 - one Service must not stop the others
                self._break(key, error)

    def _apply(self, decision: Decision) -> None:
        key = decision.key
        self._again.extend(decision.retry)
        told = (*decision.wrong, *decision.news)
        for each in told:
            if each not in self._wrong.get(key, ()):
                self._tell(key, each.reason, each.problem)
        if decision.wrong:
            self._wrong[key] = decision.wrong
        else:
            self._wrong.pop(key, None)
        pools = self._allocator.pools
        given = (each.address for each in decision.addresses)
        self._kept.put(key, (each for each in given if pools.retired_of(each.packed)))
        service = self._known[key]
        wanted = wanted_ingress(service, decision.addresses)
        self._having[key] = wanted
        # An old API server keeps addresses only, without what it does not know.
        is_changed = wanted != present_ingress(service) and wanted != self._written.get(key)
        if not (decision.must_write or (wanted and is_changed)):
            self._is_written(key)
            return
        is_repair = key not in self._writing and wanted == self._written.get(key)
        if is_repair and (vain := self._repairs.refuse(service, wanted)) is not None:
            self._tell(key, vain.reason, vain.problem)
            return
        self._write(service, wanted)

    def _release(self, service: Service) -> None:
        """A Service that is not ours: what we gave it goes from its status."""
        key = service.metadata.key
        had = {each.ip for each in self._having.get(key, ())}
        self._written.pop(key, None)
        if service.metadata.deletion_timestamp:
            return  # it is served until the end, and its status goes with it
        self._kept.put(key, ())
        if service.spec.type == "LoadBalancer":
            left = ingress_without(service, lambda address: str(address) in had)
        else:  # an API server that does not do it itself
            pools = self._pools.pools
            left = ingress_without(service, lambda address: bool(pools.of(address.packed)))
        if left != present_ingress(service):
            self._write(service, left)
        else:
            self._having.pop(key, None)
            self._is_written(key)

    # --- writes --------------------------------------------------------------------------------

    def _write(self, service: Service, ingress: Ingress) -> None:
        key = service.metadata.key
        if key in self._writing:
            return  # its end is a reason to look again
        self._writing[key] = write = Write(self._term, service, ingress)
        self._writer.put(write)

    def _follow_write(self, done: Done) -> None:
        write, key = done.write, done.write.key
        if write.term != self._term:
            return
        self._writing.pop(key, None)
        if done.result is Result.UNKNOWN:
            self._unsure[key] = write
        elif done.result is Result.FAILED:
            self._unsure.pop(key, None)  # had it been made before, this one would be a conflict
        if done.result in (Result.FAILED, Result.FENCED, Result.UNKNOWN):
            why = done.why or "the Lease of the allocator is about to expire"
            reason = f"its address cannot be written: {why}"
            self._failing[key] = Problem(f"Service {key}", "status", reason)
            return
        self._is_written(key)
        if done.result is Result.GONE:
            self._known.drop(key)
        elif done.service is not None:
            self._known.put(done.service)
        if done.result is Result.WRITTEN:
            self._written[key] = write.ingress
            self._tell_written(write)
        self._follow(key)

    def _is_written(self, key: str) -> None:
        """Nothing of it fails any more."""
        if self._failing.pop(key, None) is not None:
            self._settled.add(service_key(key))

    def _tell_written(self, write: Write) -> None:
        before, after = as_text(present_ingress(write.service)), as_text(write.ingress)
        if before == after:
            return
        _log.info("has other addresses service=%s addresses=%r before=%r", write.key, after, before)
        if after and self._having.get(write.key) == write.ingress:
            pools = dict.fromkeys(each.pool or "none" for each in self._allocator.given(write.key))
            text = f"{after} of pool {', '.join(pools)}"
            self._tell(
                write.key, "IPAllocated", Problem(f"Service {write.key}", "", text), is_good=True
            )

    def _asked(self, service: Service) -> Wanted | None:
        request = compile_request(service, self._rules)
        if request is None:
            return None
        namespace = self._cache.get(Namespace, request.namespace)
        if namespace is None:  # new: the cache has heard of the Service first
            return structs.replace(request, is_early=True), {}
        return request, namespace.metadata.labels or {}

    def _reached(self) -> str:
        return self._cache.revisions()[Service]
