"""A ``ports_reading.KernelReading`` of fake kernels, for tests."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_ipset import FakeIpsetKernel
from kube_router_py.kernel.fake_iptables import FakeIptablesKernel
from kube_router_py.kernel.iptables_plan import same_rules
from kube_router_py.kernel.ports import SetState
from kube_router_py.kernel.ports_reading import Tables, Way
from kube_router_py.proxy.model import IpvsTable, VirtualServerKey, VirtualServerState

_MAXELEM = 65536


class FakeReading(Struct):
    """Reads fakes as they are now. ``others``: tables of the other variant, by family; ``ways`` by
    destination (an address of none of them leaves by ``eth0``). What is in ``broken`` (``ipset``,
    ``nft``, ``rules``, ``ipvs``) cannot be read."""

    rules_kernel: FakeIptablesKernel
    sets_kernel: FakeIpsetKernel
    ipvs: IpvsTable = field(default_factory=dict)
    others: Mapping[str, Tables] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)
    ruleset: str = ""
    policies: dict[tuple[str, str], str] = field(default_factory=dict)
    sysctls: dict[str, str] = field(
        default_factory=lambda: {
            "net/bridge/bridge-nf-call-iptables": "1",
            "net/bridge/bridge-nf-call-ip6tables": "1",
        }
    )
    broken: set[str] = field(default_factory=set)
    variant: str = "iptables-nft"
    closed: bool = False

    def _enter(self, what: str) -> None:
        if what in self.broken:
            raise KernelError(f"{what}: broken by the test")

    def variants(self) -> tuple[str, ...]:
        return (self.variant, "iptables-legacy")

    def rules(self, variant: str, family: str) -> Tables:
        self._enter("rules")
        if variant != self.variant:
            return self.others.get(family, Tables())
        tables = {
            table: {name: tuple(rules) for name, rules in chains.items()}
            for (of, table), chains in self.rules_kernel.tables.items()
            if of == family
        }
        return Tables(tables, self.policies)

    def same(
        self, family: str, table: str, chain: str, wanted: Sequence[str], standing: Sequence[str]
    ) -> bool:
        del family, table
        return same_rules(chain, wanted, standing)

    def ipset(self, name: str) -> SetState | None:
        self._enter("ipset")
        found = self.sets_kernel.sets.get(name)
        return None if found is None else SetState(found[0], _MAXELEM, found[1])

    def virtual_server(self, key: VirtualServerKey) -> VirtualServerState | None:
        self._enter("ipvs")
        return self.ipvs.get(key)

    def way(self, destination: str, source: str = "", in_link: str = "") -> Way:
        self._enter("way")
        if in_link and self.ways.get(source, Way("unicast")).kind == "local":
            # What comes in with an address of the node itself is no packet of anybody's.
            return Way("blackhole", refused="a blackhole route, or no address for it")
        return self.ways.get(destination, Way("unicast", "eth0"))

    def sysctl(self, name: str) -> str | None:
        return self.sysctls.get(name)

    def nft(self) -> str:
        self._enter("nft")
        return self.ruleset

    def close(self) -> None:
        self.closed = True
