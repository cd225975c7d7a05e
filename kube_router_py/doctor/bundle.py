"""A bundle for whoever is to help: what the node looks like, without secrets.

Each file has a bounded size, each command a time limit, and what fails says so in its file. What is
written goes through ``masks``; Secrets, tokens and environment variables are not collected at all.
The file appears under its name when it is complete, readable by its owner only.
"""

import base64
import io
import os
import platform
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import json

import kube_router_py
from kube_router_py.cluster.credentials import SERVICE_ACCOUNT
from kube_router_py.doctor.facts_host import cni_files
from kube_router_py.doctor.masks import environment, masked
from kube_router_py.doctor.paths import inside, read_file
from kube_router_py.doctor.place import Place
from kube_router_py.errors import ConfigurationError, KernelError
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.iptables_variant import legacy_tables
from kube_router_py.kernel.program import run
from kube_router_py.options import FLAGS, given_text, scan

_TIMEOUT_S = 30.0
_MOST_BYTES = 4 << 20
_LONGEST_SECRETS = 1 << 20
_LOG_LINES = "5000"
_SHOWN = (
    *("NODE_NAME", "POD_NAME", "POD_NAMESPACE", "PATH", "HOME", "LANG"),
    *("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_PORT_443_TCP_ADDR"),
)
_COMMANDS = {
    "network/addresses.txt": ("ip", "-d", "addr", "show"),
    "network/links.txt": ("ip", "-d", "-s", "link", "show"),
    "network/routes-v4.txt": ("ip", "-4", "-d", "route", "show", "table", "all"),
    "network/routes-v6.txt": ("ip", "-6", "-d", "route", "show", "table", "all"),
    "network/rules-v4.txt": ("ip", "-4", "rule", "show"),
    "network/rules-v6.txt": ("ip", "-6", "rule", "show"),
    "network/route-cache.txt": ("ip", "-4", "route", "show", "cache"),
    "network/neighbors.txt": ("ip", "neigh", "show"),
    "network/bridge.txt": ("bridge", "link", "show"),
    "network/listening.txt": ("ss", "-lntu"),
    "rules/iptables-nft.txt": ("iptables-nft-save", "-c"),
    "rules/ip6tables-nft.txt": ("ip6tables-nft-save", "-c"),
    "rules/nftables.txt": ("nft", "list", "ruleset"),
    "rules/versions.txt": ("iptables", "--version"),
    "rules/ipsets.txt": ("ipset", "list", "-t"),
    "rules/ipset-version.txt": ("ipset", "--version"),
    "conntrack.txt": ("conntrack", "-S"),
    "logs/journal.txt": (
        *("journalctl", "--no-pager", "-q", "-n", _LOG_LINES, "-t", "kube-router-py"),
    ),
    "logs/kernel.txt": ("dmesg", "--time-format", "iso"),
}
_LEGACY = {
    "inet": ("rules/iptables-legacy.txt", ("iptables-legacy-save", "-c")),
    "inet6": ("rules/ip6tables-legacy.txt", ("ip6tables-legacy-save", "-c")),
}
_FILES = {
    "ipvs/table.txt": "/proc/thread-self/net/ip_vs",
    "ipvs/stats.txt": "/proc/thread-self/net/ip_vs_stats",
    "kernel/modules.txt": "/proc/modules",
    "kernel/netstat.txt": "/proc/thread-self/net/netstat",
    "kernel/meminfo.txt": "/proc/meminfo",
}
_SYSCTLS = (
    *("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"),
    *("net/netfilter/*", "net/bridge/*", "net/ipv4/vs/*"),
    *("net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/arp_*", "net/ipv6/conf/*/accept_ra"),
    *("net/ipv4/neigh/default/gc_thresh*", "net/ipv6/neigh/default/gc_thresh*"),
)
_FRR = (
    "show running-config",
    "show bgp summary",
    "show bgp neighbors",
    "show bgp ipv4",
    "show bfd peers",
)


def write_bundle(path: str, place: Place, findings: Mapping[str, Any]) -> int:
    """Write it, and return its size in bytes. Raises ConfigurationError where it cannot be."""
    known = _known_secrets(place)
    target = Path(path)
    prefix = target.name.removesuffix(".tar.gz").removesuffix(".tgz") or "bundle"
    beside: Path | None = None
    try:
        # A name that nobody can guess, made anew, for its owner only.
        descriptor, name_ = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        beside = Path(name_)
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, read in _contents(place, findings):
                    _add(archive, f"{prefix}/{name}", _text(read, known))
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, target)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"--bundle {path} cannot be written: {reason}") from error
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()
    return target.stat().st_size


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="replace")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def _text(read: Callable[[], str], known: frozenset[str]) -> str:
    try:
        text = read()
    except Exception as error:  # noqa: BLE001 - what cannot be had is said in its place
        text = f"(not collected: {' '.join(str(error).split()) or type(error).__name__})\n"
    left_out = len(text) - _MOST_BYTES
    kept = masked(text[:_MOST_BYTES], known)
    if left_out <= 0:
        return kept
    # A secret that is cut in two is not known again: its first part goes, too.
    kept = kept[: max(0, len(kept) - max(map(len, known), default=0))]
    return f"{kept}\n(cut off here: {left_out} characters more)\n"


