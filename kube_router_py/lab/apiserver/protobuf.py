"""The few objects kubectl sends as protobuf, decoded: auth can-i and the typed creates.

kubectl create namespace, deployment, service, configmap, serviceaccount and auth can-i know no
other encoding. A field that is not in the tables below refuses the whole body, so that nothing is
ever dropped silently. Source: the field numbers in k8s.io/api's generated.proto files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from .status import Object

MAGIC = b"k8s\x00"

# name -> {field number: (field name, type)}. Types: a message's name, or one of str, bool, int,
# bytes; a list of one type is repeated, {str: type} a map, None is ignored (status, defaults).
_MESSAGES: dict[str, dict[int, tuple[str, Any]]] = {
    "ObjectMeta": {
        1: ("name", "str"),
        2: ("generateName", "str"),
        3: ("namespace", "str"),
        8: ("creationTimestamp", None),
        11: ("labels", {"str": "str"}),
        12: ("annotations", {"str": "str"}),
    },
    "LabelSelector": {
        1: ("matchLabels", {"str": "str"}),
        2: ("matchExpressions", ["LabelSelectorRequirement"]),
    },
    "LabelSelectorRequirement": {
        1: ("key", "str"),
        2: ("operator", "str"),
        3: ("values", ["str"]),
    },
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", None), 3: ("status", None)},
    "ServiceAccount": {1: ("metadata", "ObjectMeta")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", {"str": "str"}),
        3: ("binaryData", {"str": "bytes"}),
    },
    "Deployment": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "DeploymentSpec"),
        3: ("status", None),
    },
    "DeploymentSpec": {
        1: ("replicas", "int"),
        2: ("selector", "LabelSelector"),
        3: ("template", "PodTemplateSpec"),
        4: ("strategy", "DeploymentStrategy"),
        5: ("minReadySeconds", None),
        7: ("paused", "bool"),
    },
    "DeploymentStrategy": {1: ("type", "str")},
    "PodTemplateSpec": {1: ("metadata", "ObjectMeta"), 2: ("spec", "PodSpec")},
    "PodSpec": {
        2: ("containers", ["Container"]),
        3: ("restartPolicy", "str"),
        6: ("dnsPolicy", "str"),
        8: ("serviceAccountName", "str"),
        9: ("serviceAccount", None),
        10: ("nodeName", "str"),
        11: ("hostNetwork", "bool"),
        12: ("hostPID", "bool"),
        13: ("hostIPC", "bool"),
        16: ("hostname", "str"),
        17: ("subdomain", "str"),
        19: ("schedulerName", "str"),
        24: ("priorityClassName", "str"),
    },
    "Container": {
        1: ("name", "str"),
        2: ("image", "str"),
        3: ("command", ["str"]),
        4: ("args", ["str"]),
        5: ("workingDir", "str"),
        6: ("ports", ["ContainerPort"]),
        8: ("resources", None),
        13: ("terminationMessagePath", "str"),
        14: ("imagePullPolicy", "str"),
        16: ("stdin", "bool"),
        17: ("stdinOnce", "bool"),
        18: ("tty", "bool"),
        20: ("terminationMessagePolicy", "str"),
    },
    "ContainerPort": {
        1: ("name", "str"),
        2: ("hostPort", "int"),
        3: ("containerPort", "int"),
        4: ("protocol", "str"),
        5: ("hostIP", "str"),
    },
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec"), 3: ("status", None)},
    "ServiceSpec": {
        1: ("ports", ["ServicePort"]),
        2: ("selector", {"str": "str"}),
        3: ("clusterIP", "str"),
        4: ("type", "str"),
        5: ("externalIPs", ["str"]),
        7: ("sessionAffinity", "str"),
        8: ("loadBalancerIP", "str"),
        9: ("loadBalancerSourceRanges", ["str"]),
        10: ("externalName", "str"),
        11: ("externalTrafficPolicy", "str"),
        12: ("healthCheckNodePort", "int"),
        13: ("publishNotReadyAddresses", "bool"),
        18: ("clusterIPs", ["str"]),
    },
    "ServicePort": {
        1: ("name", "str"),
        2: ("protocol", "str"),
        3: ("port", "int"),
        4: ("targetPort", "IntOrString"),
        5: ("nodePort", "int"),
    },
    "IntOrString": {1: ("type", "int"), 2: ("intVal", "int"), 3: ("strVal", "str")},
    "SelfSubjectAccessReview": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "SelfSubjectAccessReviewSpec"),
        3: ("status", None),
    },
    "SelfSubjectAccessReviewSpec": {
        1: ("resourceAttributes", "ResourceAttributes"),
        2: ("nonResourceAttributes", "NonResourceAttributes"),
    },
    "ResourceAttributes": {
        1: ("namespace", "str"),
        2: ("verb", "str"),
        3: ("group", "str"),
        4: ("version", "str"),
        5: ("resource", "str"),
        6: ("subresource", "str"),
        7: ("name", "str"),
    },
    "NonResourceAttributes": {1: ("path", "str"), 2: ("verb", "str")},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int"),
        2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "bool"),
        4: ("propagationPolicy", "str"),
        5: ("dryRun", ["str"]),
    },
    "Preconditions": {1: ("uid", "str"), 2: ("resourceVersion", "str")},
    "Unknown": {
        1: ("type", "TypeMeta"),
        2: ("raw", "raw"),
        3: ("contentEncoding", "str"),
        4: ("contentType", "str"),
    },
    "TypeMeta": {1: ("apiVersion", "str"), 2: ("kind", "str")},
}
KINDS = frozenset(
    {"ConfigMap", "DeleteOptions", "Deployment", "Namespace", "SelfSubjectAccessReview", "Service",
     "ServiceAccount"}
)  # fmt: skip


class UnknownField(ValueError):
    """The body uses a kind or a field the tables do not have."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise UnknownField("truncated")
            yield number, data[at : at + size]
            at += size
        else:
            raise UnknownField(f"wire type {wire}")


