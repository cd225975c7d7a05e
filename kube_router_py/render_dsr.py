"""Direct server return in the rendered document: as if every pod's side were ready. Pure."""

from collections.abc import Iterable, Mapping

from kube_router_py.cluster.objects import EndpointSlice, NetworkPolicy, Pod, Service
from kube_router_py.manifests import Manifests
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.dsr import DirectServer, compile_dsr, wants_dsr, with_direct_servers
from kube_router_py.proxy.isolating import isolates_for_ingress
from kube_router_py.proxy.model import Vip, VirtualServerKey
from kube_router_py.proxy.settings import ThisNode

DirectServers = dict[VirtualServerKey, DirectServer]
"""By virtual server, whose key is a fwmark."""


def with_direct_return(
    compiled: Mapping[str, CompiledService],
    slices: Mapping[str, Iterable[EndpointSlice]],
    manifests: Manifests,
    node: ThisNode,
) -> tuple[dict[str, CompiledService], DirectServers]:
    """The compiled Services by key, with direct servers where they are asked for."""
    services = {each.metadata.key: each for each in manifests.list(Service)}
    pods = {each.metadata.key: each for each in manifests.list(Pod)}
    plain: set[Vip] = set()
    for key, each in compiled.items():
        if not wants_dsr(services[key]):
            plain |= each.vips

    def is_isolated(uid: str) -> bool:
        policies = manifests.list(NetworkPolicy)
        found = [pod for pod in pods.values() if pod.metadata.uid == uid]
        return any(isolates_for_ingress(policy, pod) for pod in found for policy in policies)

    result: dict[str, CompiledService] = {}
    servers: DirectServers = {}
    for key, each in compiled.items():
        direct = compile_dsr(
            services[key],
            slices.get(key, ()),
            each,
            node,
            is_shared=plain.__contains__,
            pod_of=pods.get,
            is_isolated=is_isolated,
        )
        servers |= {server.key: server for server in direct.servers}
        result[key] = with_direct_servers(each, direct, lambda server, backend: True)
    return result, servers
