"""Which Service an address and port belong to on a node, and what IPVS has of it. Pure.

Everything is compiled by the functions that the agent itself compiles with.
"""

import socket

from msgspec import Struct, structs

from kube_router_py.cluster.objects import EndpointSlice, NetworkPolicy, Service, ServicePort
from kube_router_py.endpoint_slices import PROTOCOLS
from kube_router_py.flow.model import ServiceAddress, ServiceStep
from kube_router_py.flow.names import Names, addresses_of
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.flow.service_words import (
    address_text,
    kind_at,
    ports_of,
    server_of,
    why_no_address,
    why_refused,
)
from kube_router_py.policy_audit import asked_audit
from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.dsr import DirectServer, compile_dsr, wants_dsr, with_direct_servers
from kube_router_py.proxy.isolating import isolates_for_ingress
from kube_router_py.proxy.model import Vip, VirtualServerKey, VirtualServerState
from kube_router_py.proxy.settings import ThisNode, backend_weights, this_node
from kube_router_py.service_addresses import Kind
from kube_router_py.services import (
    PROXY_NAME,
    PROXY_NAME_LABEL,
    is_external_local,
    is_internal_local,
    parse_address,
)

_FAMILIES = {4: int(socket.AF_INET), 16: int(socket.AF_INET6)}
_REFUSING = "this node answers for the address, and for no such port"


class Group(Struct, frozen=True):
    """Services that share addresses or NodePorts, as compiled for one node.

    ``plain`` are they without direct server return, ``direct`` the direct servers by the address
    that gets the mark.
    """

    desired: Desired
    plain: dict[str, CompiledService]
    direct: dict[VirtualServerKey, DirectServer]


class Met(Struct, frozen=True):
    """A Service whose address a flow is for. ``state`` is what stands behind ``server``, None where
    nothing does; ``is_passed_on``: the packets go on as if there were no such Service;
    ``is_refused``: and no node may have the address."""

    step: ServiceStep
    service: Service
    server: VirtualServerKey
    group: Group
    kind: Kind
    port: ServicePort | None = None
    state: VirtualServerState | None = None
    is_ours: bool = True
    is_passed_on: bool = False
    is_refused: bool = False

    @property
    def direct(self) -> DirectServer | None:
        return self.group.direct.get(self.server)