def _value(type_: str, raw: int | bytes) -> Any:
    if isinstance(raw, int):
        if type_ == "bool":
            return bool(raw)
        return raw - (1 << 64) if raw >> 63 else raw
    if type_ == "str":
        return raw.decode()
    if type_ == "bytes":
        return base64.b64encode(raw).decode()
    if type_ == "raw":
        return raw
    return _message(type_, raw)


def _message(name: str, data: bytes) -> Any:
    fields, out = _MESSAGES[name], dict[str, Any]()
    for number, raw in _fields(data):
        if number not in fields:
            if raw:  # Go writes empty messages and zeros for what is not set
                raise UnknownField(f"{name} field {number}")
            continue
        field, type_ = fields[number]
        if type_ is None:
            continue
        if isinstance(type_, list):
            out.setdefault(field, []).append(_value(type_[0], raw))
        elif isinstance(type_, dict):
            if isinstance(raw, int):
                raise UnknownField(f"{name}.{field} is no map")
            entry = dict(_fields(raw))
            key, value = entry.get(1, b""), entry.get(2, b"")
            out.setdefault(field, {})[_value("str", key)] = _value(type_["str"], value)
        else:
            value = _value(type_, raw)
            # A message is kept when empty (a selector), an empty scalar means "not set"; replicas
            # is a pointer in Go: there a zero is meant.
            if value or isinstance(value, dict) or field in ("replicas", "gracePeriodSeconds"):
                out[field] = value
    if name == "IntOrString":
        return out.get("strVal", "") if out.get("type") else out.get("intVal", 0)
    return out


def decode(body: bytes) -> Object:
    """The object in a body that starts with MAGIC; UnknownField when the tables lack something."""
    if not body.startswith(MAGIC):
        raise UnknownField("no Kubernetes protobuf")
    try:
        envelope = _message("Unknown", body[len(MAGIC) :])
        type_ = envelope.get("type", {})
        kind = type_.get("kind", "")
        if kind not in KINDS or envelope.get("contentEncoding"):
            raise UnknownField(kind or "no kind")
        fields: Object = _message(kind, envelope.get("raw", b""))
    except (AttributeError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise UnknownField(f"broken encoding: {error}") from error
    return {**type_, **fields}
