"""Programming IPVS: this project's path, ``ipvsadm -R`` and pyroute2's IPVS class, in one run.

    python tests/bench/bench_ipvs.py [--services N] [--endpoints N] [--pyroute2-services N]

Needs root, ip_vs and ipvsadm (``make bench`` runs it in a VM). Each candidate fills a fresh network
namespace with the same table: distinct virtual server addresses, distinct real servers. A timing
counts only if a full dump afterwards equals that table; otherwise the exit code is 1. Times are
wall time per operation, an operation being one virtual or real server added; under software
emulation only the ratios mean anything.
"""

import argparse
import ctypes
import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kube_router_py.kernel import ipvs_encode
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.netlink import NETLINK_GENERIC, NetlinkSocket, family_id
from kube_router_py.proxy.model import (
    IpvsOperation,
    IpvsTable,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
INET = socket.AF_INET.value
EXPECTED_RATIO = 8


def desired_table(services: int, endpoints: int) -> IpvsTable:
    """Services 10.128.0.0 and up, their endpoints 10.0.0.1 and up, every address once."""
    table: IpvsTable = {}
    pod = 0x0A000001
    for number in range(services):
        key = VirtualServerKey(INET, 6, (0x0A800000 + number).to_bytes(4, "big"), 80)
        real: dict[RealServerKey, RealServer] = {}
        for _ in range(endpoints):
            real[RealServerKey(INET, pod.to_bytes(4, "big"), 8080)] = RealServer()
            pod += 1
        table[key] = VirtualServerState(VirtualServer(), real)
    return table


def operations_for(table: IpvsTable) -> list[IpvsOperation]:
    """The operations that fill an empty table, as a plan orders them."""
    operations = [
        IpvsOperation(Verb.ADD_VIRTUAL_SERVER, key, state.config) for key, state in table.items()
    ]
    operations += [
        IpvsOperation(Verb.ADD_REAL_SERVER, key, real_server=name, real=real)
        for key, state in table.items()
        for name, real in state.real_servers.items()
    ]
    return operations


def enter_new_namespace() -> None:
    """Move this thread to a network namespace of its own; the former one vanishes unless used."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise SystemExit(f"needs root: unshare: {os.strerror(code)}")
    # Without any address the kernel refuses every real server as a broadcast address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def verified(table: IpvsTable) -> bool:
    """Whether the kernel holds exactly this table."""
    adapter = NetlinkIpvs()
    try:
        return adapter.read() == table
    finally:
        adapter.close()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def fill_by_ipvsadm(table: IpvsTable) -> float:
    """``ipvsadm -R`` reading the whole table from its standard input."""
    lines = []
    for key, state in table.items():
        vip = f"{socket.inet_ntop(key.family, key.address)}:{key.port}"
        lines.append(f"-A -t {vip} -s {state.config.scheduler}")
        for name, real in state.real_servers.items():
            pod = f"{socket.inet_ntop(name.family, name.address)}:{name.port}"
            lines.append(f"-a -t {vip} -r {pod} -m -w {real.weight}")
    text = "\n".join(lines) + "\n"
    return seconds(lambda: subprocess.run(["ipvsadm", "-R"], input=text, text=True, check=True))


def fill_by_pyroute2(table: IpvsTable) -> float:
    """pyroute2's IPVS class, one call per server; the objects are made beforehand."""
    from pyroute2 import IPVS, IPVSDest, IPVSService

    calls = []
    for key, state in table.items():
        service = IPVSService(
            addr=socket.inet_ntop(key.family, key.address),
            port=key.port,
            protocol=key.protocol,
            sched_name=state.config.scheduler,
            flags={"flags": 0, "mask": 0x3D},
        )
        calls.append((service, None))
        for name, real in state.real_servers.items():
            dest = IPVSDest(
                addr=socket.inet_ntop(name.family, name.address),
                port=name.port,
                fwd_method=real.forward,
                weight=real.weight,
            )
            calls.append((service, dest))

    def run() -> None:
        for service, dest in calls:
            if dest is None:
                ipvs.service("add", service=service)
            else:
                ipvs.dest("add", service=service, dest=dest)

    with IPVS() as ipvs:
        return seconds(run)


class Report:
    """One table, row by row, and whether everything in it was verified."""

    def __init__(self) -> None:
        self.sound = True
        print(f"{'what':<44}{'operations':>11}{'seconds':>10}{'us/op':>10}  verified", flush=True)

    def row(self, what: str, operations: int, spent: float, correct: bool | None = None) -> float:
        """Print a row and return its us/op."""
        each = spent / operations * 1e6
        word = {True: "verified", False: "WRONG TABLE", None: "-"}[correct]
        self.sound &= correct is not False
        print(f"{what:<44}{operations:>11}{spent:>10.3f}{each:>10.2f}  {word}", flush=True)
        return each


def measure_own(table: IpvsTable, report: Report) -> tuple[float, float]:
    """Our path as the agent uses it, then its shares apart; returns us/op of write and read."""
    operations = operations_for(table)
    count = len(operations)

    enter_new_namespace()
    adapter = NetlinkIpvs()
    failures: list[object] = []
    spent = seconds(lambda: failures.extend(adapter.apply(operations)))
    own = report.row("own: apply (encode + kernel)", count, spent, not failures and verified(table))
    read = report.row("own: read back the whole table", count, seconds(adapter.read))
    adapter.close()

    enter_new_namespace()
    netlink = NetlinkSocket(NETLINK_GENERIC)
    family = family_id(netlink, "IPVS")
    first = netlink.reserve(count)
    messages: list[bytes] = []
    spent = seconds(lambda: messages.extend(ipvs_encode.encode(family, operations, first, {})))
    encode = report.row("own: the share of encoding", count, spent)
    refused: dict[int, int] = {}
    spent = seconds(lambda: refused.update(netlink.batch(messages)))
    kernel = report.row(
        "own: the share of the kernel", count, spent, not refused and verified(table)
    )
    netlink.close()
    print(f"    encoding : kernel = {encode / kernel:.2f} : 1")
    return own, read


def main() -> int:
    """Measure everything, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--pyroute2-services", type=int, default=50)
    options = parser.parse_args()

    table = desired_table(options.services, options.endpoints)
    sample_size = min(options.services, options.pyroute2_services)
    sample = dict(list(table.items())[:sample_size])
    count = options.services * (1 + options.endpoints)
    sample_count = sample_size * (1 + options.endpoints)

    print(
        f"IPVS, {options.services} services x {options.endpoints} endpoints, kernel "
        f"{os.uname().release}; every row in a fresh network namespace"
    )
    report = Report()
    # The first service in a kernel loads modules: not part of anyone's time.
    enter_new_namespace()
    warm = NetlinkIpvs()
    warm.apply(operations_for(desired_table(1, 1)))
    warm.close()

    own, read = measure_own(table, report)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    enter_new_namespace()
    spent = fill_by_ipvsadm(table)
    ipvsadm = report.row("ipvsadm -R", count, spent, verified(table))
    spent = seconds(
        lambda: subprocess.run(["ipvsadm", "-Sn"], stdout=subprocess.DEVNULL, check=True)
    )
    ipvsadm_read = report.row("ipvsadm -Sn (read back)", count, spent)

    enter_new_namespace()
    spent = fill_by_pyroute2(sample)
    what = f"pyroute2 IPVS (sample of {sample_size} services)"
    pyroute2 = report.row(what, sample_count, spent, verified(sample))

    print()
    print(f"ipvsadm -R / own apply      {ipvsadm / own:8.1f}   (expected: >= {EXPECTED_RATIO})")
    print(f"pyroute2 / own apply        {pyroute2 / own:8.1f}")
    print(f"ipvsadm -Sn / own read back {ipvsadm_read / read:8.1f}")
    print(f"peak RSS of the own path    {peak_kib / 1024:8.1f} MiB (table and operations included)")
    if not report.sound:
        print(
            "FAILED: a table was not what it should be; its timing does not count", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
