"""The real ``ports_reading.KernelReading``: short-lived, for the thread that creates it."""

import errno
import ipaddress
import os
import shutil
import socket
from collections.abc import Sequence
from struct import Struct as Layout

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipset_text import parse_save
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.iptables_plan import same_rules
from kube_router_py.kernel.iptables_variant import is_legacy, legacy_tables, program_name
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.netlink import NETLINK_ROUTE, NetlinkSocket, attribute, attributes
from kube_router_py.kernel.ports import SetState
from kube_router_py.kernel.ports_reading import Tables, Way
from kube_router_py.kernel.program import run
from kube_router_py.kernel.rule_text import parse_table
from kube_router_py.kernel.sysctl import ProcSysctls
from kube_router_py.kernel.vip_messages import RTM_GETROUTE
from kube_router_py.proxy.model import VirtualServerKey, VirtualServerState

_TIMEOUT_S = 15.0
_TABLES = ("raw", "mangle", "nat", "filter", "security")
_IPTABLES = tuple((family, table) for family in ("ip", "ip6") for table in _TABLES)

# struct rtmsg (rtnetlink(7)): family, two prefix lengths, tos, table, protocol, scope, type; flags.
_ROUTE = Layout("=8BI")
_INDEX = Layout("=I")
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY = 1, 2, 3, 4, 5
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_REFUSED = {
    errno.ENETUNREACH: "the network is unreachable",
    errno.EHOSTUNREACH: "the host is unreachable",
    errno.EACCES: "a route prohibits it",
    errno.EINVAL: "a blackhole route, or no address for it",
    errno.ESRCH: "there is no route",
    errno.EXDEV: "reverse path filtering refuses the source on this link (rp_filter)",
}


