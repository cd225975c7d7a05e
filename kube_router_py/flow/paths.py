"""The way from a node to one destination: both ends' policies, source NAT, route. Pure."""

from ipaddress import ip_address

from msgspec import Struct

from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.firewall.evaluate_places import Places
from kube_router_py.flow.model import Backend, Path, Question, Route
from kube_router_py.flow.names import Names
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.flow.policies import judge
from kube_router_py.flow.routes import NodeRoutes
from kube_router_py.flow.services import Met, NodeServices
from kube_router_py.flow.source_nat import SourceNat
from kube_router_py.proxy.compile import HAIRPIN_ANNOTATION
from kube_router_py.proxy.model import RealServerKey

_NO_HAIRPIN = (
    "the pod would be sent its own address as the source and drop it: hairpin is off "
    f"(annotation {HAIRPIN_ANNOTATION}, --hairpin-mode)"
)


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
        places: Places,
        evaluator: Evaluator,
    ) -> None:
        self._objects, self._settings = objects, settings
        self._places, self._evaluator = places, evaluator

    def plain(
        self, side: NodeSide, sender: Sender, word: str, address: str, question: Question
    ) -> Path:
        """To an address as it is; ``word`` is how the evaluator knows it. Raises FlowError."""
        # Without a family for what is no literal, the evaluator would choose by itself.
        family = f"IPv{ip_address(address).version}"
        flow = Flow(sender.word, word, question.protocol, question.port, family)
        judged = judge(self._evaluator, flow, flow)
        pod, node = self._owner(word, sender)
        route = side.routes.to(sender.address, address)
        if not side.name:
            route = Route("unknown", "nothing says which node the flow passes")
        return Path(
            address=address,
            port=question.port,
            protocol=question.protocol,
            allowed=judged.allowed,
            egress=judged.egress,
            ingress=judged.ingress,
            reasons=judged.reasons,
            translation=side.nat.of_direct(sender.address, address),
            route=route,
            egress_source=sender.address,
            ingress_source=sender.address,
            judged_at=node if pod and self._settings.run_firewall else "",
            pod=pod,
            node=node,
        )

    def to_backend(
        self, side: NodeSide, sender: Sender, backend: Backend, met: Met, question: Question
    ) -> Path:
        """To a backend, from the node that serves the Service. Raises FlowError."""
        address = ip_address(backend.address)
        family = f"IPv{address.version}"
        real = RealServerKey(met.server.family, address.packed, backend.port)
        translation = side.nat.of_backend(sender.address, real, met)
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
        judged = judge(self._evaluator, sent, arriving)
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
            judged_at=node if pod and self._settings.run_firewall else "",
            pod=backend.pod or pod,
            node=node,
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

    def _owner(self, word: str, sender: Sender) -> tuple[str, str]:
        """The pod that a word stands for, and its node."""
        _, place = self._places.ends(sender.word, word, "")
        if place.owners:
            pod = place.owners[0]
            return pod.metadata.key, pod.spec.node_name or ""
        if word in self._objects.pod_of:
            return word, self._objects.pod_of[word].spec.node_name or ""
        return "", next(iter(place.nodes), "")
