"""Reading this node: files of /proc, iptables, ipsets, links. Every program has a time limit."""

import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import DecodeError, json

from kube_router_py.doctor import nft
from kube_router_py.doctor.bgp import DAEMONS, MD5_COUNTERS, Process
from kube_router_py.doctor.network import CniFiles, Link
from kube_router_py.doctor.paths import inside, read_file
from kube_router_py.doctor.rules import Table, parse_saved
from kube_router_py.errors import KernelError
from kube_router_py.kernel.cni_file import is_multus
from kube_router_py.kernel.iptables_variant import legacy_tables, program_name
from kube_router_py.kernel.program import run
from kube_router_py.kernel.sysctl import ProcSysctls

_TIMEOUT_S = 30.0
_LISTENING = "0A"
_CNI_PLUGINS = "/opt/cni/bin"
_CNI_SUFFIXES = (".conf", ".conflist")
_MOST_BYTES = 1 << 20
# What may hold up a glance at a process: nothing, these are files of the kernel.
_MOST_PROCESSES = 65536


def tables(variant: str, families: Iterable[str]) -> tuple[Table, ...]:
    """All tables of a variant. A legacy table that does not exist is not looked at: looking would
    create it. Raises KernelError."""
    found: list[Table] = []
    for family in families:
        program = f"{program_name(variant, family)}-save"
        if shutil.which(program) is None:
            continue
        asked: list[list[str]] = [[program]]
        if variant == "iptables-legacy":
            asked = [[program, "-t", name] for name in sorted(legacy_tables(family))]
        for command in asked:
            done = run(command, timeout_s=_TIMEOUT_S)
            if done.code != 0:
                raise KernelError(f"{' '.join(command)}: {done.complaint}")
            found += parse_saved(done.stdout, family)
    return tuple(found)


def foreign_nft() -> tuple[Mapping[str, Any], ...]:
    """Tables of nft(8) that iptables does not show, as nft prints them; none where there is no
    nft(8)."""
    if shutil.which("nft") is None:
        return ()
    names = nft.foreign_tables(_nft("list", "tables"))
    return tuple(_nft("list", "table", family, name) for family, name in names)


def _nft(*words: str) -> Mapping[str, Any]:
    done = run(["nft", "-j", *words], timeout_s=_TIMEOUT_S)
    if done.code != 0:
        raise KernelError(f"nft {' '.join(words)}: {done.complaint}")
    try:
        return json.decode(done.stdout or "{}", type=dict[str, Any])
    except DecodeError as error:
        raise KernelError(f"nft {' '.join(words)}: {error}") from error


def set_names() -> frozenset[str]:
    done = run(["ipset", "list", "-n"], timeout_s=_TIMEOUT_S)
    if done.code != 0:
        raise KernelError(f"ipset list: {done.complaint}")
    return frozenset(done.stdout.split())


def links() -> tuple[Link, ...]:
    done = run(["ip", "-j", "-d", "addr", "show"], timeout_s=_TIMEOUT_S)
    if done.code != 0:
        raise KernelError(f"ip addr: {done.complaint}")
    try:
        listed = json.decode(done.stdout or "[]", type=list[dict[str, object]])
    except DecodeError as error:
        raise KernelError(f"ip addr: {error}") from error
    found: list[Link] = []
    for each in listed:
        info = each.get("linkinfo")
        listed_ = each.get("addr_info")
        addresses = [
            (str(address["local"]), str(address.get("prefixlen", "")))
            for address in (listed_ if isinstance(listed_, list) else ())
            if isinstance(address, dict) and "local" in address
        ]
        found.append(
            Link(
                str(each.get("ifname", "")),
                int(str(each.get("mtu") or 0)),
                str(info.get("info_kind", "")) if isinstance(info, dict) else "",
                str(each.get("master") or ""),
                tuple(address for address, _ in addresses),
                tuple(f"{address}/{length}" for address, length in addresses if length),
            )
        )
    return tuple(found)


def cached_paths(families: Iterable[str]) -> dict[str, int]:
    """The path MTUs that the kernel has learned (RFC 1191, 8201) and still remembers."""
    found: dict[str, int] = {}
    for family in families:
        option = "-4" if family == "inet" else "-6"
        done = run(["ip", option, "route", "show", "cache"], timeout_s=_TIMEOUT_S)
        for text in re.split(r"\n(?!\s)", done.stdout):
            mtu = re.search(r"\bmtu (\d+)", text)
            if mtu and text.split():
                try:
                    found[str(ipaddress.ip_address(text.split()[0]))] = int(mtu[1])
                except ValueError:
                    continue
    return found


def parameters(names: Iterable[str], root: str = "/proc/sys") -> dict[str, str | None]:
    port = ProcSysctls(root)
    return {name: port.read(name) for name in names}


def number(name: str) -> int | None:
    """A kernel parameter that is a number; None where there is none."""
    text = ProcSysctls().read(name)
    return int(text) if text is not None and text.isdigit() else None


