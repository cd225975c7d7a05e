"""The firewall as the agent runs it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kube_router_py.adapters import Host
from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.firewall.controller import KINDS, POOLS, Firewall
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.kernel.ports import HostPorts, Observe
from kube_router_py.loop import Loop, Turn
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook

if TYPE_CHECKING:
    from kube_router_py.observe.policy_counters import PolicyCounters

# A new pod waits for its policies: little more than what one commit takes.
_MIN_INTERVAL_S = 0.02


class FirewallPart:
    """A part of the agent (see ``part.Part``). Without ``book`` only flags say which addresses load
    balancers may give."""

    kinds: tuple[type, ...] = KINDS
    reads: tuple[type, ...] = KINDS
    reflectors: tuple[Reflector[Any], ...] = ()

    def __init__(
        self,
        options: Options,
        cache: Cache,
        node: str,
        ports: Callable[[], HostPorts],
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
        on_settled: Callable[[str], None],
        book: PoolBook | None = None,
    ) -> None:
        self._host = Host(ports)
        self._counters: PolicyCounters | None = None
        self._firewall = Firewall(
            cache,
            firewall_options(options),
            node,
            self._host.open,
            on_settled,
            pools=lambda: book.pools if book is not None else AddressPools(),
        )
        self.loop = Loop(
            self._firewall,
            ready=lambda: cache.is_synced(KINDS) and (book is None or book.is_known),
            resync_interval_s=options.iptables_sync_period,
            min_interval_s=_MIN_INTERVAL_S,
            on_turn=on_turn,
            on_dead=on_dead,
        )
        self._firewall.subscribe(cache, self.loop)
        if book is not None:
            book.subscribe(lambda: self.loop.mark((POOLS,)))

    def observe(self, observe: Observe) -> None:
        """Have it told how long things take."""
        self._host.observe = self._firewall.observe = observe

    def counters(self) -> bytes:
        """What policies admitted and refused, in Prometheus' text format."""
        if self._counters is None:
            from kube_router_py.kernel.rule_counters import read_packets
            from kube_router_py.observe.policy_counters import PolicyCounters

            def read(family: str, chains: Sequence[str]) -> Mapping[str, Sequence[int]]:
                ports = self._firewall.ports
                return read_packets(ports.iptables.variant, family, chains) if ports else {}

            self._counters = PolicyCounters(self._firewall.counted, read)
        return self._counters.text()

    def start(self) -> None:
        """Nothing runs beside the loop."""

    def before_loops_stop(self) -> None:
        """Nothing to end first."""

    def stop(self) -> None:
        """Nothing ran beside the loop."""

    def numbers(self) -> dict[str, float]:
        return self._firewall.numbers

    def writes(self) -> dict[str, int]:
        return self._host.writes()

    def status(self) -> dict[str, Any]:
        numbers = self._firewall.numbers
        return {
            "policy_chains": int(numbers["controller_policy_chains"]),
            "policy_sets": int(numbers["controller_policy_ipsets"]),
            "audited_pods": int(numbers["firewall_audited_pods"]),
            "repaired": int(numbers["controller_policy_drift_total"]),
            "writes": self.writes(),
        }
