"""The status of a Service: what a real API server completes and refuses in it.

Source: Kubernetes 1.32, ValidateLoadBalancerStatus, SetDefaults_Service, dropTypeDependentFields.
"""

from __future__ import annotations

import ipaddress

from .checks import Check
from .resources import Resource
from .status import Object, invalid

_INGRESS = "status.loadBalancer.ingress"
_MODES = ("Proxy", "VIP")


def drop_unfit(service: Object) -> None:
    """A Service that is no load balancer (any more) has no addresses of one. Changes it."""
    status = service.get("status")
    if not _is_balancer(service) and isinstance(status, dict) and status.get("loadBalancer"):
        service["status"] = {**status, "loadBalancer": {}}


def check(kind: Resource, service: Object) -> None:
    """Complete a status that was written; raise 422 with every cause of what is wrong in it."""
    found = Check()
    entries = found.objects(_INGRESS, _balancer(service).get("ingress"))
    if entries and not _is_balancer(service):
        found.forbidden(_INGRESS, "may only be used when `spec.type` is 'LoadBalancer'")
        entries = []
    for where, entry in entries:
        if entry.get("ip"):
            entry.setdefault("ipMode", "VIP")
        _entry(found, where, entry)
    if found.causes:
        raise invalid(kind.kind, kind.group, service["metadata"]["name"], found.causes)


def _is_balancer(service: Object) -> bool:
    spec = service.get("spec")
    return isinstance(spec, dict) and spec.get("type") == "LoadBalancer"


def _entry(found: Check, where: str, entry: Object) -> None:
    address, mode, host = entry.get("ip"), entry.get("ipMode"), entry.get("hostname")
    if address:
        found.address(f"{where}.ip", address)
    if mode is not None and not address:
        found.forbidden(f"{where}.ipMode", "may not be specified when `ip` is not set")
    elif mode is not None:
        found.one_of(f"{where}.ipMode", mode, _MODES)
    if host and _is_address(host):
        found.invalid(f"{where}.hostname", host, "must be a DNS name, not an IP address")
    for at, port in found.objects(f"{where}.ports", entry.get("ports")):
        number = port.get("port")
        if isinstance(number, bool) or not isinstance(number, int):
            found.invalid(f"{at}.port", number, "must be a number")
        found.one_of(f"{at}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))


def _balancer(service: Object) -> Object:
    status = service.get("status")
    found = status.get("loadBalancer") if isinstance(status, dict) else None
    return found if isinstance(found, dict) else {}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
