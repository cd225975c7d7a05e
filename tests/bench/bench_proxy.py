"""The service proxy from the watch event to the kernel's door, on the stateful fakes.

    python tests/bench/bench_proxy.py [--services N] [--seconds S]

Four tables, every figure from a fresh process: a cold start split into its parts, one change of an
endpoint at 100 and at N Services, a stream of changes, and memory. The kernel's own part is in the
table of ``bench_ipvs``; here the fake takes its place. Only the ratios compare between machines.
"""

import argparse
import json
import logging
import multiprocessing
import queue
import resource
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from synthetic_cluster import ENDPOINTS, NODE, endpoint_slice, serve, service

CHANGES = 300
RATE = 1000


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Bench:
    """A proxy on fakes; ``cache`` is filled by the caller."""

    def __init__(self) -> None:
        logging.disable(logging.CRITICAL)
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
        self.open_ports = lambda: ports
        self.proxy = ServiceProxy(self.cache, options, "node1", self.open_ports)

    def watch(self) -> Callable[[bytes], None]:
        """What a reflector does with one line of its watch, whose revision this fills in."""
        from kube_router_py.cluster.objects import EndpointSlice
        from kube_router_py.cluster.reflector import Reflector

        client: Any = SimpleNamespace()  # nothing is asked of it
        apply, revisions = Reflector(client, self.cache, EndpointSlice)._apply, count(2_000_000)
        return lambda line: apply(line.replace(b"REVISION", b"%d" % next(revisions)))

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
    import kube_router_py.agent  # noqa: F401 - its memory is part of what is measured

    bench = Bench()
    from kube_router_py.cluster.client import connect
    from kube_router_py.cluster.reflector import Reflector
    from kube_router_py.kernel import ipvs_encode
    from kube_router_py.options import parse
    from kube_router_py.proxy.dirty_keys import KINDS

    parts, marks = [], [(begun, 0.0)]

    def done(part: str) -> None:
        marks.append((time.perf_counter(), time.process_time()))
        (wall, cpu), (wall_now, cpu_now) = marks[-2:]
        parts.append((part, wall_now - wall, cpu_now - cpu))

    done("import")
    port: Any = multiprocessing.Queue()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(services, port))
    server.start()
    try:
        address = f"http://127.0.0.1:{port.get(timeout=120)}"
        client = connect(parse([f"--master={address}"], {}), {})
        reflectors = [Reflector(client, bench.cache, kind) for kind in KINDS]
        done("start of the server")
        for each in reflectors:
            each.start()
        assert bench.cache.wait_synced(KINDS, 300)
        done("list, decode, store")
        bench.proxy.open()
        outcome = bench.proxy.reconcile(frozenset(), True)
        done("compile, diff, plan")
        assert not outcome.failed, outcome
        assert len(bench.ipvs.operations) == services * (1 + ENDPOINTS)
        for _ in ipvs_encode.encode(30, bench.ipvs.operations, 1, {}):
            pass
        done("encode")
        result.put(SimpleNamespace(parts=parts))
        for each in reflectors:
            each.stop(0)
    finally:
        server.terminate()
        server.join()


def watch_line(number: int, version: int) -> bytes:
    """A line of a watch; the revision is yet to be filled in."""
    changed = endpoint_slice(number, version)
    changed["metadata"]["resourceVersion"] = "REVISION"
    return json.dumps({"type": "MODIFIED", "object": changed}).encode()


