"""The service proxy from the watch event to the kernel's door, on the stateful fakes.

    python tests/bench/bench_proxy.py [--services N] [--seconds S]

Four tables, every figure from a fresh process: a cold start split into its parts, one change of an
endpoint at 100 and at N Services, a stream of changes, and memory. The kernel's own part is in the
table of ``bench_ipvs``; here the fake takes its place. Only the ratios compare between machines.
"""

import argparse
import json
import multiprocessing
import resource
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ENDPOINTS = 5
CHANGES = 300
RATE = 1000


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def service(number: int) -> dict[str, Any]:
    ip = f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    if number == 0:
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


NODE = {
    "metadata": {"name": "node1", "resourceVersion": "1"},
    "spec": {"podCIDRs": ["10.128.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]},
}


def serve(services: int, port: Any) -> None:
    """An API server that lists; in a process of its own, so that its cost does not count."""
    lists = {
        "/api/v1/services": ("Service", [service(n) for n in range(services + 1)]),
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
            kind, items = lists[url.path]
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


class Bench:
    """A proxy on fakes; ``cache`` is filled by the caller."""

    def __init__(self) -> None:
        from kube_router_py.cluster.cache import Cache
        from kube_router_py.kernel import fake_host
        from kube_router_py.kernel.fake_ipvs import FakeIpvs
        from kube_router_py.kernel.ports import HostPorts, NodeAddress
        from kube_router_py.proxy.controller import ServiceProxy
        from kube_router_py.proxy.dirty_keys import KINDS
        from kube_router_py.proxy.settings import ProxyOptions
        from kube_router_py.proxy.sysctls import sysctls

        options = ProxyOptions()
        names = [each.name for each in sysctls(options, ["eth0"], (6, 1))]
        links = fake_host.FakeLinks()
        links.kernel.addresses.append(NodeAddress(2, bytes((192, 168, 1, 1)), 24, "eth0"))
        self.ipvs = FakeIpvs()
        ports = HostPorts(
            self.ipvs,
            links,
            fake_host.FakeIpsets(),
            fake_host.FakeIptables(),
            fake_host.FakeSysctls(dict.fromkeys(names, "0")),
        )
        self.cache = Cache(KINDS)
        self.proxy = ServiceProxy(self.cache, options, "node1", lambda: ports)

    def put(self, kind: type, value: dict[str, Any]) -> None:
        import msgspec

        self.cache.put(kind, msgspec.convert(value, kind))

    def fill(self, services: int) -> None:
        from kube_router_py.cluster.objects import EndpointSlice, Node, Service

        self.put(Node, NODE)
        for number in range(1, services + 1):
            self.put(Service, service(number))
            self.put(EndpointSlice, endpoint_slice(number))


def cold_start(services: int, result: Any) -> None:
    begun = time.perf_counter()
    bench = Bench()
    from kube_router_py.cluster.client import connect
    from kube_router_py.cluster.reflector import Reflector
    from kube_router_py.kernel import ipvs_encode
    from kube_router_py.options import parse
    from kube_router_py.proxy.dirty_keys import KINDS
    from kube_router_py.proxy.model import IpvsOperation

    imported = time.perf_counter()
    port = multiprocessing.Queue()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(services, port))
    server.start()
    try:
        address = f"http://127.0.0.1:{port.get(timeout=120)}"
        client = connect(parse([f"--master={address}"], {}), {})
        listing, cpu = time.perf_counter(), time.process_time()
        reflectors = [Reflector(client, bench.cache, kind) for kind in KINDS]
        for each in reflectors:
            each.start()
        assert bench.cache.wait_synced(KINDS, 300)
        listed, listed_cpu = time.perf_counter(), time.process_time()
        bench.proxy.open()
        operations: list[IpvsOperation] = []
        apply = bench.ipvs.apply

        def noted(given: Any) -> Any:
            operations.extend(given)
            return apply(given)

        bench.ipvs.apply = noted  # type: ignore[method-assign]
        outcome = bench.proxy.reconcile(frozenset(), True)
        programmed, programmed_cpu = time.perf_counter(), time.process_time()
        assert not outcome.failed, outcome
        assert len(operations) == services * (1 + ENDPOINTS)
        encoding = time.perf_counter()
        size = sum(map(len, ipvs_encode.encode(30, operations, 1, {})))
        encoded = time.perf_counter()
        result.put(
            SimpleNamespace(
                imports=imported - begun,
                listing=listed - listing,
                listing_cpu=listed_cpu - cpu,
                compile=programmed - listed,
                compile_cpu=programmed_cpu - listed_cpu,
                encode=encoded - encoding,
                megabytes=size / 2**20,
                rss=rss_mib(),
            )
        )
        for each in reflectors:
            each.stop(0)
    finally:
        server.terminate()
        server.join()


def one_change(services: int, result: Any) -> None:
    from kube_router_py.cluster.objects import EndpointSlice

    bench = Bench()
    bench.fill(services)
    bench.proxy.open()
    bench.proxy.reconcile(frozenset(), True)
    dirty: set[Any] = set()
    bench.proxy.subscribe(bench.cache, SimpleNamespace(mark=dirty.update))  # type: ignore[arg-type]
    walls, cpus = [], []
    sent = 0
    apply = bench.ipvs.apply

    def counted(given: Any) -> Any:
        nonlocal sent
        sent += len(given)
        return apply(given)

    bench.ipvs.apply = counted  # type: ignore[method-assign]
    for turn in range(CHANGES):
        number = 1 + turn * 37 % services
        value = endpoint_slice(number, 1 + turn // services * 2)
        wall, cpu = time.perf_counter(), time.process_time()
        bench.put(EndpointSlice, value)
        bench.proxy.reconcile(frozenset(dirty), False)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        dirty.clear()
        # Back again, outside of the measurement.
        bench.put(EndpointSlice, endpoint_slice(number, 2 + turn // services * 2))
        bench.proxy.reconcile(frozenset(dirty), False)
        dirty.clear()
    walls.sort()
    result.put(
        SimpleNamespace(
            p50=walls[len(walls) // 2],
            p99=walls[len(walls) * 99 // 100],
            cpu=statistics.median(cpus),
            sent=sent / CHANGES / 2,
        )
    )


def stream(services: int, seconds: int, result: Any) -> None:
    from kube_router_py.cluster.objects import EndpointSlice
    from kube_router_py.loop import Loop

    bench = Bench()
    bench.fill(services)
    keys = 0

    def on_turn(turn: Any) -> None:
        nonlocal keys
        keys += turn.keys

    loop = Loop(bench.proxy, ready=lambda: True, resync_interval_s=3600, on_turn=on_turn)
    bench.proxy.subscribe(bench.cache, loop)
    loop.start()
    while not loop.status().settled:
        time.sleep(0.1)
    keys = 0
    before, deepest, changes = rss_mib(), 0, 0
    peak = before
    cpu, begun = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        while changes < (now - begun) * RATE:
            number = 1 + changes * 37 % services
            bench.put(EndpointSlice, endpoint_slice(number, 1 + changes // services))
            changes += 1
        deepest = max(deepest, loop.status().dirty)
        peak = max(peak, rss_mib())
        time.sleep(0.005)
    ended = time.perf_counter()
    used = time.process_time() - cpu
    while not loop.status().settled:
        time.sleep(0.01)
    behind = time.perf_counter() - ended
    loop.stop(30)
    result.put(
        SimpleNamespace(
            changes=changes,
            rate=changes / (ended - begun),
            keys=keys,
            deepest=deepest,
            behind=behind,
            cpu=used / (ended - begun),
            before=before,
            peak=peak,
        )
    )


def idle(services: int, result: Any) -> None:
    """What the agent imports, and a small cluster."""
    import kube_router_py.agent  # noqa: F401 - its memory is what is measured

    bench = Bench()
    bench.fill(services)
    bench.proxy.open()
    bench.proxy.reconcile(frozenset(), True)
    result.put(SimpleNamespace(rss=rss_mib(), threads=threading.active_count()))


def measure(target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_quietly, args=(target, *arguments, result))
    process.start()
    found = result.get(timeout=900)
    process.join()
    return found


def _quietly(target: Callable[..., None], *arguments: Any) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    target(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    many = options.services

    found = measure(cold_start, many)
    total = found.listing + found.compile + found.encode
    print(f"cold start, {many} Services x {ENDPOINTS} endpoints, wall (CPU) seconds")
    print(f"  list, decode, store   {found.listing:6.2f} ({found.listing_cpu:.2f})")
    print(f"  compile, diff, plan   {found.compile:6.2f} ({found.compile_cpu:.2f})")
    print(f"  encode                {found.encode:6.2f}   {found.megabytes:.1f} MiB for the kernel")
    print(
        f"  share of encoding     {found.encode / total:6.2f}   imports apart: {found.imports:.2f}"
    )
    print(f"  resident memory       {found.rss:6.0f} MiB, the fake kernel's table included")

    few, much = measure(one_change, 100), measure(one_change, many)
    print(f"one endpoint changes: watch event to the kernel's door, at 100 and at {many} Services")
    for name in ("p50", "p99", "cpu"):
        a, b = getattr(few, name), getattr(much, name)
        print(f"  {name:4} {a * 1e6:8.0f} us {b * 1e6:8.0f} us   ratio {b / a:.2f}")
    print(f"  operations sent a change: {few.sent:.1f} and {much.sent:.1f}")

    found = measure(stream, many, options.seconds)
    print(f"{RATE} endpoint changes a second for {options.seconds} s at {many} Services")
    print(f"  arrived {found.changes} ({found.rate:.0f}/s), turned over {found.keys} keys,")
    print(f"  coalesced {1 - found.keys / found.changes:.1%}; deepest queue {found.deepest} keys")
    print(f"  behind at the end {found.behind * 1000:.0f} ms; CPU {found.cpu:.0%} of a core,")
    print("  making the changes included")
    print(f"  memory {found.before:.0f} MiB before, {found.peak:.0f} MiB at most")

    found = measure(idle, 20)
    print(f"a small cluster (20 Services), all imports of the agent: {found.rss:.0f} MiB")


if __name__ == "__main__":
    socket.setdefaulttimeout(600)
    main()
