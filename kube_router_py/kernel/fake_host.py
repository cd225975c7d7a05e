"""Stateful fakes of links, sets, rules and parameters, for tests and dry runs.

Each fake keeps its state in a *kernel* object that outlives it: two adapters on one such object
are an agent before and after its restart. The kernel objects refuse what the kernel refuses.
"""

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, field, structs

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipset_text import canonical_entries
from kube_router_py.kernel.iptables_plan import Plan, plan_ensure, plan_remove
from kube_router_py.kernel.ports import (
    BridgePort,
    IpsetSpec,
    NodeAddress,
    TableRules,
    VipFailure,
)
from kube_router_py.kernel.rule_text import canonical, target
from kube_router_py.kernel.sysctl import canonical_value, parameter_path
from kube_router_py.kernel.vip_state import Standing
from kube_router_py.proxy.model import Vip

LOOPBACK = (
    NodeAddress(socket.AF_INET, bytes((127, 0, 0, 1)), 8, "lo"),
    NodeAddress(socket.AF_INET6, bytes(15) + b"\1", 128, "lo"),
)

_BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
_VERDICTS = ("ACCEPT", "DROP", "RETURN", "REJECT", "LOG", "NFLOG")
_EXTENSIONS = ("MARK", "CONNMARK", "TCPMSS", "MASQUERADE", "SNAT", "DNAT")
_TARGETS = (*_VERDICTS, *_EXTENSIONS)


class FakeLinkKernel(Struct):
    """Links of one fake namespace. ``link`` is None (no VIP link), ``down`` or ``up``."""

    link: str | None = None
    vips: dict[Vip, Standing] = field(default_factory=dict)
    addresses: list[NodeAddress] = field(default_factory=lambda: list(LOOPBACK))
    bridge_ports: list[BridgePort] = field(default_factory=list)

    def set_down(self) -> None:
        """Take the VIP link down: IPv6 loses addresses and routes; IPv4 local routes survive."""
        self.link = "down"
        self.vips = {
            vip: standing for vip, standing in self.vips.items() if vip.family == socket.AF_INET
        }

    def set_up(self) -> None:
        """Set the VIP link up, creating it where needed: addresses get their routes again."""
        self.link = "up"
        self.vips = {
            vip: structs.replace(standing, kernel_route=standing.address)
            for vip, standing in self.vips.items()
        }


class FakeLinks:
    """A stateful ``ports.Links``."""

    def __init__(self, mode: str = "route", kernel: FakeLinkKernel | None = None) -> None:
        self.writes = 0
        self.closed = False
        self.kernel = kernel or FakeLinkKernel()
        self._mode = mode

    def ensure_vip_link(self) -> None:
        if self.kernel.link != "up":
            self.writes += 1 if self.kernel.link else 2
            self.kernel.set_up()

    def read_vips(self) -> dict[Vip, bytes]:
        vips = self.kernel.vips
        return {vip: standing.value(vip, self._mode) for vip, standing in vips.items()}

    def apply_vips(self, put: Mapping[Vip, bytes], remove: Iterable[Vip]) -> list[VipFailure]:
        remove = [vip for vip in remove if vip not in put]
        if (put or remove) and self.kernel.link is None:
            raise KernelError("there is no VIP link", errno.ENODEV)
        failures: list[VipFailure] = []
        local = {(each.family, each.address) for each in self.kernel.addresses}
        for vip, source in put.items():
            self.writes += 1
            if self.kernel.link != "up":
                failures.append(VipFailure(vip, errno.ENETDOWN, "the VIP link is down"))
            elif source and (vip.family, source) not in local and source != vip.address:
                failures.append(VipFailure(vip, errno.EINVAL, "no such preferred source"))
            elif self._mode == "route":
                self.kernel.vips[vip] = Standing(source=source)
            else:
                self.kernel.vips[vip] = Standing(True, source or vip.address, not source)
        for vip in remove:
            self.writes += self.kernel.vips.pop(vip, None) is not None
        return failures

    def node_addresses(self) -> tuple[NodeAddress, ...]:
        return tuple(sorted(self.kernel.addresses))

    def bridge_ports(self) -> tuple[BridgePort, ...]:
        return tuple(sorted(self.kernel.bridge_ports))

    def remove_vip_link(self) -> None:
        if self.kernel.link is not None:
            self.writes += 1
            self.kernel.link = None
            self.kernel.vips.clear()

    def close(self) -> None:
        self.closed = True


class FakeIpsetKernel(Struct):
    """Sets of one fake namespace; ``in_use`` names those that a rule refers to."""

    sets: dict[str, tuple[IpsetSpec, frozenset[str]]] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)


