"""Stands in for kube-apiserver: the same flags, in front of the lab's own API server.

Everything it is told is kept by the other stand-in, as etcd would. Where the real one is stricter
or leaves work to a controller manager, so does this: a pod's node is set by a Binding only, items
of a list have no kind, nobody makes default ServiceAccounts, empties deleted namespaces or takes
off the garbage collector's finalizers.
"""

import argparse
import asyncio
import csv
import json
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from aiohttp import web

from kube_router_py.lab.apiserver import status
from kube_router_py.lab.apiserver.certificates import Certificates
from kube_router_py.lab.apiserver.resources import BY_NAME, Resource
from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.storage import Event
from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.apiserver.targets import Target
from kube_router_py.lab.apiserver.tokens import User

Object = dict[str, Any]

parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in (
    "etcd-servers",
    "bind-address",
    "advertise-address",
    "secure-port",
    "cert-dir",
    "tls-cert-file",
    "tls-private-key-file",
    "token-auth-file",
    "service-account-key-file",
    "service-account-signing-key-file",
    "service-account-issuer",
    "service-cluster-ip-range",
    "authorization-mode",
    "disable-admission-plugins",
    "allow-privileged",
):
    parser.add_argument(f"--{flag}", required=True)
given = parser.parse_args()

BINDING = re.compile(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/binding")
FINALIZE = re.compile(r"/api/v1/namespaces/([^/]+)/finalize")


def ask_etcd(path: str, body: object = None) -> Object:
    """Waits, as the real one does, for an etcd that is just coming up."""
    data = None if body is None else json.dumps(body).encode()
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(given.etcd_servers + path, data, timeout=30) as answer:
                return dict(json.load(answer))
        except urllib.error.URLError as error:
            refused = isinstance(error.reason, ConnectionRefusedError)
            if not refused or time.monotonic() > end:
                raise
        time.sleep(0.1)


class StrictStore(Store):
    binding = False

    def _replace(self, kind: Resource, old: Object, new: Object, *args: Any, **how: Any) -> Object:
        nodes = [obj.get("spec", {}).get("nodeName") for obj in (old, new)]
        if kind.name == "pods" and nodes[0] != nodes[1] and not self.binding:
            cause = status.Cause(
                "FieldValueForbidden", "Forbidden: may not change", "spec.nodeName"
            )
            raise status.invalid("Pod", "", old["metadata"]["name"], [cause])
        return super()._replace(kind, old, new, *args, **how)

    def write(self, kind: Resource, obj: Object, old: Object | None) -> Object:
        if kind.name == "namespaces":
            return self.storage.put(kind.name, obj)
        return super().write(kind, obj, old)

    def remove(self, kind: Resource, obj: Object) -> Object:
        metadata = obj["metadata"]
        if kind.name == "services":
            self.allocator.observe(obj, None)
        return self.storage.remove(kind.name, metadata.get("namespace", ""), metadata["name"])

    def delete(
        self, resource: str, name: str, namespace: str = "", **how: Any
    ) -> tuple[Object, bool]:
        old = self.get(resource, name, namespace)
        metadata = old["metadata"]
        if resource == "namespaces":
            marked = {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}
            return self.write(BY_NAME[resource], {**old, "metadata": marked}, old), False
        finalizer = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(
            how.get("propagation", "")
        )
        if finalizer and resource != "pods":
            marked = {**metadata, "finalizers": [*(metadata.get("finalizers") or []), finalizer]}
            self.write(BY_NAME[resource], {**old, "metadata": marked}, old)
        return super().delete(resource, name, namespace, **{**how, "propagation": "Background"})


class Server(ApiServer):
    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        bound, finalized = (pattern.fullmatch(request.path) for pattern in (BINDING, FINALIZE))
        if not bound and not finalized:
            return await super()._answer(request)
        user = self.tokens.user_of(request.headers, [])
        assert user.is_master
        body = await request.json()
        if bound:
            assert isinstance(self.store, StrictStore)
            patch = {"spec": {"nodeName": body["target"]["name"]}}
            self.store.binding = True
            try:
                self.store.patch("pods", bound[2], patch, namespace=bound[1])
            finally:
                self.store.binding = False
            return web.json_response(status.success(), status=201)
        assert finalized
        space = self.store.get("namespaces", finalized[1])
        assert space["metadata"]["deletionTimestamp"]
        assert body["spec"]["finalizers"] == []
        self.store.remove(BY_NAME["namespaces"], space)
        return web.json_response(body)

    def _show_list(
        self, request: web.BaseRequest, target: Target, objects: list[Object], meta: Object
    ) -> web.Response:
        untyped = [
            {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
            for obj in objects
        ]
        return super()._show_list(request, target, untyped, meta)


def restore(store: Store) -> None:
    known = ask_etcd("/journal")
    for line in known["lines"]:
        resource, obj = line["resource"], line["object"]
        metadata = obj["metadata"]
        if line["type"] == "DELETED":
            store.storage.remove(resource, metadata.get("namespace", ""), metadata["name"])
        else:
            store.storage.put(resource, obj)
    for service in store.list("services"):
        store.allocator.observe(None, service)
    if known["compacted"]:
        store.compact()


def record(event: Event) -> None:
    line = {"type": event.type, "resource": event.resource, "object": event.object}
    ask_etcd("/journal", line)


async def main() -> None:
    port = int(given.secure_port)
    assert ask_etcd("/health") == {"health": "true"}
    store = StrictStore(given.service_cluster_ip_range.split(","))
    restore(store)
    store.storage.subscribe(record)
    with tempfile.TemporaryDirectory() as own:
        server = Server(store, Path(own), [given.advertise_address], port)
    certificate, key = Path(given.tls_cert_file), Path(given.tls_private_key_file)
    server.certificates = Certificates(certificate, certificate, key)
    if store.find("endpointslices", "kubernetes", "default") is None:  # IPv6 alone
        (found,) = store.list("endpointslices", "default")
        renamed = {**found, "metadata": {**found["metadata"], "name": "kubernetes"}}
        store.create("endpointslices", renamed)
    with open(given.token_auth_file) as file:
        for token, name, _uid, groups in csv.reader(file):
            user = User(name, (*groups.split(","), "system:authenticated"))
            server.tokens._users[token] = user
    family = socket.AF_INET6 if ":" in given.bind_address else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((given.bind_address, port))
    await server.start([sock])
    await asyncio.Event().wait()


asyncio.run(main())