class NodeServices:
    """The Services as one node has them; what was compiled is kept."""

    def __init__(
        self, objects: ClusterObjects, settings: FlowSettings, names: Names, node_name: str
    ) -> None:
        self._objects, self._settings, self._names = objects, settings, names
        view = objects.views.get(node_name)
        self.node = ThisNode(node_name)
        if view is not None:
            weights, _ = backend_weights(objects.nodes)
            live = settings.addresses.get(node_name, ())
            self.node = this_node(view, settings.proxy, live, weights=weights)
        # Those of the node itself, as far as they are known.
        own = settings.own_addresses(node_name, view)
        self.live = {(_FAMILIES[len(packed)], packed) for packed in own}
        self._groups: dict[tuple[str, ...], Group] = {}

    def slices(self, key: str) -> tuple[EndpointSlice, ...]:
        return self._objects.slices_of.get(key, ())

    def meet(self, address: str, port: int, protocol: str, key: str = "") -> Met | None:
        """The Service that this address, port and protocol belong to; ``key``: it is asked for.

        None where no Service is concerned.
        """
        parsed = parse_address(address)
        number = PROTOCOLS.get(protocol)
        if parsed is None or number is None:
            return None
        family, packed = parsed
        # Another Service may have the NodePort of an address that one has for its external IP.
        claimants = self._claimants(address, port, protocol)
        keys = (key,) if key else claimants
        if not keys:
            return None
        server = VirtualServerKey(family, number, packed, port)
        group = self._group(tuple(dict.fromkeys((*keys, *claimants))))
        in_ipvs = group.direct[server].key if server in group.direct else server
        owner = group.desired.owner(in_ipvs)
        if owner is None or (key and owner != key):
            chosen = next((each for each in keys if self._port(each, port, protocol)), keys[0])
            return self._unserved(chosen, server, protocol, group, owner)
        return self._served(owner, server, in_ipvs, protocol, group)

    def _claimants(self, address: str, port: int, protocol: str) -> tuple[str, ...]:
        found = dict.fromkeys(self._names.services_at.get(address, ()))
        if address in self._names.node_at or parse_address(address) in self._own_addresses():
            found |= dict.fromkeys(
                self._names.services_of_node_port.get((protocol, port), ()), None
            )
        return tuple(found)

    def _own_addresses(self) -> set[tuple[int, bytes]]:
        served = self.node.node_port_addresses.items()
        return {(family, packed) for family, each in served for packed in each}

    # --- compiled ------------------------------------------------------------------------------

    def _group(self, keys: tuple[str, ...]) -> Group:
        found = self._groups.get(keys)
        if found is None:
            among = set(keys).union(*map(self._sharing, keys))
            services = [_as_ours(self._objects.service_of[each]) for each in sorted(among)]
            found = self._groups[keys] = self._compile(services)
        return found

    def _sharing(self, key: str) -> set[str]:
        """All Services that may claim what one claims."""
        service = self._objects.service_of[key]
        keys: set[str] = set()
        for address in addresses_of(service):
            keys.update(self._names.services_at.get(address, ()))
        for port in service.spec.ports or ():
            if port.node_port:
                place = (port.protocol or "TCP", port.node_port)
                keys.update(self._names.services_of_node_port.get(place, ()))
        return keys

    def _compile(self, services: list[Service]) -> Group:
        desired = Desired()
        direct: dict[VirtualServerKey, DirectServer] = {}
        plain = {
            each.metadata.key: compile_service(
                each, self.slices(each.metadata.key), self.node, self._settings.proxy
            )
            for each in services
        }
        shared = {
            vip for each in services if not wants_dsr(each) for vip in plain[each.metadata.key].vips
        }
        for each in services:
            key = each.metadata.key
            found = compile_dsr(
                each,
                self.slices(key),
                plain[key],
                self.node,
                is_shared=shared.__contains__,
                pod_of=self._objects.pod_of.get,
                is_isolated=self._is_isolated,
            )
            direct |= {one.address: one for one in found.servers}
            # As if the tunnel in every pod were ready.
            compiled = with_direct_servers(plain[key], found, lambda server, backend: True)
            desired.update(key, compiled)
        return Group(desired, plain, direct)

    def _is_isolated(self, uid: str) -> bool:
        pods = [pod for pod in self._objects.pods if pod.metadata.uid == uid]
        return any(
            isolates_for_ingress(policy, pod) and not self._is_audited(policy)
            for policy in self._objects.policies
            for pod in pods
        )

    def _is_audited(self, policy: NetworkPolicy) -> bool:
        """As ``proxy.isolation`` has it: another program that enforces policies knows no audit."""
        if not self._settings.run_firewall:
            return False
        asked = asked_audit(policy.metadata)
        if asked is None:
            space = self._objects.namespace_of.get(policy.metadata.namespace)
            return space is not None and asked_audit(space.metadata) is True
        return asked

    # --- what is told --------------------------------------------------------------------------

    def _port(self, key: str, port: int, protocol: str) -> ServicePort | None:
        for each in self._objects.service_of[key].spec.ports or ():
            if port in (each.port, each.node_port) and (each.protocol or "TCP") == protocol:
                return each
        return None

    def _served(
        self,
        key: str,
        server: VirtualServerKey,
        in_ipvs: VirtualServerKey,
        protocol: str,
        group: Group,
    ) -> Met:
        service = self._objects.service_of[key]
        origin = group.desired.origin(in_ipvs)
        port = self._port_of(service, origin.port_name, origin.kind, server.port, protocol)
        state = group.desired.state(in_ipvs)
        assert state is not None
        why_not = self._other_proxy(service)
        address = ServiceAddress(str(origin.kind), address_text(server.address), server.port)
        is_local = is_internal_local if origin.kind is Kind.CLUSTER_IP else is_external_local
        step = ServiceStep(
            key=key,
            port=port.port if port else server.port,
            protocol=protocol,
            address=address,
            port_name=origin.port_name,
            target_port=str((port.target_port if port else None) or ""),
            addresses=self._addresses(service, port, protocol, group),
            policy="Local" if is_local(service) else "Cluster",
            why_not=why_not,
            node=self.node.name,
            server=None if why_not else server_of(server, in_ipvs, protocol, state),
        )
        return Met(
            step=step,
            service=service,
            server=server,
            group=group,
            kind=origin.kind,
            port=port,
            state=state,
            is_ours=not why_not,
        )

    def _other_proxy(self, service: Service) -> str:
        name = service.metadata.label(PROXY_NAME_LABEL)
        if name not in (None, PROXY_NAME):
            return f"its label {PROXY_NAME_LABEL} gives it to another proxy, {name!r}"
        if not self._settings.run_proxy:
            return "--run-service-proxy=false: another proxy serves Services"
        return ""

    def _port_of(
        self, service: Service, name: str, kind: Kind, number: int, protocol: str
    ) -> ServicePort | None:
        for each in service.spec.ports or ():
            its = each.node_port if kind is Kind.NODE_PORT else each.port
            same = (each.name or "", its, each.protocol or "TCP")
            if same == (name, number, protocol):
                return each
        return None

    def _unserved(
        self,
        key: str,
        server: VirtualServerKey,
        protocol: str,
        group: Group,
        owner: str | None,
    ) -> Met:
        service = self._objects.service_of[key]
        text = address_text(server.address)
        port = self._port(key, server.port, protocol)
        kind = kind_at(service, text)
        # At an address that came to the node by other hands, the other ports are theirs.
        is_vip = (server.family, server.address) not in self.live and bool(
            group.desired.vip_claimants(Vip(server.family, server.address))
        )
        reason = self._why_not(service, text, server, protocol, group, owner)
        is_ours = not self._other_proxy(service)
        is_refusing = is_vip and owner is None and is_ours
        is_passed_on = not is_vip and owner is None
        is_of_a_node = text in self._names.node_at or (server.family, server.address) in self.live
        step = ServiceStep(
            key=key,
            port=port.port if port else server.port,
            protocol=protocol,
            address=ServiceAddress(str(kind), text, server.port, reason),
            port_name=(port.name if port else None) or "",
            target_port=str((port.target_port if port else None) or ""),
            addresses=self._addresses(service, port, protocol, group),
            why_not=f"{reason}; {_REFUSING}" if is_refusing else reason,
            node=self.node.name,
        )
        return Met(
            step=step,
            service=service,
            server=server,
            group=group,
            kind=kind,
            port=port,
            is_ours=is_ours,
            is_passed_on=is_passed_on,
            is_refused=is_passed_on
            and is_ours
            and not is_of_a_node
            and bool(why_refused(text, group.plain[key])),
        )

    def _why_not(
        self,
        service: Service,
        text: str,
        server: VirtualServerKey,
        protocol: str,
        group: Group,
        owner: str | None,
    ) -> str:
        key = service.metadata.key
        if owner is not None:
            return f"{server} is held by the older Service {owner}"
        if text not in addresses_of(service):  # a NodePort
            served = self.node.node_port_addresses.get(server.family, ())
            where = ", ".join(map(address_text, served)) or "no address of its family"
            return (
                f"NodePort {server.port} is not served at {text}: on node {self.node.name} it is "
                f"at {where} (--nodeport-addresses, --nodeport-bindon-all-ip)"
            )
        if reason := why_no_address(service, text, group.plain[key], self._settings.proxy):
            return reason
        if self._port(key, server.port, protocol) is None:
            return f"it has no port {server.port}/{protocol}; it has {ports_of(service)}"
        node_port = any(each.node_port == server.port for each in service.spec.ports or ())
        if node_port:
            return (
                f"{server.port} is its NodePort, which is served at addresses of nodes; at {text} "
                f"it has {ports_of(service)}"
            )
        return "; ".join(
            each.reason for each in group.desired.problems() if each.object == f"Service {key}"
        )

    def _addresses(
        self, service: Service, port: ServicePort | None, protocol: str, group: Group
    ) -> tuple[ServiceAddress, ...]:
        """All that the Service is offered at, on this node, for one of its ports."""
        if port is None:
            return ()
        compiled = group.plain[service.metadata.key]
        found = [
            ServiceAddress(
                str(kind_at(service, text)),
                text,
                port.port,
                why_no_address(service, text, compiled, self._settings.proxy),
            )
            for text in dict.fromkeys(addresses_of(service))
        ]
        if port.node_port and service.spec.type in ("NodePort", "LoadBalancer"):
            found += [
                ServiceAddress(str(Kind.NODE_PORT), address_text(each.address), each.port)
                for each, origin in sorted(compiled.origins.items())
                if origin.kind is Kind.NODE_PORT and each.port == port.node_port
            ]
        return tuple(found)


def _as_ours(service: Service) -> Service:
    """A Service that another proxy serves, as this one would: Kubernetes' rules hold for all."""
    labels = service.metadata.labels or {}
    if labels.get(PROXY_NAME_LABEL) in (None, PROXY_NAME):
        return service
    left = {name: value for name, value in labels.items() if name != PROXY_NAME_LABEL}
    return structs.replace(service, metadata=structs.replace(service.metadata, labels=left))
