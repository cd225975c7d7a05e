"""Follows one flow through the cluster: who is meant, which Service, which backends, which policies
decide, what the source becomes, which way the packets take. Pure.

Looked at from the node where the flow begins. A NodePort of another node is served there, so that
the client's policies see the connection to that node, and the rest happens on it.
"""

from ipaddress import ip_address

from msgspec import Struct, structs

from kube_router_py.firewall.evaluate import Evaluator, FlowError
from kube_router_py.firewall.evaluate_places import FAMILIES, Place, Places
from kube_router_py.flow.backends import backends, plain_endpoints
from kube_router_py.flow.guards import refusal
from kube_router_py.flow.model import (
    Backend,
    End,
    Outcome,
    Path,
    Question,
    ServiceAddress,
    ServiceStep,
    Trace,
)
from kube_router_py.flow.names import Named, Names, canonical
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.flow.outcome import outcome_of_backends, outcome_of_path
from kube_router_py.flow.paths import NodeSide, Paths, Sender
from kube_router_py.flow.service_words import KIND_WORDS
from kube_router_py.flow.services import Met
from kube_router_py.kernel.overlay_ports import Address
from kube_router_py.services import cluster_ips, has_addresses

_PROTOCOLS = ("TCP", "UDP", "SCTP")
HEADLESS = "headless"


class _Ends(Struct, frozen=True):
    """Both ends, with the words and addresses that are judged."""

    source: Named
    target: Named
    source_word: str
    target_word: str
    source_place: Place
    target_place: Place

    @property
    def address(self) -> str:
        return str(self.target_place.address)


