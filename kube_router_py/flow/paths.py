"""The way from a node to one destination: both ends' policies, source NAT, route. Pure."""

from ipaddress import ip_address

from msgspec import Struct, structs

from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.firewall.evaluate_places import Places
from kube_router_py.flow.default_deny import DefaultDeny
from kube_router_py.flow.model import Backend, Path, Question, Route, Translation
from kube_router_py.flow.names import Names
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.flow.policies import Egress, Judged, judge
from kube_router_py.flow.routes import NodeRoutes
from kube_router_py.flow.services import Met, NodeServices
from kube_router_py.flow.source_nat import SourceNat
from kube_router_py.proxy.compile import HAIRPIN_ANNOTATION
from kube_router_py.proxy.model import RealServerKey

_NO_HAIRPIN = (
    "the pod would be sent its own address as the source and drop it: hairpin is off "
    f"(annotation {HAIRPIN_ANNOTATION}, --hairpin-mode)"
)
_NO_DSR = Egress(False, "and egress policies cannot follow direct server return")
_HANDED_OVER = Egress(True, "but on its own node IPVS hands it over behind all filters")
_NOT_PROGRAMMED = "no pod on node {} has the address (--netpol-default-deny)"


class NodeSide:
    """What one node does to packets."""

    def __init__(
        self, objects: ClusterObjects, settings: FlowSettings, names: Names, name: str
    ) -> None:
        self.name = name
        self.services = NodeServices(objects, settings, names, name)
        self.nat = SourceNat(objects, settings, self.services.node)
        self.routes = NodeRoutes(objects, settings, names, name)


class Sender(Struct, frozen=True):
    """Where a flow begins: the word by which the evaluator knows it, its address, the node it is
    looked at from; ``is_pod``: it has a network of its own."""

    word: str
    address: str
    node: str
    is_pod: bool


