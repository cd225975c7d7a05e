"""ClusterIPs and NodePorts of Services, allocated as a real API server does.

Free values start at a place derived from the Service's name, so that the same manifests get the
same addresses in every run; what a manifest asks for is honoured or refused with 422.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

from .status import Cause, Object, invalid

NODE_PORTS = range(30000, 32768)
_STATIC_NODE_PORTS = 86  # the lower band is left to requests for fixed ports
_STATIC_ADDRESSES = 16  # so are the first addresses

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _spec(service: Object | None) -> Object:
    spec = service.get("spec") if service else None
    return spec if isinstance(spec, dict) else {}


def _ports(spec: Object) -> list[Object]:
    ports = spec.get("ports")
    return [port for port in ports if isinstance(port, dict)] if isinstance(ports, list) else []


def _addresses(spec: Object) -> list[str]:
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP")]
    if not isinstance(addresses, list):
        return []
    return [a for a in addresses if isinstance(a, str) and a not in ("", "None")]


def _node_ports(spec: Object) -> Iterator[tuple[int, str]]:
    for port in _ports(spec):
        if isinstance(port.get("nodePort"), int) and port["nodePort"]:
            yield port["nodePort"], str(port.get("protocol", "TCP"))
    if isinstance(spec.get("healthCheckNodePort"), int) and spec["healthCheckNodePort"]:
        yield spec["healthCheckNodePort"], "TCP"


def _family(network: Network) -> str:
    return f"IPv{network.version}"


class Allocator:
    """What is taken, by whom; ``observe`` follows the store, ``allocate`` fills a Service."""

    def __init__(self, service_cidrs: Sequence[str]) -> None:
        self.networks: dict[str, Network] = {}
        for text in service_cidrs:
            network = ipaddress.ip_network(text)
            self.networks[_family(network)] = network
        self.families = tuple(self.networks)
        self._addresses: dict[str, str] = {}
        self._node_ports: dict[tuple[int, str], str] = {}

    def first_address(self, family: str) -> str:
        """The address of the Service default/kubernetes."""
        return str(self.networks[family][1])

    def observe(self, old: Object | None, new: Object | None) -> None:
        """A Service was written (None: created or deleted): follow what it holds."""
        for address in _addresses(_spec(old)):
            self._addresses.pop(address, None)
        for taken in _node_ports(_spec(old)):
            self._node_ports.pop(taken, None)
        if new is not None:
            owner = _key(new)
            self._addresses.update(dict.fromkeys(_addresses(_spec(new)), owner))
            self._node_ports.update(dict.fromkeys(_node_ports(_spec(new)), owner))

    def carry_over(self, new: Object, old: Object) -> None:
        """An update that leaves allocated fields out keeps them, as long as its type needs them."""
        before, after = _spec(old), _spec(new)
        external_name = "ExternalName"
        if not after or external_name in (before.get("type"), after.get("type")):
            return
        if not after.get("clusterIP") and not after.get("clusterIPs"):
            for field in ("clusterIP", "clusterIPs"):
                if field in before:
                    after[field] = before[field]
        if after.get("clusterIP") == before.get("clusterIP"):
            for field in ("ipFamilies", "ipFamilyPolicy", "clusterIPs"):
                if not after.get(field) and field in before:
                    after[field] = before[field]
        exposed = ("NodePort", "LoadBalancer")
        if before.get("type") in exposed and after.get("type") in exposed:
            ports = {(p.get("port"), p.get("protocol", "TCP")): p for p in _ports(before)}
            for port in _ports(after):
                same = ports.get((port.get("port"), port.get("protocol", "TCP")))
                if not port.get("nodePort") and same and same.get("nodePort"):
                    port["nodePort"] = same["nodePort"]
            if not after.get("healthCheckNodePort") and before.get("healthCheckNodePort"):
                after["healthCheckNodePort"] = before["healthCheckNodePort"]

    def allocate(self, service: Object, old: Object | None) -> None:
        """Complete a validated Service in place; 422 for what it asks and cannot have."""
        spec, causes = _spec(service), list[Cause]()
        if spec.get("type") == "ExternalName":
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(field, None)
        else:
            self._allocate_addresses(service, spec, causes)
        self._allocate_node_ports(service, spec, _spec(old), causes)
        if causes:
            raise invalid("Service", "", service["metadata"]["name"], causes)

    # --- addresses -----------------------------------------------------------------------------

    def _families_of(self, spec: Object, asked: list[str], causes: list[Cause]) -> list[str]:
        families = [f for f in spec.get("ipFamilies") or () if isinstance(f, str)]
        families += ["IPv6" if ":" in address else "IPv4" for address in asked[len(families) :]]
        if not families:
            families = [self.families[0]]
        for index, family in enumerate(families):
            if family not in self.networks:
                text = f'Invalid value: "{family}": not configured on this cluster'
                causes.append(Cause("FieldValueInvalid", text, f"spec.ipFamilies[{index}]"))
        policy = (
            spec.get("ipFamilyPolicy") or ("SingleStack", "RequireDualStack")[len(families) > 1]
        )
        spec["ipFamilyPolicy"] = policy
        if policy == "RequireDualStack" and len(self.networks) < 2:
            text = (
                f'Invalid value: "{policy}": this cluster is not configured for dual-stack services'
            )
            causes.append(Cause("FieldValueInvalid", text, "spec.ipFamilyPolicy"))
        if policy == "SingleStack":
            families = families[:1]
        elif len(families) == 1:
            families += [family for family in self.families if family != families[0]]
        return families

    def _allocate_addresses(self, service: Object, spec: Object, causes: list[Cause]) -> None:
        headless = spec.get("clusterIP") == "None" or spec.get("clusterIPs") == ["None"]
        asked = _addresses(spec)
        if headless and not spec.get("selector"):
            # Without a selector nothing says which families its endpoints have.
            spec.setdefault("ipFamilyPolicy", "RequireDualStack")
            families = list(self.families)
            if len(families) == 1:
                spec["ipFamilyPolicy"] = "SingleStack"
        else:
            families = self._families_of(spec, asked, causes)
        if causes:
            return
        spec["ipFamilies"] = families
        if headless:
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return
        owner = _key(service)
        addresses: list[str] = []
        for index, family in enumerate(families):
            wanted = asked[index] if index < len(asked) else ""
            network = self.networks[family]
            if not wanted:
                addresses.append(self._free_address(network, owner))
                continue
            field = f"spec.clusterIPs[{index}]"
            if not _is_inside(wanted, network):
                text = (
                    f'Invalid value: "{wanted}": failed to allocate IP {wanted}: the provided IP '
                    f"({wanted}) is not in the valid range. The range of valid IPs is {network}"
                )
                causes.append(Cause("FieldValueInvalid", text, field))
            elif self._addresses.get(wanted, owner) != owner:
                text = (
                    f'Invalid value: "{wanted}": failed to allocate IP {wanted}: provided IP is '
                    "already allocated"
                )
                causes.append(Cause("FieldValueInvalid", text, field))
            addresses.append(wanted)
        spec["clusterIP"], spec["clusterIPs"] = addresses[0], addresses

    def _free_address(self, network: Network, owner: str) -> str:
        size = min(network.num_addresses, 1 << 16) - 2
        first = _STATIC_ADDRESSES if size > 2 * _STATIC_ADDRESSES else 2
        start = crc32(owner.encode())
        for step in range(size - first):
            address = str(network[first + (start + step) % (size - first)])
            if address not in self._addresses:
                return address
        raise invalid(
            "Service",
            "",
            owner.partition("/")[2],
            [Cause("FieldValueInvalid", f"{network} is full", "spec.clusterIPs")],
        )

    # --- node ports ----------------------------------------------------------------------------

    def _allocate_node_ports(
        self, service: Object, spec: Object, before: Object, causes: list[Cause]
    ) -> None:
        kind, owner = spec.get("type"), _key(service)
        exposed = kind in ("NodePort", "LoadBalancer")
        taken: dict[int, set[str]] = {}
        for index, port in enumerate(_ports(spec)):
            if not exposed:
                # A Service that stops being exposed gives its ports back.
                if before.get("type") in ("NodePort", "LoadBalancer"):
                    port.pop("nodePort", None)
                continue
            wanted, protocol = port.get("nodePort"), str(port["protocol"])
            if wanted:
                self._check_node_port(wanted, protocol, owner, f"spec.ports[{index}]", causes)
            elif kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False:
                continue
            else:
                # Ports of one number under several protocols share one NodePort where possible.
                same = next(
                    (n for n, held in taken.items() if protocol not in held
                     and self._sibling(spec, index, n)),
                    0,
                )  # fmt: skip
                wanted = same or self._free_node_port(f"{owner}:{port.get('port')}", taken)
                port["nodePort"] = wanted
            taken.setdefault(wanted, set()).add(protocol)
        local = kind == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
        if not local:
            spec.pop("healthCheckNodePort", None)
        elif spec.get("healthCheckNodePort"):
            number = spec["healthCheckNodePort"]
            self._check_node_port(number, "TCP", owner, "spec.healthCheckNodePort", causes)
        else:
            spec["healthCheckNodePort"] = self._free_node_port(f"{owner}:health", taken)

    @staticmethod
    def _sibling(spec: Object, index: int, node_port: int) -> bool:
        port = _ports(spec)[index].get("port")
        others = _ports(spec)[:index]
        return any(p.get("port") == port and p.get("nodePort") == node_port for p in others)

    def _check_node_port(
        self, number: Any, protocol: str, owner: str, field: str, causes: list[Cause]
    ) -> None:
        if field.endswith("]"):
            field += ".nodePort"
        if number not in NODE_PORTS:
            text = (
                f"Invalid value: {number}: provided port is not in the valid range. The range of "
                f"valid ports is {NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
            )
            causes.append(Cause("FieldValueInvalid", text, field))
        elif self._node_ports.get((number, protocol), owner) != owner:
            text = f"Invalid value: {number}: provided port is already allocated"
            causes.append(Cause("FieldValueInvalid", text, field))

    def _free_node_port(self, seed: str, taken: dict[int, set[str]]) -> int:
        used = {number for number, _ in self._node_ports} | set(taken)
        size = len(NODE_PORTS) - _STATIC_NODE_PORTS
        start = crc32(seed.encode())
        for step in range(len(NODE_PORTS)):
            offset = _STATIC_NODE_PORTS + (start + step) % size if step < size else step - size
            if NODE_PORTS[offset] not in used:
                return NODE_PORTS[offset]
        cause = Cause("FieldValueInvalid", "no free node port is left", "spec.ports")
        raise invalid("Service", "", seed.partition(":")[0], [cause])


def _is_inside(text: str, network: Network) -> bool:
    try:
        return ipaddress.ip_address(text) in network
    except ValueError:
        return False


def _key(service: Object) -> str:
    metadata = service["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