def memory() -> int:
    """The node's memory in bytes."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def md5_counters() -> dict[str, int]:
    """What the kernel counted of TCP signatures in this network namespace."""
    lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            counted = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=False))
            return {name: counted.get(name, 0) for name in MD5_COUNTERS}
    return {}


def bgp_processes(port: int) -> tuple[Process, ...]:
    """Who listens on the port, and daemons by their names, in this network namespace."""
    inodes: set[str] = set()
    for file in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/thread-self/net", file).read_text().splitlines()[1:]
        except OSError:
            continue  # no IPv6
        for line in lines:
            words = line.split()
            if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(words[9])
    found: set[Process] = set()
    seen: set[str] = set()
    here = os.stat("/proc/thread-self/ns/net").st_ino
    for entry in list(Path("/proc").glob("[0-9]*"))[:_MOST_PROCESSES]:
        try:
            if (entry / "ns/net").stat().st_ino != here:
                continue
            name = (entry / "comm").read_text().strip()
            if name in DAEMONS:
                found.add(Process(int(entry.name), name))
            if not inodes:
                continue
            held = inodes & {_socket(file) for file in (entry / "fd").iterdir()}
        except OSError:  # it has just ended, or is none that we may look into
            continue
        if held:
            seen |= held
            found.add(Process(int(entry.name), name, port))
    if inodes - seen:
        found.add(Process(0, "", port))
    return tuple(sorted(found))


def _socket(descriptor: Path) -> str:
    try:
        words = os.readlink(descriptor)
    except OSError:
        return ""
    return words[8:-1] if words.startswith("socket:[") else ""


def frr_processes(run_dir: str) -> frozenset[int]:
    """The daemons of one run directory, by the pid files there and by who answers."""
    from kube_router_py.kernel.frr_process import Layout, survivors
    from kube_router_py.kernel.ports_frr import DAEMONS as FRR

    found: set[int] = set()
    for each in survivors(Layout(run_dir=run_dir), FRR):
        found.add(each.pid)
        each.close()
    for daemon in FRR:
        try:
            found.add(int(Path(run_dir, f"{daemon}.pid").read_text()))
        except (OSError, ValueError):
            continue
    return frozenset(found)


def processes_of(directory: str) -> frozenset[int]:
    """Processes of this network namespace whose arguments name a directory, as FRR's do their run
    directory, which may be that of another container."""
    found: set[int] = set()
    here = os.stat("/proc/thread-self/ns/net").st_ino
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if directory in arguments and (entry / "ns/net").stat().st_ino == here:
                found.add(int(entry.name))
        except OSError:
            continue
    return frozenset(found)


def cni_files(path: str, root: str) -> CniFiles:
    """As the agent sees them, whose file system begins at ``root``."""
    given = Path(path)
    candidates = [given, *(given.with_suffix(suffix) for suffix in _CNI_SUFFIXES)]
    # The agent takes a file with the other suffix for the one that is meant.
    meant = next((each for each in candidates if Path(inside(root, str(each))).exists()), given)
    file = Path(inside(root, str(meant)))
    text = read_file(str(file), _MOST_BYTES) if file.exists() else None
    names = tuple(sorted(os.listdir(file.parent))) if file.parent.is_dir() else ()
    multus = frozenset(
        each for each in names if is_multus(Path(inside(root, str(meant.with_name(each)))))
    )
    plugins = Path(inside(root, _CNI_PLUGINS))
    there = frozenset(os.listdir(plugins)) if plugins.is_dir() else None
    return CniFiles(str(meant), text, names, there, multus)


def open_files(pid: int) -> tuple[int | None, int | None]:
    """How many a process has open, and may have."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max open files\s+(\S+)", limits, re.MULTILINE)
    limit = int(found[1]) if found and found[1].isdigit() else None
    try:
        return len(os.listdir(f"/proc/{pid}/fd")), limit
    except OSError:
        return None, limit


def lacks_own_lock(pid: int, environ: Mapping[str, str]) -> bool:
    """Whether a container has a lock file of iptables of its own, which nobody else looks at."""
    if "KUBERNETES_SERVICE_HOST" not in environ:
        return False  # no container
    mounts = Path(f"/proc/{pid or 'self'}/mountinfo").read_text()
    points = {line.split()[4] for line in mounts.splitlines()}
    return not points & {"/run/xtables.lock", "/run", "/var/run", "/var/run/xtables.lock"}


def agent_lock_is_held() -> bool:
    """Whether an agent runs in this network namespace (``kernel.agent_lock``)."""
    from kube_router_py.kernel.agent_lock import NAME

    names = Path("/proc/thread-self/net/unix").read_text(errors="replace")
    return f"@{NAME[1:]}" in names


def listening_process(path: str) -> int:
    """The process that listens at a unix socket, as seen from here; 0 if that cannot be told."""
    import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(5.0)
        asking.connect(path)
        raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        return int(struct.unpack("iII", raw)[0])
