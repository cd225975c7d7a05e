"""The loop that answers for Services' addresses by ARP and NDP: Services and Nodes to a responder.

Packet path. A client on the nodes' segment asks who has an LB IP; the node that the choice falls on
answers with its link's hardware address; packets arrive there and are taken in by IPVS, as the
address is a local route of every node that serves it.

Owned: nothing in the kernel but the responder's packet sockets. What is answered for ends with this
process, however it ends.

Start: nothing is answered for before the caches have synced, the proxy has said what it serves, and
this node counts (``peers``). API server lost: what was known goes on to hold. Stop: says that it
restarts, and the others wait for it; with --withdraw-on-exit it hands over first.

What happens in a turn: dirty objects -> who has what (``layer2_index``) -> what is answered for
(``handover``) -> the responder -> the proxy hears that addresses it is to remove are silent.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from kube_router_py.address_pools import Address, AddressPools
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.errors import KernelError, KubeRouterError
from kube_router_py.kernel.neighbor_ports import OnClaim, Responder
from kube_router_py.loadbalancer.conflicts import Claim, Conflicts
from kube_router_py.loadbalancer.handover import Handover
from kube_router_py.loadbalancer.layer2_index import Layer2Index
from kube_router_py.loadbalancer.layer2_ports import Layer2Settings, Living, Programmed
from kube_router_py.loadbalancer.peer_values import View
from kube_router_py.loop import Loop, Outcome
from kube_router_py.object_key import Key
from kube_router_py.problem import Problem
from kube_router_py.services import service_key_of

_log = logging.getLogger(__name__)

KINDS = (Service, EndpointSlice, Node)
_CLAIMS_MAX = 1024
_REFUSALS_MAX = 2

POOLS = "address pools"
SERVED = "addresses that the service proxy serves"
PEERS = "which nodes live"
CLAIMS = "claims of other hosts"
RESPONDER = "the responder for ARP and NDP"


OnAssigned = Callable[[str, Address, tuple[str, ...]], None]
"""Called with the Service's key, its address and the links: this node has come to announce it."""


