"""What the words for the ends of a flow mean: pods, nodes, Services, addresses. Pure."""

import ipaddress
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property

from msgspec import Struct

from kube_router_py.cluster.objects import Service
from kube_router_py.firewall.evaluate import FlowError
from kube_router_py.flow.model import EndKind
from kube_router_py.flow.objects import ClusterObjects
from kube_router_py.proxy.surroundings import FINISHED
from kube_router_py.services import cluster_ips

_SERVICE_PREFIXES = ("service/", "svc/")
# name.namespace.svc, with a cluster's domain behind it or not.
_DNS = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\.[a-z0-9.-]+)?", re.ASCII)
_MANY = 3


class Named(Struct, frozen=True):
    """What a word stands for. ``key`` as of ``model.End``; ``places`` are the words by which
    ``firewall.evaluate`` knows it, one for each address where it knows no other."""

    written: str
    kind: EndKind
    key: str = ""
    places: tuple[str, ...] = ()


class Names:
    """Everything that has a name or an address."""

    def __init__(self, objects: ClusterObjects) -> None:
        self._objects = objects

    def source(self, text: str) -> Named:
        """``namespace/pod``, ``pod/NAMESPACE/NAME``, ``node/NAME`` or an address. Raises
        FlowError."""
        if (literal := canonical(text)) is not None:
            return self._at(text, literal)
        plain = text.removeprefix("pod/") if text.count("/") == 2 else text
        name = plain.removeprefix("node/")
        if name != plain and (name in self._objects.views or plain not in self._objects.pod_of):
            if name not in self._objects.views:
                raise FlowError(f"from: there is no Node {name!r}{self._near_node(name)}")
            return Named(text, "node", name, (plain,))
        space, slash, pod = plain.partition("/")
        if not space or not slash or not pod or "/" in pod:
            raise FlowError(f"from: {text!r} is neither namespace/pod, node/NAME nor an IP address")
        if plain not in self._objects.pod_of:
            remedy = ""
            if plain in self._objects.service_of:
                remedy = "; there is a Service of that name, but no connection begins at a Service"
            else:
                remedy = self._near(plain, self._objects.pod_of)
            raise FlowError(f"from: there is no pod {plain}{remedy}")
        return Named(text, "pod", plain, (plain,))

    def destination(self, text: str) -> Named:
        """``namespace/pod``, ``service/NAMESPACE/NAME``, ``svc/...``, ``NAMESPACE/NAME`` of a
        Service where no pod is called so, ``name.namespace.svc``, ``node/NAME`` or an address.
        Raises FlowError."""
        if (literal := canonical(text)) is not None:
            return self._at(text, literal)
        objects = self._objects
        if (key := _service_key(text)) is not None:
            if key not in objects.service_of:
                raise FlowError(
                    f"to: there is no Service {key}{self._near(key, objects.service_of)}"
                )
            return self._service(text, key)
        plain = text.removeprefix("pod/") if text.count("/") == 2 else text
        name = plain.removeprefix("node/")
        if name != plain and plain not in objects.pod_of and plain not in objects.service_of:
            view = objects.views.get(name)
            if view is None:
                raise FlowError(f"to: there is no Node {name!r}{self._near_node(name)}")
            return Named(text, "node", name, tuple(map(str, view.addresses)))
        space, slash, rest = plain.partition("/")
        if not space or not slash or not rest or "/" in rest:
            raise FlowError(
                f"to: {text!r} is neither namespace/pod, service/NAMESPACE/NAME, node/NAME nor an "
                "IP address"
            )
        if plain in objects.pod_of:
            return Named(text, "pod", plain, (plain,))
        if plain in objects.service_of and plain == text:
            return self._service(text, plain)
        near = self._near(plain, {**objects.pod_of, **objects.service_of})
        raise FlowError(f"to: there is no pod{_or_service(objects)} {plain}{near}")

    def _service(self, text: str, key: str) -> Named:
        service = self._objects.service_of[key]
        if service.spec.type == "ExternalName":
            raise FlowError(
                f"to: Service {key} is ExternalName: it has no address, its name is an alias of "
                "another; ask for that"
            )
        return Named(text, "service", key, tuple(dict.fromkeys(addresses_of(service))))

    def _at(self, text: str, literal: str) -> Named:
        if keys := self.pods_at.get(literal):
            return Named(text, "pod", keys[0], (literal,))
        if keys := self.services_at.get(literal):
            return Named(text, "service", keys[0], (literal,))
        if name := self.node_at.get(literal):
            return Named(text, "node", name, (literal,))
        return Named(text, "external", "", (literal,))

    def addresses(self, named: Named) -> tuple[str, ...]:
        """Every address that what is named has, canonical."""
        objects = self._objects
        found: list[str | None] = []
        if named.kind == "pod" and (pod := objects.pod_of.get(named.key)) and pod.status:
            found = [canonical(pod.status.pod_ip or "")]
            found += [canonical(each.ip) for each in pod.status.pod_ips or ()]
        elif named.kind == "service":
            found = [*addresses_of(objects.service_of[named.key])]
        elif named.kind == "node" and named.key in objects.views:
            found = [*map(str, objects.views[named.key].addresses)]
        return tuple(dict.fromkeys(each for each in found if each is not None))

    @cached_property
    def pods_at(self) -> dict[str, tuple[str, ...]]:
        """The live pods with an address of their own, by address."""
        found: dict[str, list[str]] = {}
        for key, pod in sorted(self._objects.pod_of.items()):
            status = pod.status
            if status is None or pod.spec.host_network or status.phase in FINISHED:
                continue
            texts = (status.pod_ip or "", *(each.ip for each in status.pod_ips or ()))
            for address in {canonical(each) for each in texts} - {None}:
                found.setdefault(str(address), []).append(key)
        return {address: tuple(keys) for address, keys in found.items()}

    @cached_property
    def services_at(self) -> dict[str, tuple[str, ...]]:
        """The Services that name an address, whether it is served or not, by address."""
        found: dict[str, list[str]] = {}
        for key, service in sorted(self._objects.service_of.items()):
            for address in dict.fromkeys(addresses_of(service)):
                found.setdefault(address, []).append(key)
        return {address: tuple(keys) for address, keys in found.items()}

    @cached_property
    def node_at(self) -> dict[str, str]:
        """The nodes, by address."""
        found: dict[str, str] = {}
        for name in sorted(self._objects.views):
            for address in self._objects.views[name].addresses:
                found.setdefault(str(address), name)
        return found

    @cached_property
    def services_of_node_port(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """The Services with a NodePort, by protocol and number."""
        found: dict[tuple[str, int], list[str]] = {}
        for key, service in sorted(self._objects.service_of.items()):
            if service.spec.type not in ("NodePort", "LoadBalancer"):
                continue
            for port in service.spec.ports or ():
                if port.node_port:
                    found.setdefault((port.protocol or "TCP", port.node_port), []).append(key)
        return {place: tuple(dict.fromkeys(keys)) for place, keys in found.items()}

    def _near(self, key: str, known: Iterable[str]) -> str:
        """The names that somebody may have meant: alike in the namespace, the same in others."""
        space, _, name = key.partition("/")
        same_space: list[str] = []
        same_name: list[str] = []
        spaces: set[str] = set()
        for each in known:
            its_space, _, its_name = each.partition("/")
            spaces.add(its_space)
            if its_space == space:
                same_space.append(its_name)
            elif its_name == name:
                same_name.append(each)
        near = [f"{space}/{each}" for each in get_close_matches(name, same_space, _MANY)]
        near += sorted(same_name)[: _MANY - len(near)]
        if near:
            return f"; did you mean {', '.join(near)}?"
        if spaces and space not in spaces and (alike := get_close_matches(space, spaces, 1)):
            return f"; did you mean namespace {alike[0]}?"
        return ""

    def _near_node(self, name: str) -> str:
        near = get_close_matches(name, self._objects.views, _MANY)
        return f"; did you mean {', '.join(near)}?" if near else ""


def canonical(text: str) -> str | None:
    """An address in its canonical form, None for what is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def addresses_of(service: Service) -> list[str]:
    """Every address that a Service names, canonical; ClusterIPs first."""
    balancer = service.status.load_balancer if service.status else None
    texts = (
        *cluster_ips(service),
        *(service.spec.external_ips or ()),
        *(each.ip or "" for each in (balancer.ingress if balancer else None) or ()),
    )
    return [found for each in texts if (found := canonical(each)) is not None]


def _service_key(text: str) -> str | None:
    """``namespace/name`` of what can only be a Service."""
    for prefix in _SERVICE_PREFIXES:
        rest = text.removeprefix(prefix)
        if rest != text and rest.count("/") == 1 and all(rest.split("/")):
            return rest
    if found := _DNS.fullmatch(text.lower().removesuffix(".")):
        return f"{found[2]}/{found[1]}"
    return None


def _or_service(objects: ClusterObjects) -> str:
    return " or Service" if objects.services else ""
