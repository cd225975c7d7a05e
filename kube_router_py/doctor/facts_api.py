"""Asking the API server with the agent's credentials. Every request has a time limit."""

import email.utils
import time
from collections.abc import Iterable, Iterator

from msgspec import json

from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.credentials import Credentials
from kube_router_py.cluster.listing import Listed, list_all
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.doctor.cluster import Answer
from kube_router_py.doctor.permissions import Permission

_TIMEOUT_S = 10.0
# All nodes of a large cluster, in chunks.
_LIST_S = 60.0
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def answers(credentials: Credentials) -> Iterator[Answer]:
    """Each address by itself: that of the others would hide one that is wrong."""
    from urllib3 import Timeout

    from kube_router_py.cluster.transport import Transport

    for address, configuration in zip(
        credentials.addresses, credentials.configurations(), strict=True
    ):
        timeout = Timeout(total=_TIMEOUT_S)
        transport = None
        try:
            transport = Transport(configuration)
            before = time.time()
            # What needs a token, but no permission (system:discovery).
            response = transport.request("GET", "/api", {}, None, timeout, None)
            after = time.time()
            body = response.read(4096)
            skew = clock_difference(response.headers.get("Date", ""), before, after)
            refused = "" if response.status == 200 else _message(body)
            yield Answer(address, response.status, refused, skew)
        except Exception as error:  # noqa: BLE001 - whatever it is, this address does not work
            yield Answer(address, 0, _reason(error))
        finally:
            if transport is not None:
                transport.close()


def clock_difference(date: str, before: float, after: float) -> float | None:
    """How far the server's clock is ahead, at least: the answer came between the two times, and
    the header leaves out fractions of a second."""
    try:
        told = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    return min(0.0, told + 1 - before) + max(0.0, told - after)


def _message(body: bytes) -> str:
    try:
        found = json.decode(body)
    except ValueError:
        return ""
    return str(found.get("message", "")) if isinstance(found, dict) else ""


def _reason(error: Exception) -> str:
    """The innermost reason: what is around it names the same address again."""
    reason = getattr(error, "reason", None)
    return _reason(reason) if isinstance(reason, Exception) else str(error) or repr(error)


def refused(client: Client, asked: Iterable[Permission], namespace: str) -> Iterator[Permission]:
    """What of this the agent's account may not do (SelfSubjectAccessReview)."""
    for each in asked:
        resource, _, subresource = each.resource.partition("/")
        attributes = {"verb": each.verb, "group": each.group, "resource": resource}
        if subresource:
            attributes["subresource"] = subresource
        if each.is_own:
            attributes["namespace"] = namespace
        if each.name:
            attributes["name"] = each.name
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = json.decode(client.post(_REVIEWS, review, timeout_s=_TIMEOUT_S))
        if not answer.get("status", {}).get("allowed"):
            yield each


def nodes(client: Client) -> Listed[Node]:
    return list_all(client, Node, deadline=time.monotonic() + _LIST_S)


def services(client: Client) -> Listed[Service]:
    return list_all(client, Service, deadline=time.monotonic() + _LIST_S)


def pools_text(client: Client, namespace: str, name: str, key: str) -> str | None:
    """What the ConfigMap with the pools says; None: there is none."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    try:
        body = client.list(path, {"fieldSelector": f"metadata.name={name}"}, timeout_s=_TIMEOUT_S)
    except RefusedError as error:
        if error.status in (403, 404):
            return None  # told of as a permission
        raise
    items = json.decode(body).get("items") or []
    return str((items[0].get("data") or {}).get(key, "")) if items else None