class Announcer:
    """See the module docstring. Everything but ``subscribe``, ``status`` and ``numbers`` runs in
    the loop's thread. ``programmed``: None where the service proxy does not run here.
    """

    name = "layer2"

    def __init__(
        self,
        cache: Cache,
        settings: Layer2Settings,
        pools: Callable[[], AddressPools],
        living: Living,
        programmed: Programmed | None,
        open_responder: Callable[[OnClaim], Responder],
        on_assigned: OnAssigned = lambda key, address, links: None,
        more_problems: Callable[[], tuple[Problem, ...]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._settings, self._pools = cache, settings, pools
        self._living, self._programmed, self._clock = living, programmed, clock
        self._open_responder, self._on_assigned = open_responder, on_assigned
        self._more_problems = more_problems
        self.mark: Callable[[tuple[Hashable, ...]], None] = lambda keys: None
        # Set by whoever ends the agent, before the loop is marked.
        self.is_exiting = False
        # Nothing is answered for any more. For any thread.
        self.is_silent = True
        # Some pool has this node announce its addresses. For any thread.
        self.is_taking_part = False
        self._claims: deque[Claim] = deque(maxlen=_CLAIMS_MAX)
        self._lock = threading.Lock()  # of what ``status`` reads
        self._responder: Responder | None = None
        self._takeovers = 0
        self._begin()

    def _begin(self) -> None:
        self._index = Layer2Index(
            self._settings.node,
            drain_on_cordon=self._settings.drain_on_cordon,
            has_proxy=self._programmed is not None,
        )
        self._handover: Handover[bytes] = Handover()
        self._conflicts = Conflicts(self._settings.node, self._settings.port)
        self._served: set[bytes] = set()
        self._answered: frozenset[bytes] = frozenset()
        # By packed address: the address, and on which links it is answered for.
        self._wanted: dict[bytes, tuple[Address, tuple[str, ...]]] = {}
        self._is_unwritten = True
        self._refusals = 0
        self._known_pools = AddressPools()
        self._known_candidates: frozenset[str] = frozenset()
        self._known_alive: frozenset[str] = frozenset()
        self._is_repeat_due = False
        self._repeated_at = self._clock()
        self._broken: dict[Key, Problem] = {}

    def subscribe(self, cache: Cache, loop: Loop) -> None:
        """Have every event mark what it changes."""
        self.mark = loop.mark
        cache.subscribe(KINDS, lambda event: loop.mark(_dirty_keys(event)))

    def open(self) -> None:
        """Create the responder; called again after a crash, and then nothing is trusted."""
        self.close()
        with self._lock:
            self._begin()
        self._responder = self._open_responder(self._claimed)
        if self._programmed is not None:
            self._served = {each.packed for each in self._programmed.begin()}

    def close(self) -> None:
        """Close the responder: nothing is answered for any more."""
        responder, self._responder = self._responder, None
        # Whoever does not answer must not count: the others are to answer instead.
        self._living.follow_ready(is_ready=False)
        if responder is not None:
            responder.close()
        if self._programmed is not None:
            self._programmed.end()

    def _claimed(self, address: Address, link: str, mac: str) -> None:
        """In the responder's thread."""
        self._claims.append(Claim(address, link, mac))
        self.mark((CLAIMS,))

    # --- a turn ---------------------------------------------------------------------------------

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """One turn, over the dirty keys or (``full``) over everything."""
        responder = self._responder
        if responder is None:
            raise RuntimeError("reconcile before open")
        now = self._clock()
        keys = self._all_keys() if full else {key for key in dirty if isinstance(key, Key)}
        view = self._living.view
        with self._lock:
            pools = self._pools()
            is_other, self._known_pools = pools != self._known_pools, pools
            self._follow(keys, view)
            if self._programmed is not None:
                added, removed = self._programmed.take()
                self._served -= {each.packed for each in removed}
                self._served |= {each.packed for each in added}
            own, passed = self._split(view)
            self._note_claims(own, now)
            before = self._answered
            self._answered, over_in_s = self._handover.settle(own, passed, now)
            self.is_silent = not self._answered
        failed: set[Hashable] = {*self._broken}
        waits_s = [] if over_in_s is None else [over_in_s]
        problems = {*self._broken.values(), *self._more_problems()}
        try:
            self._write(responder, before, anew=full or is_other)
        except KernelError as error:
            self._refusals += 1
            if self._refusals >= _REFUSALS_MAX:
                raise  # it may have ended, and the loop opens another one
            failed.add(RESPONDER)
            problems.add(Problem(f"Node {self._settings.node}", "", str(error)))
        else:
            self._refusals = 0
            if self._programmed is not None:
                self._programmed.pass_on(has_told=False)
            self._tell_assigned(responder, (self._answered & own) - before)
            waits_s += self._repeat(responder, view, now)
        self._tell_living()
        problems.update(self._problems(responder, own))
        return Outcome(
            frozenset(failed),
            tuple(sorted(problems)),
            min(waits_s, default=None),
            settled=frozenset((POOLS, SERVED, PEERS, CLAIMS, RESPONDER)),
        )

    def _all_keys(self) -> set[Key]:
        nodes = self._index.node_names() | {each.metadata.name for each in self._cache.list(Node)}
        services = {each.metadata.key for each in self._cache.list(Service)}
        return {
            *(Key("Node", name) for name in nodes),
            *(Key("Service", name) for name in self._index.service_keys() | services),
        }

    def _follow(self, keys: set[Key], view: View) -> None:
        """Bring the index up to date."""
        self._index.follow_pools(self._known_pools)
        nodes = [key.name for key in keys if key.kind == "Node"]
        self._index.follow_nodes((name, self._cache.get(Node, name)) for name in sorted(nodes))
        self._index.follow_candidates(view.candidates)
        for key in sorted(keys):
            if key.kind != "Service":
                continue
            self._broken.pop(key, None)
            try:
                service = self._cache.get(Service, key.name)
                slices = self._cache.slices_of(key.name) if service is not None else ()
                self._index.follow_service(key.name, service, slices)
            except KubeRouterError:
                raise
            except Exception as error:  # noqa: BLE001 - one object must not stop the others
                _log.exception("cannot compile object=%r", str(key))
                reason = f"cannot be compiled ({error!r}); what it was before still counts"
                self._broken[key] = Problem(str(key), "", reason)

    def _split(self, view: View) -> tuple[set[bytes], set[bytes]]:
        """What this node is to answer for, and what it could that another one has."""
        if not view.may_answer:
            return set(), set()
        if self._programmed is None:
            return set(self._index.mine), self._index.others
        return self._index.mine & self._served, self._index.others & self._served

    def _note_claims(self, own: set[bytes], now: float) -> None:
        while self._claims:
            claim = self._claims.popleft()
            if claim.address.packed in own:
                self._conflicts.note(claim, now)
            else:
                self._handover.claim(claim.address.packed)

    def _write(self, responder: Responder, before: frozenset[bytes], *, anew: bool) -> None:
        """Have the responder answer for what is to be answered for; ``before`` says what it was."""
        if anew:
            self._wanted.clear()
            before = frozenset()
        for packed in before - self._answered:
            if (written := self._wanted.pop(packed, None)) is not None:
                told = written[0], ",".join(sorted(self._services_of(written[0])))
                _log.info("not announcing any more address=%s services=%s", *told)
        for packed in self._answered - before:
            place = self._index.places[packed]
            patterns = place.announcing.interfaces or self._settings.default_links
            self._wanted[packed] = place.address, patterns
        if anew or self._is_unwritten or before != self._answered:
            self._is_unwritten = True
            responder.put(dict(self._wanted.values()))
            self._is_unwritten = False

    def _repeat(self, responder: Responder, view: View, now: float) -> Iterator[float]:
        """Tell all again where that may be news to somebody; in how many seconds to ask again."""
        # One that comes back may have told all something else, and hosts on its side of a cut have
        # not heard what was told meanwhile.
        returned = (view.alive - view.candidates) - self._known_alive
        self._is_repeat_due |= bool(returned or view.candidates - self._known_candidates)
        self._known_candidates, self._known_alive = view.candidates, view.alive
        is_contested, again_s = self._conflicts.answer(now)
        period_s = self._settings.announce_period_s
        if again_s is not None:
            yield again_s
        is_due = is_contested or bool(period_s and now - self._repeated_at >= period_s)
        if self._handover.passing:
            # These are no longer to be told of; their end makes another turn.
            self._is_repeat_due |= is_due
        elif is_due or self._is_repeat_due:
            self._is_repeat_due, self._repeated_at = False, now
            if self._answered:
                responder.announce()
        if period_s:
            yield max(0.0, self._repeated_at + period_s - now)

    def _tell_assigned(self, responder: Responder, gained: frozenset[bytes]) -> None:
        if not gained:
            return
        self._takeovers += len(gained)
        links = responder.links()
        for packed in sorted(gained):
            place = self._index.places[packed]
            found = links.get(place.address, ())
            told = place.address, ",".join(found), ",".join(sorted(place.local))
            _log.info("announcing address=%s links=%r services=%s", *told)
            for key in place.local:
                self._on_assigned(key, place.address, found)

    def _tell_living(self) -> None:
        """Whom to talk to, and that this node knows what it serves."""
        self.is_taking_part = self._index.is_taking_part()
        self._living.follow_members(self._index.members(), self._index.own_addresses())
        is_drained = bool(self._index.drain_cause())
        self._living.follow_drain(is_draining=self.is_exiting or is_drained)
        # One that no pool selects hears nobody: it must not count when it is selected, before it
        # has heard the others.
        is_known = self._programmed is None or self._programmed.is_known
        self._living.follow_ready(is_ready=is_known and self.is_taking_part)

    def _problems(self, responder: Responder, own: set[bytes]) -> Iterator[Problem]:
        node = f"Node {self._settings.node}"
        if self._living.problem:
            yield Problem(node, "", self._living.problem)
        if self._living.view.is_fenced:
            yield Problem(
                node,
                "",
                "it hears fewer than half of the nodes that announce by ARP and NDP, and answers "
                "for no address; see to the network between nodes, or delete Nodes that are gone",
            )
        for address, links in responder.links().items() if own else ():
            place = self._index.places.get(address.packed)
            if links or place is None:
                continue
            asked = self._settings.default_links or ("those with an address of the Node's",)
            patterns = ", ".join(place.announcing.interfaces or asked)
            for key in place.local:
                yield Problem(
                    f"Service {key}",
                    "status.loadBalancer.ingress",
                    f"{address} is to be announced by node {self._settings.node}, which has no "
                    f"link fit for it ({patterns})",
                )
        yield from self._index.problems()
        yield from self._conflicts.problems(self._services_of)

    def _services_of(self, address: Address) -> tuple[str, ...]:
        place = self._index.places.get(address.packed)
        return () if place is None else (*place.local,)

    # --- for any thread -------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        """For the metrics, by name without the prefix."""
        view = self._living.view
        return {
            "layer2_addresses": len(self._index.places),
            "layer2_announced_addresses": len(self._answered),
            "layer2_takeovers_total": self._takeovers,
            "layer2_peers_alive": len(view.alive),
            "layer2_fenced": float(view.is_fenced),
            **self._responder_numbers(),
        }

    def _responder_numbers(self) -> dict[str, float]:
        responder = self._responder
        if responder is None:
            return {}
        return {
            f"layer2_{name}{'' if name == 'links' else '_total'}": value
            for name, value in responder.numbers().items()
        }

    def status(self) -> dict[str, Any]:
        """Who has which address, and why nobody has; JSON."""
        view = self._living.view
        responder = self._responder
        links = responder.links() if responder is not None else {}
        with self._lock:
            addresses = [
                {
                    "address": str(place.address),
                    "pool": place.pool,
                    "services": [*place.local],
                    "owner": place.pick.owner,
                    "answered_here": packed in self._answered,
                    "links": [*links.get(place.address, ())],
                    "why_nobody": self._index.why_nobody(packed),
                }
                for packed, place in sorted(self._index.places.items())
            ]
        return {
            "node": self._settings.node,
            "standing": view.standing.name.lower(),
            "may_answer": view.may_answer,
            "fenced": view.is_fenced,
            "alive": sorted(view.alive),
            "held": sorted(view.held),
            "never_heard": sorted(view.unheard),
            "addresses": addresses,
        }


def _dirty_keys(event: Event) -> Iterator[Key]:
    if event.kind is EndpointSlice:
        for each in (event.old, event.new):
            if each is not None and (name := service_key_of(each)):
                yield Key("Service", name)
    else:
        yield Key(event.kind.__name__, event.key)
