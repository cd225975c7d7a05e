"""The API server, asked with the agent's credentials; judged in ``cluster``."""

from collections.abc import Iterable

from msgspec import Struct, structs

from kube_router_py.address_pool_config import CONFIG_MAP, KEY, compile_pools, pool_settings
from kube_router_py.address_pools import load_balancer_ranges
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.credentials import Credentials
from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import Node, Service, ServiceSpec
from kube_router_py.doctor import cluster, facts_api, permissions
from kube_router_py.doctor.findings import WARNING, Finding, found
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.paths import inside
from kube_router_py.doctor.place import Place
from kube_router_py.errors import ConfigurationError
from kube_router_py.options import Options
from kube_router_py.proxy.scheduling import SCHEDULER_ANNOTATION, SCHEDULERS
from kube_router_py.proxy.settings import proxy_options


class ClusterView(Struct, frozen=True):
    """What of the cluster could be seen: this node, all nodes, all Services."""

    node: NodeView | None = None
    nodes: tuple[NodeView, ...] = ()
    services: tuple[Service, ...] = ()

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Those that Services name."""
        named = {each.metadata.annotation(SCHEDULER_ANNOTATION) for each in self.services}
        return tuple(sorted(name for name in named if name in SCHEDULERS and name is not None))


class _Connection(Struct, frozen=True):
    """The flags by which the API server is found, as seen from here."""

    master: str
    kubeconfig: str


def look_at_cluster(look: Look, place: Place, node_name: str, *, is_preflight: bool) -> ClusterView:
    """Ask and judge; what cannot be asked is left out."""
    options = place.options
    credentials = _credentials(look, place)
    if credentials is None:
        return ClusterView()
    own = place.environ.get("KUBERNETES_PORT_443_TCP_ADDR", "")
    told = Service(spec=ServiceSpec(cluster_ip=own)) if own else None
    misled = tuple(cluster.check_way(credentials.addresses, options, told))
    look.tell(misled)
    answers = look.at("API servers", lambda: tuple(facts_api.answers(credentials))) or ()
    wrong = {each.object for each in misled}
    # That such an address does not answer has its reason told already.
    look.tell(
        each
        for each in cluster.check_answers(answers)
        if each.code == "clock-skew" or each.object not in wrong
    )
    if not any(each.works for each in answers):
        return ClusterView()
    client = Client(credentials)
    try:
        # What only the cluster tells is no reason not to start: the way works now.
        weight = WARNING if is_preflight else ""
        return _look_inside(look, place, client, node_name, None if misled else weight)
    finally:
        client.close()


def _credentials(look: Look, place: Place) -> Credentials | None:
    kubeconfig = place.options.kubeconfig
    given = _Connection(place.options.master, kubeconfig and inside(place.root, kubeconfig))
    try:
        return Credentials(given, place.environ, place.service_account)
    except ConfigurationError as error:
        look.tell(
            found(
                "api-not-configured",
                "API server",
                message,
                "give --kubeconfig or --master, or run in the agent's pod, with its ServiceAccount",
            )
            for message in error.messages
        )
        return None


def _look_inside(
    look: Look, place: Place, client: Client, node_name: str, weight_of_way: str | None
) -> ClusterView:
    """``weight_of_way``: how bad a way through the agent itself is; None: it is told already."""
    options, namespace = place.options, own_namespace(place.environ)
    asked = permissions.needed(options)
    refused = look.at("permissions", lambda: tuple(facts_api.refused(client, asked, namespace)))
    if refused:
        look.tell(cluster.check_permissions(refused, "the agent's account"))
    may_not = {each.resource for each in refused or () if each.verb == "list"}
    nodes = None if "nodes" in may_not else look.at("Nodes", lambda: facts_api.nodes(client))
    services = (
        None if "services" in may_not else look.at("Services", lambda: facts_api.services(client))
    )
    node: Node | None = None
    if nodes is not None:
        look.tell(cluster.unreadable("Nodes", nodes.problems))
        node = nodes.objects.get(node_name)
        # One that is there and cannot be read is not missing.
        if all(each.object != f"Node {node_name}" for each in nodes.problems):
            look.tell(cluster.check_node(node, node_name, options))
    if services is not None:
        look.tell(cluster.unreadable("Services", services.problems))
        listed = tuple(services.objects.values())
        if weight_of_way is not None:
            kubernetes = services.objects.get("default/kubernetes")
            look.tell(cluster.check_way(client.addresses, options, kubernetes, weight_of_way))
        # Policies alone ask neither where Services' addresses lie, nor who may have which.
        if options.run_service_proxy or options.run_router or options.run_loadbalancer:
            look.tell(cluster.check_service_range(listed, options))
            text = None
            if options.run_loadbalancer and "configmaps" not in may_not:
                text = look.at(
                    f"ConfigMap {namespace}/{CONFIG_MAP}",
                    lambda: facts_api.pools_text(client, namespace, CONFIG_MAP, KEY),
                )
            look.tell(
                look.at(
                    "addresses of Services",
                    lambda: tuple(_service_addresses(listed, options, namespace, text, place)),
                )
                or ()
            )
    return ClusterView(
        node_view(node)[0] if node is not None else None,
        tuple(node_view(each)[0] for each in nodes.objects.values()) if nodes else (),
        tuple(services.objects.values()) if services else (),
    )


def _service_addresses(
    services: Iterable[Service], options: Options, namespace: str, text: str | None, place: Place
) -> Iterable[Finding]:
    given = proxy_options(options)
    if options.run_loadbalancer:
        pools = compile_pools(pool_settings(options, namespace), text).pools
        ranges = load_balancer_ranges(given.load_balancer_ranges, pools)
        given = structs.replace(given, load_balancer_ranges=ranges)
    findings = tuple(cluster.check_service_addresses(services, given))
    # Of an agent without both nobody tells of addresses that are refused.
    if place.status is None or not (options.run_service_proxy or options.run_router):
        return findings
    # The agent knows more: addresses that were in a pool once are served as long as they are used.
    told = {str(each.get("object")) for each in place.status.get("problems") or ()}
    return (each for each in findings if each.object in told)
