"""What the API server says: whether it can be reached, what it permits, what is in it. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from kube_router_py.cluster.bootstrap import check_api_addresses
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.doctor.findings import ERROR, WARNING, Finding, found
from kube_router_py.doctor.permissions import Permission
from kube_router_py.errors import ConfigurationError
from kube_router_py.options import Options
from kube_router_py.problem import Problem
from kube_router_py.service_addresses import AddressRules, Kind, refusal
from kube_router_py.services import cluster_ips, load_balancer_ips, parse_address

# A certificate or token that is not valid yet fails at once; tokens live for ten minutes at least.
_SKEW_S, _TOKEN_S = 5.0, 600.0
_MOST_NAMED = 3
_NAMESPACE = "its own namespace"
_NOBODY = "system:anonymous"


class Answer(Struct, frozen=True):
    """What a server answered: HTTP ``status`` (0: nothing, ``error`` says why), and how far its
    clock is ahead of ours, in seconds, None where it did not tell the time."""

    address: str
    status: int = 0
    error: str = ""
    skew_s: float | None = None

    @property
    def is_refusal(self) -> bool:
        """Whether it takes us for nobody. A 403 to somebody is an answer: such may not look at
        this page (system:discovery), but at others."""
        return self.status == 401 or (self.status == 403 and _NOBODY in self.error)

    @property
    def works(self) -> bool:
        return 200 <= self.status < 300 or (self.status == 403 and not self.is_refusal)


def check_answers(answers: Iterable[Answer]) -> Iterator[Finding]:
    """Each server by itself."""
    answers = tuple(answers)
    works = any(each.works for each in answers)
    for each in answers:
        where = f"API server {each.address}"
        if each.is_refusal:
            yield found(
                "api-unauthorized",
                where,
                f"it does not accept the agent's credentials (HTTP {each.status} {each.error})",
                "renew the ServiceAccount's token (restart the pod), or the credentials in "
                "--kubeconfig",
            )
        elif not each.works:
            told = each.error or f"HTTP {each.status}"
            yield found(
                "api-unreachable",
                where,
                f"it does not answer: {told}",
                "look at the server and at what is between (firewalls, routes, certificates), or "
                "correct the address: api-host in the manifests' ConfigMap, --master or "
                "--kubeconfig",
                WARNING if works else ERROR,
            )
        if each.skew_s is not None and abs(each.skew_s) > _SKEW_S:
            direction = "behind" if each.skew_s > 0 else "ahead of"
            yield found(
                "clock-skew",
                where,
                f"the clock of this node is {abs(each.skew_s):.0f} s {direction} the server's: "
                "Leases and tokens end at the wrong time",
                "have the node's clock set (chronyd, systemd-timesyncd)",
                ERROR if abs(each.skew_s) > _TOKEN_S else WARNING,
            )


def check_way(
    urls: Iterable[str], options: Options, kubernetes_service: Service | None, severity: str = ""
) -> Iterator[Finding]:
    """The addresses of API servers must not be what the agent itself makes work."""
    for url in urls:
        try:
            check_api_addresses([url], options.service_cluster_ip_range, kubernetes_service)
        except ConfigurationError as error:
            what, _, remedy = error.messages[0].partition(": ")
            # The URL has a colon of its own, but none that a space follows.
            where = f"API server {url}"
            yield found("api-through-cluster-ip", where, what, remedy, severity)


def check_permissions(refused: Iterable[Permission], account: str) -> Iterator[Finding]:
    for each in refused:
        where = f"in {_NAMESPACE}" if each.is_own else "in the whole cluster"
        yield found(
            "rbac-missing",
            f"permission {each}",
            f"{account} may not {each} {where}",
            "apply the Roles of manifests/ again (kubectl apply -k of the overlay in use)",
            WARNING if each.is_optional else ERROR,
        )


def unreadable(kind: str, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Objects of a kind that are left out, as not even the agent can read them."""
    if problems:
        yield found(
            "could-not-look",
            kind,
            f"they cannot be read, or not all of them: {_named([*map(str, problems)])}",
            "correct these objects; the agent does not know them, either",
        )


