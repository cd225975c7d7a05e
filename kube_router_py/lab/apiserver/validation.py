"""Validation: what is wrong with an object, in the words of a real API server.

Useful, not complete: names, labels, Services, pods, Deployments, NetworkPolicies and EndpointSlices
are checked as far as people get them wrong; everything else is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .checks import Check
from .resources import Resource
from .status import Object, invalid

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{_LABEL}(\\.{_LABEL})*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    f"for validation is '{_LABEL}')"
)
_SERVICE_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', "
    "regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_PROTOCOLS = ("SCTP", "TCP", "UDP")


# --- kinds ---------------------------------------------------------------------------------------


def _service(check: Check, service: Object, old: Object | None) -> None:
    spec = check.object("spec", service.get("spec"), required=True)
    if not spec:
        return
    kind = spec.get("type")
    check.one_of("spec.type", kind, ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"))
    headless = spec.get("clusterIP") == "None"
    ports = check.objects("spec.ports", spec.get("ports"))
    if not ports and not headless and kind != "ExternalName" and not check.causes:
        check.required("spec.ports")
    names: set[str] = set()
    numbers: set[tuple[Any, Any]] = set()
    for where, port in ports:
        name = port.get("name") or ""
        if not name and len(ports) > 1:
            check.required(f"{where}.name")
        elif name:
            if not isinstance(name, str) or len(name) > 63 or not _DNS_LABEL.fullmatch(name):
                check.invalid(f"{where}.name", name, _LABEL_RULE)
            elif name in names:
                check.duplicate(f"{where}.name", name)
            names.add(str(name))
        check.port(f"{where}.port", port.get("port", 0))
        check.one_of(f"{where}.protocol", port.get("protocol"), _PROTOCOLS)
        if port.get("targetPort") != port.get("port"):
            check.named_port(f"{where}.targetPort", port.get("targetPort"))
        number = (str(port.get("protocol")), str(port.get("port")))
        if number in numbers:
            value = {"port": port.get("port"), "protocol": port.get("protocol")}
            check.duplicate(where, value)
        numbers.add(number)
        if port.get("nodePort") and kind in ("ClusterIP", "ExternalName") and old is None:
            check.forbidden(f"{where}.nodePort", "may not be used when `type` is 'ClusterIP'")
    if headless and kind in ("NodePort", "LoadBalancer"):
        check.invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP")]
    for index, address in enumerate(addresses):
        if address not in (None, "", "None"):
            check.address(f"spec.clusterIPs[{index}]", address)
    if (
        spec.get("clusterIP")
        and spec.get("clusterIPs")
        and (spec["clusterIPs"][0] != spec["clusterIP"])
    ):
        check.invalid("spec.clusterIPs", spec["clusterIPs"], "first value must match `clusterIP`")
    for index, address in enumerate(spec.get("externalIPs") or ()):
        check.address(f"spec.externalIPs[{index}]", address)
    for index, source in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        check.cidr(f"spec.LoadBalancerSourceRanges[{index}]", source)
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if field in spec:
            check.one_of(f"spec.{field}", spec[field], ("Cluster", "Local"))
    if kind != "ExternalName":
        check.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
        config = check.object("spec.sessionAffinityConfig", spec.get("sessionAffinityConfig"))
        timeout = (config.get("clientIP") or {}).get("timeoutSeconds")
        if timeout is not None and not (isinstance(timeout, int) and 0 < timeout <= 86400):
            check.invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                timeout,
                "must be greater than 0 and less than or equal to 86400",
            )
    elif not spec.get("externalName"):
        check.required("spec.externalName")
    check.labels("spec.selector", spec.get("selector"))
    before = (old or {}).get("spec") or {}
    if before.get("type") != "ExternalName" and kind != "ExternalName" and before.get("clusterIP"):
        first = (before["clusterIP"], spec.get("clusterIP"))
        if first[0] != first[1]:
            check.invalid("spec.clusterIPs[0]", [first[1]], "may not change once set")


def _pod_spec(check: Check, field: str, value: Any) -> None:
    spec = check.object(field, value, required=True)
    if not spec:
        return
    containers = check.objects(f"{field}.containers", spec.get("containers"))
    if not containers:
        check.required(f"{field}.containers")
    names: set[Any] = set()
    for where, container in containers:
        name = container.get("name")
        if not name:
            check.required(f"{where}.name")
        elif not isinstance(name, str) or len(name) > 63 or not _DNS_LABEL.fullmatch(name):
            check.invalid(f"{where}.name", name, _LABEL_RULE)
        elif name in names:
            check.duplicate(f"{where}.name", name)
        else:
            names.add(name)
        if not container.get("image"):
            check.required(f"{where}.image")
        for at, port in check.objects(f"{where}.ports", container.get("ports")):
            if port.get("containerPort") is None:
                check.required(f"{at}.containerPort")
            else:
                check.port(f"{at}.containerPort", port["containerPort"])
            check.one_of(f"{at}.protocol", port.get("protocol"), _PROTOCOLS)
            if port.get("name"):
                check.named_port(f"{at}.name", str(port["name"]))
    check.one_of(
        f"{field}.restartPolicy", spec.get("restartPolicy"), ("Always", "Never", "OnFailure")
    )


def _pod_may_change(spec: Any) -> Any:
    """A pod's spec without the fields that may change while it runs."""
    fixed = {
        key: value
        for key, value in spec.items()
        if key not in ("tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds")
    }
    for name in ("containers", "initContainers"):
        if isinstance(fixed.get(name), list):
            fixed[name] = [
                {k: v for k, v in c.items() if k not in ("image", "imagePullPolicy")}
                if isinstance(c, dict) else c
                for c in fixed[name]
            ]  # fmt: skip
    return fixed