class FakeIpsets:
    """A stateful ``ports.Ipsets``."""

    def __init__(self, kernel: FakeIpsetKernel | None = None) -> None:
        self.writes = 0
        self.closed = False
        self.kernel = kernel or FakeIpsetKernel()

    def read(self, name: str) -> frozenset[str] | None:
        found = self.kernel.sets.get(name)
        return None if found is None else found[1]

    def ensure(self, spec: IpsetSpec, entries: frozenset[str]) -> int:
        if len(spec.name.encode()) > 31:
            raise KernelError(f"ipset {spec.name}: name longer than 31 bytes", errno.ENAMETOOLONG)
        wanted = canonical_entries(spec.type, entries)
        found = self.kernel.sets.get(spec.name)
        if found is not None and found[0] != spec and spec.name in self.kernel.in_use:
            raise KernelError(f"ipset {spec.name} is of another type and in use", errno.EBUSY)
        is_new = found is None or found[0] != spec
        changes = len(wanted ^ (frozenset() if found is None or is_new else found[1])) + is_new
        self.writes += changes
        self.kernel.sets[spec.name] = (spec, wanted)
        return changes

    def change(self, spec: IpsetSpec, add: frozenset[str], remove: frozenset[str]) -> int:
        added = canonical_entries(spec.type, add)
        removed = canonical_entries(spec.type, remove) - added
        if not added and not removed:
            return 0
        self.writes += len(added) + len(removed)
        if spec.name not in self.kernel.sets:
            raise KernelError(f"ipset {spec.name}: no such set", errno.ENOENT)
        found, standing = self.kernel.sets[spec.name]
        self.kernel.sets[spec.name] = (found, (standing | added) - removed)
        return len(added) + len(removed)

    def destroy(self, names: Iterable[str]) -> None:
        refused: list[str] = []
        for name in names:
            if name not in self.kernel.sets:
                continue
            self.writes += 1
            if name in self.kernel.in_use:
                refused.append(name)
            else:
                del self.kernel.sets[name]
        if refused:
            raise KernelError(f"ipset destroy: {', '.join(refused)}: in use", errno.EBUSY)

    def close(self) -> None:
        self.closed = True


class FakeIptablesKernel(Struct):
    """Rules of one fake namespace: {(family, table): {chain: rules}}."""

    tables: dict[tuple[str, str], dict[str, list[str]]] = field(default_factory=dict)

    def chains(self, family: str, table: str) -> dict[str, list[str]]:
        """The chains of a table, with the built-in ones. The caller may edit them."""
        built_in = _BUILT_IN[table]
        return self.tables.setdefault((family, table), {name: [] for name in built_in})

    def restore(self, family: str, table: str, lines: Sequence[str]) -> None:
        """Carry out the lines between ``*table`` and ``COMMIT``, all or none."""
        chains = {name: list(rules) for name, rules in self.chains(family, table).items()}
        for line in lines:
            _restore_line(chains, table, line)
        for name, rules in chains.items():
            for rule in rules:
                goal = target(canonical(rule))
                if goal and goal not in chains and goal not in _TARGETS:
                    raise KernelError(f"-A {name} {rule}: no chain {goal}")
        self.tables[family, table] = chains


def _restore_line(chains: dict[str, list[str]], table: str, line: str) -> None:
    if line.startswith(":"):
        chains[line[1:].split(" ", 1)[0]] = []
        return
    verb, chain, *rest = line.split(" ", 2)
    rule = rest[0] if rest else ""
    if chain not in chains:
        raise KernelError(f"{line}: no chain {chain}")
    rules = chains[chain]
    if verb == "-A":
        rules.append(rule)
    elif verb == "-I":
        number, _, rule = rule.partition(" ")
        rules.insert(int(number) - 1, rule)
    elif verb == "-D":
        forms = [canonical(standing) for standing in rules]
        if canonical(rule) not in forms:
            raise KernelError(f"{line}: no such rule")
        del rules[forms.index(canonical(rule))]
    elif verb == "-X":
        used = any(target(canonical(each)) == chain for other in chains.values() for each in other)
        if rules or used or chain in _BUILT_IN[table]:
            raise KernelError(f"{line}: chain is in use")
        del chains[chain]
    else:
        raise KernelError(f"{line}: unknown command")


class FakeIptables:
    """A stateful ``ports.Iptables``; ``knows_random_fully`` is its answer to that question."""

    def __init__(
        self, kernel: FakeIptablesKernel | None = None, *, knows_random_fully: bool = True
    ) -> None:
        self.writes = 0
        self.closed = False
        self.kernel = kernel or FakeIptablesKernel()
        self._random_fully = knows_random_fully

    def ensure(self, family: str, table: str, rules: TableRules) -> tuple[str, ...]:
        return self._apply(family, table, plan_ensure(self.kernel.chains(family, table), rules))

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        self._apply(family, table, plan_remove(self.kernel.chains(family, table), chains))

    def random_fully(self) -> bool:
        return self._random_fully

    def close(self) -> None:
        self.closed = True

    def _apply(self, family: str, table: str, plan: Plan) -> tuple[str, ...]:
        self.writes += len(plan.changes)
        if plan.lines:
            self.kernel.restore(family, table, plan.lines)
        return plan.changes


class FakeSysctls:
    """A stateful ``ports.Sysctls``: knows the parameters it was given, refuses the others.

    Those in ``read_only`` cannot be written.
    """

    def __init__(
        self, values: Mapping[str, str] | None = None, read_only: Iterable[str] = ()
    ) -> None:
        self.writes = 0
        self.values = {parameter_path(name): value for name, value in (values or {}).items()}
        self._read_only = frozenset(map(parameter_path, read_only))

    def read(self, name: str) -> str | None:
        value = self.values.get(parameter_path(name))
        return None if value is None else canonical_value(value)

    def write(self, name: str, value: str) -> None:
        path, wanted = parameter_path(name), canonical_value(value)
        if self.read(name) == wanted:
            return
        if path not in self.values:
            raise KernelError(f"cannot set the kernel parameter {name}: no such", errno.ENOENT)
        if path in self._read_only:
            raise KernelError(f"cannot set the kernel parameter {name}: read-only", errno.EROFS)
        self.writes += 1
        self.values[path] = wanted
