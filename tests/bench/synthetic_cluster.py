"""A cluster of any size for the benchmarks: Services with five endpoints each and a server that
lists them; namespaces, pods and ten NetworkPolicies in each namespace."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ENDPOINTS = 5
_EMPTY = {"pods": "Pod", "leases": "Lease", "networkpolicies": "NetworkPolicy"}


def service(number: int) -> dict[str, Any]:
    ip = f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    if number == 0:  # a list without it looks like one of a server that lost its data
        return {
            "metadata": {"name": "kubernetes", "namespace": "default", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.111.0.1", "clusterIPs": ["10.111.0.1"], "ports": []},
        }
    return {
        "metadata": {
            "name": f"web-{number}",
            "namespace": f"ns{number % 100}",
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "resourceVersion": str(number),
            "creationTimestamp": "2025-01-01T00:00:00Z",
            "labels": {"app": f"web-{number}"},
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:ports": {}}}}],
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "selector": {"app": f"web-{number}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    }


def endpoint_slice(number: int, version: int = 0) -> dict[str, Any]:
    """Five endpoints; ``version`` changes the last one."""
    first = number * ENDPOINTS
    pods = [*range(first, first + ENDPOINTS - 1), first + ENDPOINTS - 1 + (version % 2) * 2_000_000]
    return {
        "metadata": {
            "name": f"web-{number}-abcde",
            "namespace": f"ns{number % 100}",
            "resourceVersion": str(number + version),
            "labels": {"kubernetes.io/service-name": f"web-{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": [f"10.{128 + (pod >> 16)}.{pod >> 8 & 255}.{pod & 255}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node{pod % 50}",
                "targetRef": {"kind": "Pod", "name": f"web-{pod}", "uid": f"uid-{pod}"},
            }
            for pod in pods
        ],
    }


# Without this one no list of Services is believed.
API_SERVER = {
    "metadata": {"name": "kubernetes", "namespace": "default", "resourceVersion": "1"},
    "spec": {"clusterIP": "10.111.0.1", "clusterIPs": ["10.111.0.1"], "ports": []},
}
NODE = {
    "metadata": {"name": "node1", "resourceVersion": "1"},
    "spec": {"podCIDRs": ["10.128.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]},
}


def serve(services: int, port: Any) -> None:
    """An API server that lists; in a process of its own, so that its cost does not count."""
    lists = {
        "/api/v1/services": ("Service", [API_SERVER, *map(service, range(1, services + 1))]),
        "/apis/discovery.k8s.io/v1/endpointslices": (
            "EndpointSlice",
            [endpoint_slice(n) for n in range(1, services + 1)],
        ),
        "/api/v1/nodes": ("Node", [NODE]),
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if "watch" in query or "allowWatchBookmarks" in query:
                self.send_response(200)
                self.end_headers()
                time.sleep(600)
                return
            plural = url.path.rpartition("/")[2]
            kind, items = lists.get(url.path) or (_EMPTY[plural], [])
            start, limit = int(query.get("continue", "0")), int(query.get("limit", "0"))
            end = start + limit if limit else len(items)
            meta = {"resourceVersion": "1000000"}
            if end < len(items):
                meta["continue"] = str(end)
            body = json.dumps({"kind": f"{kind}List", "metadata": meta, "items": items[start:end]})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None:
            del arguments

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port.put(server.server_address[1])
        server.serve_forever()


# --- policies ----------------------------------------------------------------------------------

APPS = 10
TEAMS = 5
TIERS = ("frontend", "backend", "data")
POLICIES_PER_NAMESPACE = 10


def namespace(number: int) -> dict[str, Any]:
    name = f"ns{number}"
    return {
        "metadata": {
            "name": name,
            "resourceVersion": "1",
            "labels": {"kubernetes.io/metadata.name": name, "team": f"team-{number % TEAMS}"},
        }
    }


def pod(number: int, namespaces: int, *, local: bool, **labels: str) -> dict[str, Any]:
    """Pod ``number``, in namespace ``number % namespaces``, on node1 or another."""
    app = (number // namespaces + number % namespaces) % APPS
    ip = f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    return {
        "metadata": {
            "name": f"pod-{number}",
            "namespace": f"ns{number % namespaces}",
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "resourceVersion": "1",
            "labels": {
                "app": f"app-{app}",
                "tier": TIERS[app % len(TIERS)],
                "pod-template-hash": f"{app:010x}",
                **labels,
            },
        },
        "spec": {
            "nodeName": "node1" if local else f"node{2 + number % 100}",
            "containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }


def policy(number: int, namespaces: int, port: int = 8080) -> dict[str, Any]:
    """Ten in each namespace: nothing but what is allowed; who is in the namespace; DNS; and for
    the pods of seven apps, those that ask them and those they ask. ``port`` is where one asks."""
    space, kind = number % namespaces, number // namespaces % POLICIES_PER_NAMESPACE
    spec: dict[str, Any] = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if kind == 1:
        spec |= {"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    elif kind == 2:
        dns = {"matchLabels": {"kubernetes.io/metadata.name": "ns0"}}
        ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
        to = [{"namespaceSelector": dns, "podSelector": {"matchLabels": {"app": "app-1"}}}]
        spec |= {"policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]}
    elif kind >= 3:
        teams = {"matchLabels": {"team": f"team-{space % TEAMS}"}}
        frontends = {"matchLabels": {"tier": "frontend"}}
        asking = {"matchLabels": {"app": f"app-{(kind + 1) % APPS}"}}
        several = {"key": "tier", "operator": "In", "values": ["backend", "data"]}
        office = {"cidr": "192.0.2.0/24", "except": [f"192.0.2.{kind}/32"]}
        spec |= {
            "podSelector": {"matchLabels": {"app": f"app-{kind}"}},
            "ingress": [
                {
                    "from": [{"podSelector": asking}, {"ipBlock": office}],
                    "ports": [{"protocol": "TCP", "port": port}],
                },
                {
                    "from": [{"namespaceSelector": teams, "podSelector": frontends}],
                    "ports": [{"protocol": "TCP", "port": "http"}],
                },
            ],
            "egress": [
                {
                    "to": [{"podSelector": {"matchExpressions": [several]}}],
                    "ports": [{"protocol": "TCP", "port": 5432, "endPort": 5440}],
                }
            ],
        }
    return {
        "metadata": {
            "name": f"policy-{number}",
            "namespace": f"ns{space}",
            "uid": f"00000000-0000-4000-8001-{number:012x}",
            "resourceVersion": "1",
        },
        "spec": spec,
    }
