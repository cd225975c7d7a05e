"""What the cache costs: a list of 50,000 pods over HTTP, CPU per pod and resident memory.

    python tests/bench/bench_cache.py [PODS]

The server is a process of its own, so that its cost does not count; every figure comes from a
fresh process. The models of the kubernetes package are measured on a sample, for the ratio.
"""

import gzip
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

SAMPLE = 500


def pod(number: int) -> dict[str, Any]:
    """A pod as an API server sends it: about 4 KB, half of which is managedFields."""
    ip = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    owned: dict[str, Any] = {
        f"f:field{i}": {"f:name": {}, "f:value": {}, ".": {}} for i in range(30)
    }
    return {
        "metadata": {
            "name": f"web-{number % 97}-{number:06x}",
            "generateName": f"web-{number % 97}-",
            "namespace": f"ns{number % 200}",
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": "2025-01-01T00:00:00Z",
            "labels": {"app": f"web-{number % 97}", "pod-template-hash": f"{number % 97:010x}"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"web-{number % 97}",
                    "uid": f"00000000-0000-4000-8000-{number % 97:012x}",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [
                {
                    "manager": "kubelet",
                    "operation": "Update",
                    "apiVersion": "v1",
                    "time": "2025-01-01T00:00:00Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": owned},
                }
            ],
        },
        "spec": {
            "nodeName": f"node{number % 500}",
            "terminationGracePeriodSeconds": 30,
            "serviceAccountName": "default",
            "dnsPolicy": "ClusterFirst",
            "restartPolicy": "Always",
            "containers": [
                {
                    "name": "web",
                    "image": "registry.example.org/web:1.0",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "env": [{"name": f"VAR_{i}", "value": "x" * 20} for i in range(8)],
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                    "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets"}],
                }
            ],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": []}}],
        },
        "status": {
            "phase": "Running",
            "hostIP": f"192.168.0.{number % 250}",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": "2025-01-01T00:00:00Z",
            "conditions": [
                {"type": t, "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"}
                for t in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
        },
    }


def page(start: int, end: int, total: int) -> bytes:
    meta = {"resourceVersion": str(1000 + total)}
    if end < total:
        meta["continue"] = str(end)
    items = [pod(i) for i in range(start, min(end, total))]
    return json.dumps(
        {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": items}
    ).encode()


def serve(total: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
            start = int(query.get("continue", "0"))
            body = gzip.compress(page(start, start + int(query["limit"]), total), 1)
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def memory_mb(field: str) -> float:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


def measure_cache(url: str, total: int) -> dict[str, float]:
    from kube_router_py.cluster.cache import Cache
    from kube_router_py.cluster.client import connect
    from kube_router_py.cluster.objects import Pod
    from kube_router_py.cluster.reflector import Reflector

    client = connect(SimpleNamespace(master=url, kubeconfig=""), {}, "/nonexistent")
    cache = Cache([Pod])
    reflector = Reflector(client, cache, Pod)
    before, cpu, began = memory_mb("VmRSS"), time.process_time(), time.monotonic()
    # One list, without the watch that a thread would go on to.
    reflector._list()
    first = time.process_time() - cpu
    peak, settled = memory_mb("VmHWM"), memory_mb("VmRSS")
    listed = cache.list(Pod)
    assert len(listed) == total
    assert listed[total // 2] == cache.get(Pod, listed[total // 2].metadata.key)
    wall, cpu = time.monotonic() - began, time.process_time()
    reflector._list()
    return {
        "us_per_pod": first / total * 1e6,
        "relist_us_per_pod": (time.process_time() - cpu) / total * 1e6,
        "wall_s": wall,
        "before_mb": before,
        "peak_mb": peak,
        "settled_mb": settled,
        "kb_per_pod": (settled - before) * 1024 / total,
        "relist_peak_mb": memory_mb("VmHWM"),
    }


def measure_decode() -> dict[str, float]:
    from kube_router_py.cluster.decode import ObjectDecoder
    from kube_router_py.cluster.objects import Pod

    body, decoder = page(0, SAMPLE, SAMPLE), ObjectDecoder(Pod)
    return sampled(lambda: decoder.page(body).items, rounds=20)


def measure_models() -> dict[str, float]:
    from kubernetes.client import ApiClient

    text, api = page(0, SAMPLE, SAMPLE).decode(), ApiClient()
    return sampled(lambda: api.deserialize(text, "V1PodList", "application/json").items, rounds=2)


def sampled(decode: Any, rounds: int) -> dict[str, float]:
    decode()
    before, cpu = memory_mb("VmRSS"), time.process_time()
    kept = [decode() for _ in range(rounds)]
    used = time.process_time() - cpu
    assert sum(map(len, kept)) == rounds * SAMPLE
    pods = rounds * SAMPLE
    return {
        "us_per_pod": used / pods * 1e6,
        "kb_per_pod": (memory_mb("VmRSS") - before) * 1024 / pods,
    }


def main(total: int) -> None:
    def fresh(*arguments: str) -> dict[str, float]:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(total)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        cache = fresh("cache", url, str(total))
    finally:
        server.terminate()
        server.wait()
        if server.stdout:
            server.stdout.close()
    ours, models = fresh("decode"), fresh("models")
    print(f"{total} pods of {len(json.dumps(pod(1)))} bytes, limit 500, gzip, CPU of the client")
    print(
        f"  list, decode, store   {cache['us_per_pod']:8.1f} us/pod  {cache['wall_s']:.1f} s wall"
    )
    print(f"  relist, nothing new   {cache['relist_us_per_pod']:8.1f} us/pod")
    print(
        f"  resident memory       {cache['before_mb']:8.0f} MB before, {cache['peak_mb']:.0f} peak,"
        f" {cache['settled_mb']:.0f} settled, {cache['relist_peak_mb']:.0f} peak of relist"
    )
    print(f"  memory                {cache['kb_per_pod']:8.2f} KB/pod")
    print(f"decoding alone, {SAMPLE} pods:")
    for name, found in (("this project's structs", ours), ("kubernetes models", models)):
        print(f"  {name:22} {found['us_per_pod']:7.1f} us/pod {found['kb_per_pod']:6.2f} KB/pod")
    times, sizes = (models[k] / ours[k] for k in ("us_per_pod", "kb_per_pod"))
    print(f"  ratio                  {times:7.0f} times the CPU, {sizes:.0f} times the memory")


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    match sys.argv[1:]:
        case ["serve", total]:
            serve(int(total))
        case ["cache", url, total]:
            print(json.dumps(measure_cache(url, int(total))))
        case ["decode"]:
            print(json.dumps(measure_decode()))
        case ["models"]:
            print(json.dumps(measure_models()))
        case _:
            main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
