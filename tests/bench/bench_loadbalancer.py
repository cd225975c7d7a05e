"""Addresses for Services of type LoadBalancer: what one costs, with few Services and with many.

    python tests/bench/bench_loadbalancer.py [--services N]

First the decisions alone: from a Service as it comes from the watch to the decision, and from the
status that comes back to the decision that nothing is to be done; no API server, no network. Then
all that an agent does for it, elected and with every status written, against the lab's API server
in a process of its own. Every figure comes from a fresh process. Only the ratios compare between
machines; steps are counted, and the same everywhere.
"""

import argparse
import asyncio
import gc
import logging
import multiprocessing
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

OVERLAY = Path(__file__).resolve().parents[2] / "manifests/overlays/load-balancer"
FEW = 100
REPEATS = 5

# Names of the layouts: the ranges of their pool, families of the Services, addresses reserved.
LAYOUTS: dict[str, tuple[list[str], list[str], int]] = {
    "IPv4, 20 x /24": ([f"10.0.{n}.0-10.0.{n}.255" for n in range(20)], ["IPv4"], 0),
    "IPv4, 20 x /24, a tenth reserved": (
        [f"10.0.{n}.0-10.0.{n}.255" for n in range(23)],
        ["IPv4"],
        10,
    ),
    "IPv4, 2,500 ranges of 2": (
        [f"10.{n // 80}.{n % 80 * 3}.1-10.{n // 80}.{n % 80 * 3}.2" for n in range(2500)],
        ["IPv4"],
        0,
    ),
    "IPv6, a /64": (["fd00::-fd00::ffff:ffff:ffff:ffff"], ["IPv6"], 0),
    "dual stack, 20 x /24 and a /64": (
        [*(f"10.0.{n}.0-10.0.{n}.255" for n in range(20)), "fd00::-fd00::ffff:ffff:ffff:ffff"],
        ["IPv4", "IPv6"],
        0,
    ),
}


def rss_kib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def service(number: int, families: list[str], addresses: list[str]) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": f"ns{number % 50}",
            "name": f"web-{number}",
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "creationTimestamp": f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:00Z",
        },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilies": families,
            "ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": each} for each in addresses]}},
    }


def pools(layout: str) -> Any:
    from kube_router_py.address_pools import AddressPools, AddressRange, Pool

    ends = [each.split("-") for each in LAYOUTS[layout][0]]
    ranges = (AddressRange(ip_address(first), ip_address(last)) for first, last in ends)
    return AddressPools((Pool("default", tuple(ranges)),))