class Paths:
    """Makes paths."""

    def __init__(
        self,
        objects: ClusterObjects,
        settings: FlowSettings,
        names: Names,
        places: Places,
        evaluator: Evaluator,
    ) -> None:
        self._objects, self._settings = objects, settings
        self._places, self._evaluator = places, evaluator
        self._default_deny = DefaultDeny(objects, settings, names)

    def plain(
        self, side: NodeSide, sender: Sender, word: str, address: str, question: Question
    ) -> Path:
        """To an address as it is; ``word`` is how the evaluator knows it. Raises FlowError."""
        # Without a family for what is no literal, the evaluator would choose by itself.
        family = f"IPv{ip_address(address).version}"
        flow = Flow(sender.word, word, question.protocol, question.port, family)
        route = side.routes.to(sender.address, address)
        translation = side.nat.of_direct(sender.address, address)
        egress: Egress | None = None
        if not side.name:
            route = Route("unknown", "nothing says which node the flow passes")
        elif route.kind in ("node", "inside"):
            # Source NAT is for what leaves.
            translation = Translation("none", False, sender.address, "nothing rewrites it")
            if route.kind == "node" and sender.node == side.name:
                egress = self._to_own_node(address)
        judged = judge(self._evaluator, flow, flow, egress)
        judged, refuser = self._by_default(judged, side, sender, address)
        pod, node = self._owner(word, sender)
        return Path(
            address=address,
            port=question.port,
            protocol=question.protocol,
            allowed=judged.allowed,
            egress=judged.egress,
            ingress=judged.ingress,
            reasons=judged.reasons,
            translation=translation,
            route=route,
            egress_source=sender.address,
            ingress_source=sender.address,
            judged_at=refuser or (node if pod and self._settings.run_firewall else ""),
            pod=pod,
            node=node or refuser,
        )

    def to_backend(
        self, side: NodeSide, sender: Sender, backend: Backend, met: Met, question: Question
    ) -> Path:
        """To a backend, from the node that serves the Service. Raises FlowError."""
        address = ip_address(backend.address)
        family = f"IPv{address.version}"
        real = RealServerKey(met.server.family, address.packed, backend.port)
        is_local = (real.family, real.address) in side.services.live
        translation = self._translation(side, sender, real, met, is_local=is_local)
        word = self.word(backend, sender.word)
        pod, node = self._owner(word, sender)
        node = node or backend.node
        source = sender.word
        if translation.is_translated and node != side.name:
            source = translation.source
        arriving = Flow(source, word, question.protocol, backend.port, family)
        sent = Flow(sender.word, word, question.protocol, backend.port, family)
        elsewhere = ""
        if sender.node != side.name:
            # What leaves the client's node is for the address of the other one.
            before = str(ip_address(met.server.address))
            sent = Flow(sender.word, before, question.protocol, met.server.port, family)
            elsewhere = before
        egress = self._egress(side, sender, backend, met, is_local=is_local)
        judged = judge(self._evaluator, sent, arriving, egress)
        # What comes in for IPVS is judged once that sends it on, and not inside of a tunnel.
        is_sent_on = not met.is_ours or not (is_local or met.direct is not None)
        judged, refuser = self._by_default(
            judged, side, sender, backend.address, is_sent_on=is_sent_on
        )
        seen = sender.address if source == sender.word else source
        return Path(
            address=backend.address,
            port=backend.port,
            protocol=question.protocol,
            allowed=judged.allowed,
            egress=judged.egress,
            ingress=judged.ingress,
            reasons=judged.reasons,
            translation=translation,
            route=self._route(side, sender, backend, met, is_rewritten=translation.is_translated),
            egress_source=sender.address,
            egress_destination=elsewhere,
            ingress_source=seen,
            judged_at=refuser or (node if pod and self._settings.run_firewall else ""),
            pod=backend.pod or pod,
            node=node or refuser,
        )

    def word(self, backend: Backend, source: str) -> str:
        """How the evaluator knows an endpoint: its pod, where that has the address, which it says
        more of; else the address."""
        if backend.pod in self._objects.pod_of:
            family = f"IPv{ip_address(backend.address).version}"
            try:
                _, place = self._places.ends(source, backend.pod, family)
            except ValueError:
                return backend.address
            if str(place.address) == backend.address:
                return backend.pod
        return backend.address

    def _route(
        self, side: NodeSide, sender: Sender, backend: Backend, met: Met, *, is_rewritten: bool
    ) -> Route:
        if sender.address != backend.address or not sender.is_pod:
            return side.routes.to(sender.address, backend.address)
        if is_rewritten or not met.is_ours:
            own = side.services.node.addresses.get(met.server.family)
            return side.routes.to(str(ip_address(own)) if own else sender.address, backend.address)
        if met.direct is not None:
            return Route("inside", "the pod has the address itself")
        return Route("none", _NO_HAIRPIN)

    def _translation(
        self, side: NodeSide, sender: Sender, real: RealServerKey, met: Met, *, is_local: bool
    ) -> Translation:
        if is_local and met.is_ours and not self._is_process(sender, side.name):
            why = "IPVS hands it over on this node, where nothing rewrites it"
            return Translation("none", False, sender.address, why)
        return side.nat.of_backend(sender.address, real, met)

    def _egress(
        self, side: NodeSide, sender: Sender, backend: Backend, met: Met, *, is_local: bool
    ) -> Egress | None:
        """What the rules of this node do with a pod of its own, whatever its policies say.

        IPVS takes a packet once INPUT has let it pass as one for a Service; the chains behind that
        see what it sends on (``legs``), which does not leave the node for an address of its own.
        """
        if not sender.is_pod or sender.node != side.name:
            return None
        if met.is_ours and met.direct is not None:
            return _NO_DSR if self._settings.run_firewall else None
        if not is_local:
            return None
        return _HANDED_OVER if met.is_ours else self._to_own_node(backend.address)

    def _to_own_node(self, address: str) -> Egress | None:
        """INPUT judges none of the node's addresses then, listed by its Node or not."""
        if not self._settings.allow_own_node:
            return None
        return Egress(True, f"but {address} is its own node")

    def _by_default(
        self,
        judged: Judged,
        side: NodeSide,
        sender: Sender,
        address: str,
        *,
        is_sent_on: bool = True,
    ) -> tuple[Judged, str]:
        """With what no pod owns refused, and the node that refuses what goes to ``address``;
        ``is_sent_on``: this node has the packet pass as one between both ends."""
        deny, said = self._default_deny, list[str]()
        egress, ingress = judged.egress, judged.ingress
        # With --netpol-allow-own-node INPUT lets Services not pass before it looks who sends.
        is_seen = is_sent_on or self._settings.allow_own_node or sender.node != side.name
        if is_seen and deny.is_of(sender.node, sender.address):
            egress = structs.replace(egress, allowed=False)
            said.append(f"egress of {sender.address}: {_NOT_PROGRAMMED.format(sender.node)}")
        refuser = deny.node_of(address) if is_sent_on else ""
        if refuser == side.name and self._is_process(sender, refuser):
            refuser = ""
        if refuser:
            ingress = structs.replace(ingress, allowed=False)
            said.append(f"ingress of {address}: {_NOT_PROGRAMMED.format(refuser)}")
        if not said:
            return judged, ""
        sides = () if not judged.allowed else ("egress of ", "ingress of ")
        rest = (each for each in judged.reasons if not each.startswith(sides))
        return Judged(False, egress, ingress, (*said, *rest)), refuser

    def _is_process(self, sender: Sender, node: str) -> bool:
        """Whether a process of the node itself sends it."""
        place, _ = self._places.ends(sender.word, sender.address, "")
        return bool(node) and place.process_of == node

    def _owner(self, word: str, sender: Sender) -> tuple[str, str]:
        """The pod that a word stands for, and its node."""
        _, place = self._places.ends(sender.word, word, "")
        if place.owners:
            pod = place.owners[0]
            return pod.metadata.key, pod.spec.node_name or ""
        if word in self._objects.pod_of:
            return word, self._objects.pod_of[word].spec.node_name or ""
        return "", next(iter(place.nodes), "")