class NodeReading:
    """See ``ports_reading.KernelReading``. ``variant`` is one of ``iptables_variant.VARIANTS``."""

    def __init__(self, variant: str, proc_sys: str = "/proc/sys") -> None:
        self.variant = variant
        self._sysctls = ProcSysctls(proc_sys)
        self._rules: dict[tuple[str, str], Tables] = {}
        self._sets: dict[str, SetState] | None = None
        self._ways: dict[tuple[str, str, str], Way] = {}
        self._servers: dict[VirtualServerKey, VirtualServerState | None] = {}
        self._nft: str | None = None
        self._iptables = IptablesProgram(variant)
        self._ipvs: NetlinkIpvs | None = None
        self._routes: NetlinkSocket | None = None

    def close(self) -> None:
        for each in (self._ipvs, self._routes):
            if each is not None:
                each.close()

    def variants(self) -> tuple[str, ...]:
        """The other one only where its program is there; see ``rules``."""
        other = "iptables-nft" if is_legacy(self.variant) else "iptables-legacy"
        return (self.variant, other) if shutil.which(f"{other}-save") else (self.variant,)

    def rules(self, variant: str, family: str) -> Tables:
        """One run of iptables-save. Of the legacy variant, a table that does not exist is not
        asked for: that would create it."""
        key = (variant, family)
        if key not in self._rules:
            self._rules[key] = self._read_rules(variant, family)
        return self._rules[key]

    def _read_rules(self, variant: str, family: str) -> Tables:
        if is_legacy(variant) and not legacy_tables(family):
            return Tables()
        command = f"{program_name(variant, family)}-save"
        done = run([command], timeout_s=_TIMEOUT_S)
        if done.code != 0:
            raise KernelError(f"{command}: {done.complaint}")
        return parse_tables(done.stdout)

    def same(
        self, family: str, table: str, chain: str, wanted: Sequence[str], standing: Sequence[str]
    ) -> bool:
        if same_rules(chain, wanted, standing):
            return True
        return self._iptables.same(family, table, chain, wanted, standing)

    def ipset(self, name: str) -> SetState | None:
        if self._sets is None:
            # All at once: of the sets of one flow each would cost a process.
            done = run(["ipset", "save"], timeout_s=_TIMEOUT_S)
            if done.code != 0:
                raise KernelError(f"ipset save: {done.complaint}")
            self._sets = parse_save(done.stdout, lambda found: True)
        return self._sets.get(name)

    def virtual_server(self, key: VirtualServerKey) -> VirtualServerState | None:
        if self._ipvs is None:
            self._ipvs = NetlinkIpvs()
        if key not in self._servers:
            self._servers[key] = self._ipvs.read_one(key)
        return self._servers[key]

    def way(self, destination: str, source: str = "", in_link: str = "") -> Way:
        key = (destination, source, in_link)
        if key not in self._ways:
            self._ways[key] = self._read_way(*key)
        return self._ways[key]

    def _read_way(self, destination: str, source: str, in_link: str) -> Way:
        if self._routes is None:
            self._routes = NetlinkSocket(NETLINK_ROUTE)
        to = ipaddress.ip_address(destination).packed
        family = socket.AF_INET if len(to) == 4 else socket.AF_INET6
        payload = attribute(_RTA_DST, to)
        lengths = [8 * len(to), 0]
        if source:
            payload += attribute(_RTA_SRC, ipaddress.ip_address(source).packed)
            lengths[1] = 8 * len(to)
        if in_link:
            try:
                index = socket.if_nametoindex(in_link)
            except OSError as error:
                raise KernelError(f"there is no link {in_link}", error.errno or 0) from error
            payload += attribute(_RTA_IIF, _INDEX.pack(index))
        header = _ROUTE.pack(family, *lengths, 0, 0, 0, 0, 0, 0)
        try:
            replies = self._routes.request(RTM_GETROUTE, header + payload)
        except KernelError as error:
            if error.errno in _REFUSED:
                return Way("none", refused=_REFUSED[error.errno])
            raise
        return _way(replies[0]) if replies else Way("none", refused="there is no route")

    def sysctl(self, name: str) -> str | None:
        return self._sysctls.read(name)

    def nft(self) -> str:
        """Without the tables that iptables keeps, where it can be asked itself."""
        if self._nft is None:
            if shutil.which("nft") is None:
                raise KernelError("nft(8) is not installed: tables of its own cannot be read")
            known = set(_IPTABLES) if shutil.which("iptables-nft-save") else set()
            found = [each.split() for each in _nft("list", "tables").splitlines()]
            self._nft = "".join(
                _nft("list", "table", *words[1:])
                for words in found
                if len(words) == 3 and words[0] == "table" and tuple(words[1:]) not in known
            )
        return self._nft


def _nft(*words: str) -> str:
    done = run(["nft", *words], timeout_s=_TIMEOUT_S)
    if done.code != 0:
        raise KernelError(f"nft {' '.join(words)}: {done.complaint}")
    return done.stdout


def parse_tables(text: str) -> Tables:
    """The whole output of iptables-save."""
    policies: dict[tuple[str, str], str] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, _, rest = line[1:].partition(" ")
            policy = rest.split(" ", 1)[0]
            if policy != "-":
                policies[table, name] = policy
    chains = {each: parse_table(text, each) for each in _TABLES}
    return Tables({name: found for name, found in chains.items() if found}, policies)


def _way(reply: bytes) -> Way:
    kind = _ROUTE.unpack_from(reply)[7]
    found = dict(attributes(reply, _ROUTE.size))
    link = ""
    if len(found.get(_RTA_OIF, b"")) == 4:
        index = int(_INDEX.unpack(found[_RTA_OIF])[0])
        try:
            link = socket.if_indextoname(index)
        except OSError:  # it has gone meanwhile
            link = str(index)
    gateway = found.get(_RTA_GATEWAY)
    text = str(ipaddress.ip_address(gateway)) if gateway else ""
    refused = os.strerror(errno.EHOSTUNREACH) if kind in (6, 7, 8) else ""
    return Way(_KINDS.get(kind, str(kind)), link, text, refused)