def check_node(node: Node | None, name: str, options: Options) -> Iterator[Finding]:
    if node is None:
        yield found(
            "node-missing",
            f"Node {name}",
            "the cluster has no Node of this name",
            "correct NODE_NAME or --hostname-override, or register the node (is its kubelet up?)",
        )
        return
    view, _ = node_view(node)
    needs = options.run_router
    for version, is_on, cidrs in (
        (4, options.enable_ipv4, view.pod_cidrs_ipv4),
        (6, options.enable_ipv6, view.pod_cidrs_ipv6),
    ):
        annotated = any("pod-cidr" in key for key in view.annotations)
        if needs and is_on and not cidrs and not annotated:
            yield found(
                "pod-cidr-missing",
                f"Node {name}",
                f"it has no pod CIDR of IPv{version}: its pods get no addresses",
                "have the controller manager allocate one (--allocate-node-cidrs, --cluster-cidr), "
                f"or set the annotation kube-router.io/pod-cidrs, or --enable-ipv{version}=false",
            )


def check_service_range(services: Iterable[Service], options: Options) -> Iterator[Finding]:
    """The ClusterIPs that Services have lie where the flag says."""
    versions = [4] * options.enable_ipv4 + [6] * options.enable_ipv6
    outside: list[str] = []
    for service in services:
        for text in cluster_ips(service):
            parsed = parse_address(text)
            if parsed is None:
                continue
            packed = parsed[1]
            version = 4 if len(packed) == 4 else 6
            number = int.from_bytes(packed, "big")
            inside = any(
                each.version == version
                and int(each.network_address) <= number <= int(each.broadcast_address)
                for each in options.service_cluster_ip_range
            )
            if version in versions and not inside:
                outside.append(f"{service.metadata.key} ({text})")
    if outside:
        given = ",".join(map(str, options.service_cluster_ip_range)) or "nothing"
        yield found(
            "service-range-wrong",
            "Flag --service-cluster-ip-range",
            f"it says {given}, but ClusterIPs lie outside: {_named(outside)}",
            "set it to what the API server's --service-cluster-ip-range says",
        )


def check_service_addresses(services: Iterable[Service], rules: AddressRules) -> Iterator[Finding]:
    """Addresses that Services have, and that the agent's flags and pools refuse to serve and to
    announce."""
    for service in services:
        asked = [(Kind.EXTERNAL_IP, text) for text in service.spec.external_ips or ()]
        asked += [(Kind.LOAD_BALANCER_IP, text) for _, text in load_balancer_ips(service)]
        for kind, text in asked:
            parsed = parse_address(text)
            if parsed is None or parsed[0] not in rules.families:
                continue
            reason = refusal(kind, parsed[1], rules)
            if not reason:
                continue
            is_balancer = kind is Kind.LOAD_BALANCER_IP
            flag = "--loadbalancer-ip-range" if is_balancer else "--service-external-ip-range"
            length = 32 if len(parsed[1]) == 4 else 128
            pools = " (or, with --run-loadbalancer, to an address pool)" if is_balancer else ""
            yield found(
                "lb-ip-refused" if is_balancer else "external-ip-refused",
                f"Service {service.metadata.key}",
                f"its address {text} is refused: {reason}",
                f"add the address to {flag}, as {flag}={text}/{length}, or better the range that "
                f"such addresses come from{pools}",
            )


def check_pools(pools: Sequence[Mapping[str, object]], waiting: int) -> Iterator[Finding]:
    """``pools`` as the agent's status has them: name, family, free; ``waiting``: Services."""
    if not waiting:
        return
    for pool in pools:
        if not pool.get("free"):
            yield found(
                "pool-full",
                f"pool {pool.get('name')}",
                f"it has no free address of {pool.get('family')}, and {waiting} Services wait",
                "add addresses to the pool, or delete Services that have one of it",
            )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
