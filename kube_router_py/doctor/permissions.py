"""What the agent asks of the API server, each permission by itself, and which parts need it. Pure.

The Roles of each overlay in manifests/ grant what its parts need, and nothing else (a test holds
both equal); Roles of single Secrets are with the overlays that need them.
"""

from collections.abc import Iterator

from msgspec import Struct

from kube_router_py.address_pool_config import CONFIG_MAP
from kube_router_py.options import Options

PROXY, FIREWALL, ROUTER, LOADBALANCER = "proxy", "firewall", "router", "loadbalancer"
_ALL = frozenset((PROXY, FIREWALL, ROUTER, LOADBALANCER))


class Permission(Struct, frozen=True, order=True):
    """``resource`` with its subresource (``services/status``); ``is_own``: in the agent's own
    namespace only, not in all of them; ``name``: of one object only. ``parts`` need it, or, where
    it ``is_optional``, do less without."""

    group: str
    resource: str
    verb: str
    is_own: bool = False
    name: str = ""
    parts: frozenset[str] = _ALL
    is_optional: bool = False

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}{f' {self.name}' if self.name else ''}"


def _watched(group: str, resource: str, *parts: str) -> Iterator[Permission]:
    for verb in ("list", "watch"):
        yield Permission(group, resource, verb, parts=frozenset(parts) or _ALL)


def _leases(*verbs: str, parts: frozenset[str] = _ALL) -> Iterator[Permission]:
    for verb in verbs:
        yield Permission("coordination.k8s.io", "leases", verb, is_own=True, parts=parts)


def _pools() -> Iterator[Permission]:
    for verb in ("list", "watch"):
        balancer = frozenset((LOADBALANCER,))
        yield Permission("", "configmaps", verb, True, CONFIG_MAP, balancer)


PERMISSIONS = (
    *_watched("", "nodes"),
    *_watched("", "services"),
    *_watched("", "namespaces", FIREWALL, LOADBALANCER),
    *_watched("", "pods", PROXY, FIREWALL),
    *_watched("discovery.k8s.io", "endpointslices", PROXY, ROUTER),
    *_watched("networking.k8s.io", "networkpolicies", PROXY, FIREWALL),
    Permission("", "services/status", "patch", parts=frozenset((LOADBALANCER,))),
    Permission("", "events", "create", is_optional=True),
    *_leases("create", "patch"),
    *_leases("list", "watch", parts=frozenset((PROXY, LOADBALANCER))),
    *_pools(),
)
"""All but those for single Secrets."""


def needed(options: Options) -> tuple[Permission, ...]:
    """Those that the parts need which run under these options."""
    running = {
        name
        for name, is_on in (
            (PROXY, options.run_service_proxy),
            (FIREWALL, options.run_firewall),
            (ROUTER, options.run_router),
            (LOADBALANCER, options.run_loadbalancer),
        )
        if is_on
    }
    found = [each for each in PERMISSIONS if each.parts & running]
    if options.run_loadbalancer:
        secret = options.loadbalancer_heartbeat_secret
        found.append(Permission("", "secrets", "get", is_own=True, name=secret, is_optional=True))
    return tuple(found)