def _pod(check: Check, pod: Object, old: Object | None) -> None:
    _pod_spec(check, "spec", pod.get("spec"))
    if old is None or check.causes or not isinstance(old.get("spec"), dict):
        return
    before, after = _pod_may_change(old["spec"]), _pod_may_change(pod["spec"])
    if not before.get("nodeName"):
        after.pop("nodeName", None)  # scheduling
    if before != after:
        check.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
            "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to "
            "be set to 1 if it was previously negative)",
        )


def _workload(check: Check, obj: Object, old: Object | None) -> None:
    spec = check.object("spec", obj.get("spec"), required=True)
    replicas = spec.get("replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
        check.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
    selector = check.object("spec.selector", spec.get("selector"), required=True)
    template = check.object("spec.template", spec.get("template"))
    metadata = check.object("spec.template.metadata", template.get("metadata"))
    labels = check.object("spec.template.metadata.labels", metadata.get("labels"))
    check.labels("spec.template.metadata.labels", labels)
    check.selector("spec.selector", selector)
    wanted = selector.get("matchLabels")
    if isinstance(wanted, dict) and any(labels.get(k) != v for k, v in wanted.items()):
        check.invalid(
            "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
        )
    _pod_spec(check, "spec.template.spec", template.get("spec"))
    if old is not None:
        check.immutable("spec.selector", (old.get("spec") or {}).get("selector"), selector)


def _network_policy(check: Check, policy: Object, _old: Object | None) -> None:
    spec = check.object("spec", policy.get("spec"))
    check.selector("spec.podSelector", spec.get("podSelector"))
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        check.one_of(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress"))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for where, rule in check.objects(f"spec.{direction}", spec.get(direction)):
            for at, port in check.objects(f"{where}.ports", rule.get("ports")):
                check.one_of(f"{at}.protocol", port.get("protocol"), _PROTOCOLS)
                if port.get("port") is not None:
                    check.named_port(f"{at}.port", port["port"])
                end, start = port.get("endPort"), port.get("port")
                if end is not None and not isinstance(start, int):
                    check.invalid(f"{at}.endPort", end, "may not be specified when `port` is "
                                  "non-numeric" if start else "must be set with port")  # fmt: skip
                elif isinstance(end, int) and isinstance(start, int) and end < start:
                    check.invalid(f"{at}.endPort", end, "must be greater than or equal to `port`")
            for at, peer in check.objects(f"{where}.{peers}", rule.get(peers)):
                _peer(check, at, peer)


def _peer(check: Check, at: str, peer: Object) -> None:
    block = peer.get("ipBlock")
    selectors = [s for s in ("podSelector", "namespaceSelector") if peer.get(s) is not None]
    for name in selectors:
        check.selector(f"{at}.{name}", peer[name])
    if not selectors and block is None:
        check.required(at, "must specify a peer")
    elif selectors and block is not None:
        check.forbidden(at, "may not specify both ipBlock and another peer")
    elif block is not None:
        cidr = check.object(f"{at}.ipBlock", block).get("cidr")
        check.cidr(f"{at}.ipBlock.cidr", cidr or "")
        for index, hole in enumerate(block.get("except") or () if isinstance(block, dict) else ()):
            check.cidr(f"{at}.ipBlock.except[{index}]", hole)


def _endpoint_slice(check: Check, slice_: Object, old: Object | None) -> None:
    check.one_of("addressType", slice_.get("addressType"), ("FQDN", "IPv4", "IPv6"))
    if old is not None:
        check.immutable("addressType", old.get("addressType"), slice_.get("addressType"))
    for where, endpoint in check.objects("endpoints", slice_.get("endpoints")):
        if not endpoint.get("addresses"):
            check.required(f"{where}.addresses", "must contain at least 1 address")
        elif slice_.get("addressType") != "FQDN":
            for index, address in enumerate(endpoint["addresses"]):
                check.address(f"{where}.addresses[{index}]", address)
    for where, port in check.objects("ports", slice_.get("ports")):
        check.one_of(f"{where}.protocol", port.get("protocol"), _PROTOCOLS)
        if port.get("port") is not None:
            check.port(f"{where}.port", port["port"])


_CHECKS: dict[str, Callable[[Check, Object, Object | None], None]] = {
    "daemonsets": _workload,
    "deployments": _workload,
    "endpointslices": _endpoint_slice,
    "networkpolicies": _network_policy,
    "pods": _pod,
    "replicasets": _workload,
    "services": _service,
}
_NAME_RULES = {
    "namespaces": (_DNS_LABEL, 63, _LABEL_RULE),
    "services": (_SERVICE_NAME, 63, _SERVICE_RULE),
}


def validate(kind: Resource, obj: Object, old: Object | None) -> None:
    """Raise 422 with every cause; ``old`` is None for a creation."""
    check = Check()
    metadata = obj["metadata"]
    name = metadata["name"]
    if not kind.group.startswith("rbac"):
        pattern, limit, rule = _NAME_RULES.get(kind.name, (_DNS_SUBDOMAIN, 253, _SUBDOMAIN_RULE))
        if len(name) > limit:
            check.invalid("metadata.name", name, f"must be no more than {limit} characters")
        elif not pattern.fullmatch(name):
            check.invalid("metadata.name", name, rule)
    check.labels("metadata.labels", metadata.get("labels"))
    annotations = check.object("metadata.annotations", metadata.get("annotations"))
    for key, value in annotations.items():
        if not isinstance(value, str):
            check.invalid(f"metadata.annotations.{key}", value, "must be a string")
    function = _CHECKS.get(kind.name)
    if function is not None:
        function(check, obj, old)
    if check.causes:
        raise invalid(kind.kind, kind.group, name, check.causes)
