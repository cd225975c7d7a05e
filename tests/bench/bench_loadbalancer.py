"""Addresses for Services of type LoadBalancer: what one costs, with few Services and with many.

    python tests/bench/bench_loadbalancer.py [--services N]

From a Service as it comes from the watch to the decision, and from the status that comes back to
the decision that nothing is to be done; no API server, no network. Every figure comes from a fresh
process. Only the ratios compare between machines; steps are counted, and the same everywhere.
"""

import argparse
import gc
import multiprocessing
import resource
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
            "ports": [{"port": 80}, {"port": 443}],
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
    from kube_router_py.loadbalancer.requests import compile_request, foreign_addresses

    _, families, reserved = LAYOUTS[layout]
    rules = SimpleNamespace(loadbalancer_default_class=True)
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
        allocator.note_foreign(request.key, foreign_addresses(each, True))
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
    wanted = [(compile_request(each, rules), {}) for each in written]
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
    print(f"{'':46}{'found':>9}{'at most':>8}")
    for layout, ratio, steps in ratios:
        for what, value, target in (("CPU, ratio", ratio, 2.0), ("steps", steps, 4.0)):
            kept = "kept" if value <= target else "MISSED"
            print(f"{layout + ': ' + what:48}{value:7.2f}{target:7.1f}  {kept}")


if __name__ == "__main__":
    main()