class Tracer:
    """Traces flows through one state of a cluster; what it compiles is kept for the next one."""

    def __init__(
        self, objects: ClusterObjects, settings: FlowSettings, evaluator: Evaluator | None = None
    ) -> None:
        self._objects, self._settings = objects, settings
        self._names = Names(objects)
        self._places = Places(objects.pods, objects.nodes, objects.services)
        self.evaluator = evaluator or Evaluator(
            objects.pods,
            objects.namespaces,
            objects.policies,
            objects.nodes,
            objects.services,
            allow_own_node=settings.allow_own_node,
        )
        self._paths = Paths(objects, settings, self._names, self._places, self.evaluator)
        self._sides: dict[str, NodeSide] = {}

    def trace(self, question: Question) -> Trace:
        """Raises FlowError for a flow that cannot be judged."""
        source = self._names.source(question.source)
        target = self._names.destination(question.destination)
        if question.node and question.node not in self._objects.views:
            raise FlowError(f"--node: there is no Node {question.node!r}")
        if target.kind == "service":
            _check_port(question)
            # At an address that a headless one names by mistake may be somebody else.
            is_asked_for = canonical(target.written) is None
            if is_asked_for and not has_addresses(self._objects.service_of[target.key]):
                return self._headless(question, source, target)
        ends = self._ends(question, source, target)
        node, notes = self._viewpoint(question, ends)
        sender = self._sender(ends, node)
        met = self._meet(question, ends, node)
        if met is None:
            path = self._paths.plain(
                self._side(node), sender, ends.target_word, ends.address, question
            )
            notes += self._node_port_notes(question, ends)
            what = f"{question.source} to connect to {question.destination}"
            outcome, reason = outcome_of_path(path, what)
            return self._trace(question, ends, node, outcome, reason, notes, path=path)
        return self._through(question, ends, node, sender, met, notes)

    # --- ends ----------------------------------------------------------------------------------

    def _ends(self, question: Question, source: Named, target: Named) -> _Ends:
        word = source.places[0]
        if not target.places:
            what = "no ClusterIP is allocated" if target.kind == "service" else "none is listed"
            raise FlowError(f"to: {target.written} has no address: {what}")
        first: ValueError | None = None
        for each in self._in_order(source, target):
            try:
                places = self._places.ends(word, each, question.family)
            except ValueError as error:
                first = first or error
                continue
            return _Ends(source, target, word, each, *places)
        if target.kind in ("service", "node") and not str(first).startswith("from: "):
            family = question.family
            which = f"no {family} address" if family else "no address of a family of the other end"
            raise FlowError(f"{question.source} or {target.written} has {which}")
        raise FlowError(str(first))

    def _in_order(self, source: Named, target: Named) -> tuple[str, ...]:
        """A Service by name is its ClusterIP, for somebody outside the last of its addresses."""
        if source.kind != "external" or target.kind != "service":
            return target.places
        inside = set(map(canonical, cluster_ips(self._objects.service_of[target.key])))
        return tuple(sorted(target.places, key=inside.__contains__))

    def _viewpoint(self, question: Question, ends: _Ends) -> tuple[str, list[str]]:
        """The node where the flow begins, or comes into the cluster; and what to tell of that."""
        found = self._home(ends.source, ends.source_place)
        if found:
            if question.node not in ("", found):
                return found, [f"{question.source} is on node {found}: looked at from there"]
            return found, []
        if question.node:
            return question.node, []
        if found := self._node_of_pods_at(ends.source_place.address):
            return found, []
        found = self._home(ends.target, ends.target_place)
        if found or not self._objects.views:
            return found, []
        if ends.target.kind == "external":
            return "", []
        first = min(self._objects.views)
        if len(self._objects.views) == 1:
            return first, []
        return first, [f"looked at from node {first}, where the client may come in (--node)"]

    def _node_of_pods_at(self, address: Address) -> str:
        """The node among whose pods' addresses this one is, whoever has it; ``""`` for none."""
        for name, view in sorted(self._objects.views.items()):
            if any(address in each for each in view.pod_cidrs):
                return name
        return ""

    def _home(self, named: Named, place: Place) -> str:
        """The one node where an end is, ``""`` for none."""
        if named.kind == "node":
            return named.key
        return next(iter(place.nodes)) if len(place.nodes) == 1 else ""

    def _sender(self, ends: _Ends, node: str) -> Sender:
        is_pod = ends.source.kind == "pod" and not ends.source_place.in_host_network
        address = str(ends.source_place.address)
        return Sender(ends.source_word, address, node, is_pod)

    def _meet(self, question: Question, ends: _Ends, node: str) -> Met | None:
        if question.protocol not in _PROTOCOLS:
            return None
        key = ends.target.key if ends.target.kind == "service" else ""
        named = key if canonical(ends.target.written) is None else ""
        where = node
        if not key and (other := self._names.node_at.get(ends.address)):
            where = other
        return self._side(where).services.meet(
            ends.address, question.port, question.protocol, named
        )

    def _node_port_notes(self, question: Question, ends: _Ends) -> list[str]:
        place = (question.protocol, question.port)
        keys = self._names.services_of_node_port.get(place, ())
        if not keys or not ends.target_place.address.is_loopback:
            return []
        return [f"{question.port} is a NodePort of {keys[0]}: none is served at loopback addresses"]

    # --- Services ------------------------------------------------------------------------------

    def _through(
        self,
        question: Question,
        ends: _Ends,
        node: str,
        sender: Sender,
        met: Met,
        notes: list[str],
    ) -> Trace:
        """A flow to the address of a Service."""
        there = self._side(met.step.node)
        step = met.step
        if step.node != node:
            way = self._side(node).routes.to(sender.address, ends.address)
            step = structs.replace(step, way=way)
        if met.is_passed_on:
            path = self._paths.plain(there, sender, ends.address, ends.address, question)
            outcome, reason = outcome_of_path(path, "it")
            if outcome == "allowed":
                reason = f"not served: {step.why_not}; packets go on as they are"
                # They leave the node, to no node of this cluster.
                outcome = "unreachable" if met.is_refused else outcome
            return self._trace(
                question, ends, node, outcome, reason, notes, service=step, path=path
            )
        if met.state is None:
            return self._trace(
                question, ends, node, "unreachable", step.why_not, notes, service=step
            )
        if step.why_not:
            notes.append(f"{step.why_not}; what is told of it is what Kubernetes' rules ask for")
        if met.direct is not None:
            notes.append("direct server return: as if the tunnel in every pod were ready")
        outcome, reason = refusal(met, sender.address, there.nat)
        listed = backends(met, there.services.slices(step.key), there.services.node)
        if reason:
            step = structs.replace(step, refused=reason)
        else:
            listed = tuple(
                structs.replace(
                    each, path=self._paths.to_backend(there, sender, each, met, question)
                )
                if each.is_in
                else each
                for each in listed
            )
            outcome, reason = outcome_of_backends(listed, step.key)
        return self._trace(
            question, ends, node, outcome, reason, notes, service=step, backends=listed
        )

    def _headless(self, question: Question, source: Named, target: Named) -> Trace:
        """A name that leads to the pods themselves."""
        key = target.key
        slices = self._objects.slices_of.get(key, ())
        listed: list[Backend] = []
        place: Place | None = None
        node = question.node
        notes: list[str] = []
        for each in plain_endpoints(slices, question.port):
            word = self._paths.word(each, source.places[0])
            try:
                if FAMILIES.get(question.family, ip_address(each.address).version) != (
                    ip_address(each.address).version
                ):
                    raise ValueError
                ends = _Ends(
                    source,
                    target,
                    source.places[0],
                    word,
                    *self._places.ends(source.places[0], word, ""),
                )
            except ValueError as error:
                if str(error).startswith("from: "):
                    raise FlowError(str(error)) from None
                why = "of an address family that the other end has not, or that is not asked for"
                listed.append(structs.replace(each, out=each.out or "family", why=why))
                continue
            place = ends.source_place
            node, notes = self._viewpoint(question, ends)
            path = None
            if each.is_in:
                sender = self._sender(ends, node)
                path = self._paths.plain(self._side(node), sender, word, each.address, question)
            listed.append(structs.replace(each, path=path))
        outcome, reason = outcome_of_backends(listed, key)
        step = ServiceStep(
            key=key,
            port=question.port,
            protocol=question.protocol,
            address=ServiceAddress(HEADLESS, "", question.port),
            why_not="headless: its name leads to the pods themselves, at the ports they listen on",
            node=node,
        )
        first = next((each.address for each in listed if each.is_in), "")
        return Trace(
            question=question,
            source=self._end(source, place, str(place.address) if place else "", node),
            destination=End(target.written, "service", first, key, what=f"Service {key}, headless"),
            node=node,
            outcome=outcome,
            reason=reason,
            service=step,
            backends=tuple(listed),
            notes=tuple(notes),
        )

    # --- together ------------------------------------------------------------------------------

    def _side(self, node: str) -> NodeSide:
        found = self._sides.get(node)
        if found is None:
            found = NodeSide(self._objects, self._settings, self._names, node)
            self._sides[node] = found
        return found

    def _trace(
        self,
        question: Question,
        ends: _Ends,
        node: str,
        outcome: Outcome,
        reason: str,
        notes: list[str],
        *,
        service: ServiceStep | None = None,
        backends: tuple[Backend, ...] = (),
        path: Path | None = None,
    ) -> Trace:
        source_node = self._home(ends.source, ends.source_place)
        target = self._end(
            ends.target, ends.target_place, ends.address, self._home(ends.target, ends.target_place)
        )
        if service is not None:
            what = f"{KIND_WORDS[service.address.kind]} of Service {service.key}"
            key = service.key
            target = structs.replace(target, kind="service", key=key, node="", what=what)
        elif target.kind == "external" and path is not None and path.route.kind == "node":
            target = structs.replace(target, node=node, what=path.route.why)
        return Trace(
            question=question,
            source=self._end(
                ends.source, ends.source_place, str(ends.source_place.address), source_node
            ),
            destination=target,
            node=node,
            outcome=outcome,
            reason=reason,
            service=service,
            backends=backends,
            path=path,
            notes=tuple(notes),
        )

    def _end(self, named: Named, place: Place | None, address: str, node: str) -> End:
        words = {
            "pod": f"pod {named.key}",
            "service": f"Service {named.key}",
            "node": f"node {named.key}",
            "external": "outside of the cluster",
        }
        what = words[named.kind]
        if place is not None and place.in_host_network:
            what += f", in the network of node {node}"
        every = self._names.addresses(named)
        return End(named.written, named.kind, address, named.key, node, every, what)


def _check_port(question: Question) -> None:
    """A Service has ports of few protocols. Raises FlowError, in the words of the evaluator."""
    if question.protocol not in _PROTOCOLS:
        names = ", ".join(_PROTOCOLS)
        raise FlowError(f"protocol {question.protocol!r}: Services have none but {names}")
    if not 1 <= question.port <= 65535:
        raise FlowError(f"port {question.port} is not in 1..65535")