def one_change(services: int, result: Any) -> None:
    bench = Bench()
    bench.fill(services)
    bench.proxy.open()
    bench.proxy.reconcile(frozenset(), True)
    dirty: set[Any] = set()
    bench.proxy.subscribe(bench.cache, SimpleNamespace(mark=dirty.update))
    watch = bench.watch()
    walls, cpus = [], []
    bench.ipvs.operations.clear()

    def change(number: int, version: int) -> None:
        line = watch_line(number, version)
        wall, cpu = time.perf_counter(), time.process_time()
        watch(line)
        bench.proxy.reconcile(frozenset(dirty), False)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        dirty.clear()

    for turn in range(CHANGES):
        for version in (1, 2):  # one endpoint replaced, and back again
            change(1 + turn * 37 % services, version)
    walls.sort()
    result.put(
        SimpleNamespace(
            p50=walls[len(walls) // 2],
            p99=walls[len(walls) * 99 // 100],
            cpu=statistics.median(cpus),
            sent=len(bench.ipvs.operations) / len(walls),
        )
    )


def stream(services: int, seconds: int, result: Any) -> None:
    """Every other change is one of ten Services'; the others go round all of them."""
    from kube_router_py.loop import Loop

    bench = Bench()
    bench.fill(services)
    lines = [[watch_line(number, version) for version in (0, 1)] for number in range(services + 1)]
    versions = [0] * (services + 1)
    turns: list[Any] = []
    loop = Loop(bench.proxy, ready=lambda: True, resync_interval_s=3600, on_turn=turns.append)
    bench.proxy.subscribe(bench.cache, loop)
    watch = bench.watch()
    loop.start()
    while not loop.status().settled:
        time.sleep(0.1)
    bench.ipvs.operations.clear()
    turns.clear()
    deepest = changes = operations = 0
    before = peak = rss_mib()
    cpu, begun = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        while changes < (now - begun) * RATE:
            number = 1 + (changes * 37 % services if changes % 2 else changes // 2 % 10)
            versions[number] ^= 1
            watch(lines[number][versions[number]])
            changes += 1
        deepest = max(deepest, loop.status().dirty)
        peak = max(peak, rss_mib())
        # The fake's log is no part of the agent.
        operations += len(bench.ipvs.operations)
        bench.ipvs.operations.clear()
        time.sleep(0.005)
    ended = time.perf_counter()
    used = time.process_time() - cpu
    while not loop.status().settled:
        time.sleep(0.01)
    behind = time.perf_counter() - ended
    loop.stop(30)
    bench.ipvs.operations.clear()
    bench.proxy.open()
    bench.proxy.reconcile(frozenset(), True)
    assert not bench.ipvs.operations, "the table is what was wanted last"
    result.put(
        SimpleNamespace(
            changes=changes,
            rate=changes / (ended - begun),
            keys=sum(turn.keys for turn in turns),
            operations=operations,
            deepest=deepest,
            behind=behind,
            cpu=used / (ended - begun),
            before=before,
            peak=peak,
        )
    )


def whole_agent(services: int, result: Any) -> None:
    """Everything but the real kernel adapters: the agent as it runs, with probes and metrics."""
    port: Any = multiprocessing.Queue()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(services, port))
    server.start()
    try:
        from kube_router_py.agent import Agent
        from kube_router_py.options import parse

        flags = {
            "master": f"http://127.0.0.1:{port.get(timeout=120)}",
            "hostname-override": "node1",
            "metrics-port": "20998",
            "health-port": "20999",
            "healthz-bind-address": ":0",
            # What the firewall costs is measured by itself (bench_firewall.py).
            "run-firewall": "false",
        }
        options = parse([f"--{name}={value}" for name, value in flags.items()], {})
        agent = Agent(options, {}, Bench().open_ports)
        thread = threading.Thread(target=agent.run)
        thread.start()
        while not agent.loops[0].status().settled:
            time.sleep(0.1)
        result.put(SimpleNamespace(rss=rss_mib()))
        agent.end()
        thread.join()
    finally:
        server.terminate()
        server.join()


def measure(target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=target, args=(*arguments, result))
    process.start()
    while True:
        try:
            found = result.get(timeout=5)
        except queue.Empty:
            if not process.is_alive():  # it has said why
                raise SystemExit(f"{target.__name__} ended with {process.exitcode}") from None
        else:
            process.join()
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    many = options.services

    found = measure(cold_start, many)
    print(f"cold start, {many} Services x {ENDPOINTS} endpoints, wall (CPU) seconds")
    for part, wall, cpu in found.parts:
        print(f"  {part:20}{wall:8.2f} ({cpu:.2f})")

    few, much = measure(one_change, 100), measure(one_change, many)
    print(
        f"one endpoint changes: line of the watch to the kernel's door, at 100 and {many} Services"
    )
    for name in ("p50", "p99", "cpu"):
        a, b = getattr(few, name), getattr(much, name)
        print(f"  {name:4} {a * 1e6:8.0f} us {b * 1e6:8.0f} us   ratio {b / a:.2f}")

    run = measure(stream, many, options.seconds)
    print(f"{RATE} endpoint changes a second for {options.seconds} s at {many} Services")
    print(f"  arrived {run.changes}, turned over {run.keys} keys in {run.operations} operations,")
    print(f"  coalesced {1 - run.keys / run.changes:.0%}; deepest queue {run.deepest} keys;")
    print(f"  behind at the end {run.behind * 1000:.0f} ms; CPU {run.cpu:.0%} of a core,")
    print("  decoding included")
    small, large = measure(whole_agent, 20).rss, measure(whole_agent, many).rss

    rows = (
        ("CPU of one change, ratio", much.cpu / few.cpu, 1.5),
        ("median time of one change, ratio", much.p50 / few.p50, 1.5),
        # To and fro: add, weight 0, and back; and one removal when nothing is left to drain.
        ("operations per change, 100 Services", few.sent, 2.5),
        ("operations per change, all Services", much.sent, 2.5),
        (f"memory with {many} Services, MiB", large, 200),
        ("memory of 20 Services, MiB", small, 70),
        ("memory gained by the changes, MiB", run.peak - run.before, 20),
        ("behind after the changes, s", run.behind, 1),
        ("deepest queue, keys", run.deepest, many),
    )
    print(f"{'':36}{'found':>9}{'at most':>9}")
    for what, value, target in rows:
        print(f"{what:36}{value:9.2f}{target:9.1f}  {'kept' if value <= target else 'MISSED'}")
    print("Memory: of a whole agent with metrics, the fake kernel's table and log included.")


if __name__ == "__main__":
    socket.setdefaulttimeout(600)
    main()