def _contents(place: Place, findings: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "findings.json", lambda: _json(findings)
    yield "versions.txt", _versions
    yield "options.json", lambda: _json(place.flags or given_text(place.options))
    yield "environment.txt", lambda: environment(place.environ, _SHOWN)
    yield "status.json", lambda: _json(place.status or {"running": False})
    yield "problems.txt", lambda: _problems(place)
    for name, command in _COMMANDS.items():
        yield name, _runner(command)
    for family, (name, command) in _LEGACY.items():
        if legacy_tables(family):  # to look at a table there would create it
            yield name, _runner(command)
    for name, file in _FILES.items():
        yield name, _reader(file)
    yield "kernel/sysctls.txt", _sysctls
    if place.options.run_router:
        cni = place.options.cni_conf_file
        yield "network/cni.txt", lambda: _cni(cni, place.root)
        yield "frr.txt", lambda: _frr(place.run_dir)


def _json(value: Any) -> str:
    return json.format(json.encode(value), indent=1).decode() + "\n"


def _problems(place: Place) -> str:
    listed = (place.status or {}).get("problems") or ()
    return "".join(f"{each['object']} {each['field']}: {each['reason']}\n" for each in listed)


def _cni(path: str, root: str) -> str:
    files = cni_files(path, root)
    listed = "".join(f"{name}\n" for name in files.names)
    return f"{listed}\n# {files.path}\n{files.text or '(not there)'}\n"


def _runner(command: tuple[str, ...]) -> Callable[[], str]:
    def execute() -> str:
        if shutil.which(command[0]) is None:
            return f"({command[0]} is not installed)\n"
        done = run(command, timeout_s=_TIMEOUT_S)
        failed = f"(exit code {done.code}: {done.complaint})\n" if done.code else ""
        return done.stdout + failed

    return execute


def _reader(file: str) -> Callable[[], str]:
    def read() -> str:
        with open(file, errors="replace") as opened:
            return opened.read(_MOST_BYTES + 1)

    return read


def _sysctls() -> str:
    lines: list[str] = []
    root = Path("/proc/sys")
    for pattern in _SYSCTLS:
        for file in sorted(root.glob(pattern)):
            with suppress(OSError):
                if file.is_file():
                    value = " ".join(file.read_text(errors="replace").split())
                    lines.append(f"{file.relative_to(root)} = {value}\n")
    return "".join(lines)


def _versions() -> str:
    release = Path("/etc/os-release")
    system = release.read_text(errors="replace") if release.is_file() else ""
    return (
        f"kube-router-py {kube_router_py.__version__}\nPython {platform.python_version()}\n"
        f"{' '.join(platform.uname())}\n{system}"
    )


def _frr(run_dir: str) -> str:
    client = VtyClient(f"{run_dir}/bgpd.vty", _TIMEOUT_S)
    try:
        parts = []
        for command in _FRR:
            try:
                parts.append(f"# {command}\n{client.show(command).text}\n")
            except KernelError as error:
                parts.append(f"# {command}\n({error})\n")
        return "".join(parts)
    finally:
        client.close()


def _known_secrets(place: Place) -> frozenset[str]:
    """Secrets that can be known here, so that they are found wherever they stand: passwords of
    neighbors, the ServiceAccount's token, values of variables that are named like one."""
    texts = [*place.options.peer_router_passwords, *_password_flags(place.pid)]
    for name in (f"{SERVICE_ACCOUNT}/token", place.options.peer_router_passwords_file):
        with suppress(OSError):
            if name:
                texts.append(read_file(inside(place.root, name), _LONGEST_SECRETS))
    texts += [v for name, v in place.environ.items() if name not in _SHOWN and _is_secret(name)]
    found = {part for text in texts for part in (text, *re.split(r"[,\s]+", text)) if part}
    for each in tuple(found):
        found.add(base64.b64encode(each.encode()).decode())
        with suppress(ValueError):
            found.add(base64.b64decode(each, validate=True).decode())
    # As JSON and logs have them.
    return frozenset(found | {form(each)[1:-1] for each in found for form in (_quoted, repr)})


def _quoted(text: str) -> str:
    return json.encode(text).decode()


def _password_flags(pid: int) -> list[str]:
    """What the agent's command line gives as passwords, which it does not tell."""
    if not pid:
        return []
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
    texts = scan([each for each in words if each.startswith("--")]).texts
    return [text for flag in FLAGS if flag.is_secret for text in texts.get(flag.name, ())]


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in ("PASSWORD", "PASSWD", "SECRET", "TOKEN", "_KEY"))