def measure(layout: str, services: int, result: Any) -> None:
    """Seconds of CPU for each part, memory, and steps of the search for a free address."""
    import msgspec

    from kube_router_py.cluster.objects import Service
    from kube_router_py.loadbalancer.allocate import Allocator
    from kube_router_py.loadbalancer.requests import Request, compile_request, foreign_addresses
    from kube_router_py.options import Options

    _, families, reserved = LAYOUTS[layout]
    rules = Options(loadbalancer_default_class=True)
    made = [msgspec.convert(service(number, families, []), Service) for number in range(services)]
    gc.collect()
    before = rss_kib()
    allocator = Allocator(pools(layout))
    if reserved:
        for number in range(services // reserved):
            address = ip_address("10.0.0.0") + number * reserved
            allocator.note_foreign(f"x/{number}", [address])

    def look_at(each: Any) -> Any:
        request = compile_request(each, rules)
        assert request is not None
        allocator.note_foreign(request.key, foreign_addresses(each, True, rules))
        return allocator.put(request, {})

    def cpu(work: Callable[[], object]) -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    decisions: list[Any] = []
    fill = cpu(lambda: decisions.extend(map(look_at, made)))
    memory, steps = rss_kib() - before, allocator.steps
    given = {each.address for decision in decisions for each in decision.addresses}
    assert len(given) == services * len(families), "somebody has nothing, or not alone"
    written = [
        msgspec.convert(
            service(number, families, [str(each.address) for each in decision.addresses]), Service
        )
        for number, decision in enumerate(decisions)
    ]
    echoed: list[Any] = []
    echo = cpu(lambda: echoed.extend(map(look_at, written)))
    assert not any(each.must_write or each.wrong for each in echoed)

    def churn() -> None:
        for each in made:
            allocator.remove(each.metadata.key)
            look_at(each)

    changed = cpu(churn)
    requests = (compile_request(each, rules) for each in written)
    wanted: list[tuple[Request, dict[str, str]]] = [(each, {}) for each in requests if each]
    rebuilt = cpu(lambda: [allocator.decide(key) for key in allocator.rebuild(wanted, {})])
    result.put(
        SimpleNamespace(
            fill=fill / services,
            echo=echo / services,
            churn=changed / services,
            rebuild=rebuilt,
            memory=memory / services,
            steps=steps / services,
        )
    )


def run(layout: str, services: int) -> Any:
    """The best of several processes: the others were disturbed."""
    context = multiprocessing.get_context("spawn")
    found = []
    for _ in range(REPEATS):
        result = context.Queue()
        process = context.Process(target=measure, args=(layout, services, result))
        process.start()
        found.append(result.get(timeout=300))
        process.join(60)
    best = {name: min(getattr(each, name) for each in found) for name in vars(found[0])}
    return SimpleNamespace(**best)


def serve(services: int, directory: str, ready: Any, stop: Any) -> None:
    """An API server with as many Services that have no address yet."""

    from kube_router_py.lab.apiserver.server import ApiServer
    from kube_router_py.lab.apiserver.store import Store
    from kube_router_py.lab.manifests import render_kustomization

    async def until_stopped() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        store = Store(("10.96.0.0/16", "fd00:96::/112"))
        server = ApiServer(store, Path(directory) / "pki", ["127.0.0.1"], port)
        for document in render_kustomization(OVERLAY):
            if "Role" in document["kind"] and document["metadata"]["name"] == "kube-router-py":
                store.create(f"{document['kind'].lower()}s", document)
        for number in range(services):
            made = service(number, ["IPv4"], [])
            made["metadata"] = {"namespace": "default", "name": made["metadata"]["name"]}
            # Every Service would have a node port, and there are fewer of them than that.
            made["spec"]["allocateLoadBalancerNodePorts"] = False
            store.create("services", {**made, "status": {}})
        await server.start([listening])
        token = server.issue_token("kube-system", "kube-router-py")
        path = Path(directory) / "kubeconfig"
        server.write_kubeconfig(path, f"https://127.0.0.1:{port}", token)
        ready.put(str(path))
        await asyncio.get_running_loop().run_in_executor(None, stop.get)

    asyncio.run(until_stopped())


def allocate(services: int, kubeconfig: str, result: Any) -> None:
    """An agent that does nothing else, until every status is written."""
    logging.disable(logging.CRITICAL)
    from kube_router_py.address_pool_config import pool_settings
    from kube_router_py.allocation_part import AllocationPart
    from kube_router_py.cluster.cache import Cache
    from kube_router_py.cluster.client import connect
    from kube_router_py.cluster.reflector import Reflector
    from kube_router_py.loadbalancer.controller import KINDS
    from kube_router_py.options import parse
    from kube_router_py.pool_book import PoolBook

    options = parse([f"--kubeconfig={kubeconfig}", "--loadbalancer-ip-range=10.0.0.0/16"], {})
    before = rss_kib()
    wall, cpu = time.perf_counter(), time.process_time()
    client, cache = connect(options), Cache(KINDS)
    book = PoolBook(pool_settings(options, "kube-system"))
    part = AllocationPart(
        *(options, cache, client, "node", "kube-system", "agent", book),
        *(lambda turn: None, lambda loop, reason: None),
    )
    reflectors = [Reflector(client, cache, kind) for kind in KINDS]
    book.put_config(None)
    starting: list[Any] = [part, *reflectors, part.loop]
    for each in starting:
        each.start()
    end = time.monotonic() + 280
    while part.numbers()["loadbalancer_status_writes_total"] < services:
        assert time.monotonic() < end, part.numbers()
        time.sleep(0.02)
    found = SimpleNamespace(
        wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, memory=rss_kib() - before
    )
    part.loop.stop(10)
    for reflector in reflectors:
        reflector.stop(5)
    part.stop()
    result.put(found)


def whole(services: int) -> Any:
    """Wall and CPU seconds, and KiB, of an agent that gives as many Services an address."""
    context = multiprocessing.get_context("spawn")
    ready, stop, result = context.Queue(), context.Queue(), context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        server = context.Process(target=serve, args=(services, directory, ready, stop))
        server.start()
        try:
            kubeconfig = ready.get(timeout=120)
            agent = context.Process(target=allocate, args=(services, kubeconfig, result))
            agent.start()
            found = result.get(timeout=300)
            agent.join(60)
        finally:
            stop.put(None)
            server.join(60)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, default=5000)
    many = parser.parse_args().services
    print(f"CPU of one Service among {FEW} and among {many}, in us; its share of the memory")
    print(f"{'':34}{'new':>12}{'ratio':>7}{'seen again':>12}{'replaced':>12}{'steps':>7}{'KiB':>6}")
    ratios = []
    for layout in LAYOUTS:
        few, much = run(layout, FEW), run(layout, many)
        ratios.append((layout, much.fill / few.fill, much.steps))
        both = [
            f"{getattr(few, name) * 1e6:6.0f}{getattr(much, name) * 1e6:6.0f}"
            for name in ("fill", "echo", "churn")
        ]
        print(
            f"{layout:34}{both[0]:>12}{much.fill / few.fill:7.2f}{both[1]:>12}{both[2]:>12}"
            f"{much.steps:7.2f}{much.memory:6.1f}"
        )
        print(
            f"{'':34}{1 / much.fill:,.0f} new Services a second; a new leader has read all {many} "
            f"in {much.rebuild:.2f} s"
        )
    few, much = whole(FEW), whole(many)
    print("an agent, from its start until every status is written, the election included")
    for count, found in ((FEW, few), (many, much)):
        print(
            f"  {count:6} Services: {found.wall:6.1f} s, {count / found.wall:6.0f} a second; CPU "
            f"{found.cpu / count * 1000:.2f} ms each; {found.memory / 1024:.0f} MiB more"
        )
    print(f"{'':46}{'found':>9}{'at most':>8}")
    for layout, ratio, steps in ratios:
        for what, value, target in (("CPU, ratio", ratio, 2.0), ("steps", steps, 4.0)):
            kept = "kept" if value <= target else "MISSED"
            print(f"{layout + ': ' + what:48}{value:7.2f}{target:7.1f}  {kept}")


if __name__ == "__main__":
    main()
