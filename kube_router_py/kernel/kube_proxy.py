"""Whether kube-proxy runs in this network namespace, and what it left there.

kube-proxy tells its mode on its metrics port (``/proxyMode`` on 127.0.0.1:10249, on [::1]:10249
where its ``bindAddress`` is an IPv6 address); where that is off or elsewhere, its process is looked
for, as far as this process can see others.
"""

import http.client
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kube_router_py.errors import KernelError
from kube_router_py.kernel.iptables import IptablesProgram, program_name
from kube_router_py.kernel.program import run
from kube_router_py.kernel.rule_text import parse_table
from kube_router_py.proxy.model import KUBE_PROXY_LINK

MODES = ("iptables", "ipvs", "nftables", "userspace")
UNKNOWN = "unknown"

_HOSTS = ("127.0.0.1", "::1")
_PORT = 10249
_TIMEOUT_S = 30.0
_ASK_S = 2.0
_NAME = "kube-proxy"

# Chains of kube-proxy by table. The kubelet has chains of this prefix as well, which stay:
# KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT.
_OF_SERVICES = r"(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z0-9]{16}"
_CHAINS = {
    "nat": rf"{_OF_SERVICES}|SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|MARK-DROP|PROXY-CANARY|"
    r"LOAD-BALANCER|NODE-PORT",
    "filter": r"SERVICES|EXTERNAL-SERVICES|NODEPORTS|NODE-PORT|PROXY-FIREWALL|PROXY-CANARY|"
    r"SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER",
    "mangle": r"PROXY-CANARY",
}
# It accepts replies of what kube-proxy forwarded: harmless, and replies may depend on it still.
_FORWARD = "KUBE-FORWARD"
_SETS = re.compile(
    r"KUBE-(6-)?(CLUSTER-IP|LOOP-BACK|EXTERNAL-IP(-LOCAL)?|IPVS-IPS|HEALTH-CHECK-NODE-PORT|"
    r"LOAD-BALANCER(-LOCAL|-FW|-SOURCE-IP|-SOURCE-CIDR)?|"
    r"NODE-PORT(-LOCAL)?-(TCP|UDP|SCTP(-HASH)?))"
)
# The wide spelling of some, shortened to the 31 characters that a name may have.
_SHORT_SETS = frozenset(("KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-HEALTH-CHECK-NODE-PORT"))
_NAMES_FILES = {"inet": "ip_tables_names", "inet6": "ip6_tables_names"}

Step = tuple[str, Callable[[], None]]


def is_chain(table: str, name: str, *, everything: bool = True) -> bool:
    """Whether kube-proxy made a chain of this name in this table."""
    if table == "filter" and name == _FORWARD:
        return everything
    pattern = _CHAINS.get(table)
    return pattern is not None and re.fullmatch(f"KUBE-({pattern})", name) is not None


def is_set(name: str) -> bool:
    """Whether kube-proxy (mode ipvs) made an ipset of this name."""
    return name in _SHORT_SETS or _SETS.fullmatch(name) is not None


def running_mode(port: int = _PORT, proc: Path = Path("/proc")) -> str | None:
    """The mode of the kube-proxy that runs here (one of MODES, or UNKNOWN), None if none does."""
    for host in _HOSTS:
        if (mode := _told_mode(host, port)) is not None:
            return mode
    return _process_mode(proc)


def _told_mode(host: str, port: int) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_S)
    try:
        connection.request("GET", "/proxyMode")
        answer = connection.getresponse()
        mode = answer.read(64).decode("ascii", "replace").strip()
        if answer.status == http.client.OK and mode in MODES:
            return mode
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return None


def _process_mode(proc: Path) -> str | None:
    try:
        here = (proc / "thread-self/ns/net").stat().st_ino
    except OSError:
        return None
    for entry in proc.glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() != _NAME:
                continue
            if (entry / "ns/net").stat().st_ino != here:
                continue
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has just ended, or is none of ours
            continue
        found = re.search(r"--proxy-mode[=\0](\w+)", arguments)
        return found[1] if found and found[1] in MODES else UNKNOWN
    return None


def leftovers(*, everything: bool) -> Iterator[Step]:
    """What there is of kube-proxy in this network namespace: in words, and how it is removed. In
    the order in which traffic suffers nothing, provided that its Services are served already.

    ``everything``: also what harms nobody.
    """
    yield from _chains(everything)
    yield from _nft_tables()
    yield from _link()
    yield from _ipsets()


def _chains(everything: bool) -> Iterator[Step]:
    for variant in ("iptables-nft", "iptables-legacy"):
        for family, names_file in _NAMES_FILES.items():
            program = f"{program_name(variant, family)}-save"
            if shutil.which(program) is None:
                continue
            tables = ["nat", "filter", "mangle"]
            if variant == "iptables-legacy":  # to look at a table there creates it
                tables = [each for each in tables if each in _legacy_tables(names_file)]
            for table in tables:
                saved = run([program, "-t", table], timeout_s=_TIMEOUT_S)
                if saved.code != 0:
                    continue  # rules that this program cannot read; none of kube-proxy's
                chains = parse_table(saved.stdout, table)
                found = tuple(
                    name for name in chains if is_chain(table, name, everything=everything)
                )
                # What refers to these from a chain that stays is a jump, and goes with them.
                if found:
                    what = f"{len(found)} chains of kube-proxy in {variant} {family} table {table}"
                    yield what, _removal(variant, family, table, found)


def _legacy_tables(names_file: str) -> list[str]:
    try:
        return Path("/proc/thread-self/net", names_file).read_text().split()
    except OSError:
        return []


def _removal(variant: str, family: str, table: str, chains: tuple[str, ...]) -> Callable[[], None]:
    return lambda: IptablesProgram(variant).remove(family, table, chains)


def _nft_tables() -> Iterator[Step]:
    if shutil.which("nft") is None:
        return
    listed = run(["nft", "list", "tables"], timeout_s=_TIMEOUT_S)
    for line in listed.stdout.splitlines():
        words = line.split()
        if words[:1] == ["table"] and words[1] in ("ip", "ip6") and words[2:] == [_NAME]:
            yield f"nftables table {words[1]} {_NAME}", _command("nft", "delete", *words)


def _link() -> Iterator[Step]:
    if Path("/proc/thread-self/net/dev").read_text().find(f"{KUBE_PROXY_LINK}:") >= 0:
        yield f"link {KUBE_PROXY_LINK}", _command("ip", "link", "del", KUBE_PROXY_LINK)


def _ipsets() -> Iterator[Step]:
    listed = run(["ipset", "list", "-name"], timeout_s=_TIMEOUT_S)
    found = [name for name in listed.stdout.split() if is_set(name)]
    if found:
        text = "".join(f"destroy {name}\n" for name in found)
        yield f"{len(found)} ipsets of kube-proxy", _command("ipset", "restore", stdin=text)


def _command(*words: str, stdin: str = "") -> Callable[[], None]:
    def execute() -> None:
        done = run(words, stdin, timeout_s=_TIMEOUT_S, writes=True)
        if done.code != 0:
            raise KernelError(f"{' '.join(words)}: {done.complaint}")

    return execute
