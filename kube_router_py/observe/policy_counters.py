"""What policies admitted and refused on this node, from the counters of the rules.

Read when somebody asks for the metrics, in that thread, and not more often than every 15 s: with
the nft variant of iptables the kernel tells no less than the whole table.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kube_router_py.errors import KernelError
from kube_router_py.firewall.counted import CountedChain
from kube_router_py.observe.exposition import family, single
from kube_router_py.observe.growing import SERIES_MAX, Increases, Totals

_log = logging.getLogger(__name__)

_FRESH_S = 15.0

ReadPackets = Callable[[str, Sequence[str]], Mapping[str, Sequence[int]]]
"""Packets of each rule of the chains of a family, by chain. Raises KernelError."""

Hit = tuple[str, str, str]
"""Namespace and name of a policy, direction."""
Drop = tuple[str, str, str, str]
"""Namespace and name of a pod, direction, verdict."""


class PolicyCounters:
    """``chains`` tells the chains of this node's pods as they should stand, for any thread."""

    def __init__(
        self,
        chains: Callable[[], Iterable[CountedChain]],
        read: ReadPackets,
        clock: Callable[[], float] = time.monotonic,
        limit: int = SERIES_MAX,
    ) -> None:
        self._chains, self._read, self._clock = chains, read, clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._increases: Increases[tuple[str, str]] = Increases()
        self._hits: Totals[Hit] = Totals(lambda each: ("", "other", each[2]), limit)
        self._drops: Totals[Drop] = Totals(lambda each: ("", "other", each[2], each[3]), limit)
        self._complaint = ""

    def text(self) -> bytes:
        """The metrics in Prometheus' text format; where the kernel cannot be asked, as before."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                self._read_at = self._clock()
                self._refresh()
            return "".join(self._lines()).encode()

    def _refresh(self) -> None:
        chains = {(each.family, each.name): each for each in self._chains()}
        self._need(chains.values())
        if not chains:
            # None, or the firewall is just being started: what stands then goes on counting.
            return
        found: dict[tuple[str, str], Sequence[int]] = {}
        complaints: list[str] = []
        for where in sorted({each.family for each in chains.values()}):
            names = [name for a_family, name in chains if a_family == where]
            try:
                packets = self._read(where, names)
            except KernelError as error:  # the other family is counted nevertheless
                complaints.append(str(error))
                if error.errno == errno.ETIMEDOUT:
                    break  # a scrape waits: not twice
                continue
            for name, values in packets.items():
                # A chain that has just been rewritten is not what it is taken for: next time.
                if (where, name) in chains and len(values) == chains[where, name].rules:
                    found[where, name] = values
        self._complain("; ".join(complaints))
        for place, grown in self._increases.take(found, chains.keys()).items():
            self._add(chains[place], grown)

    def _complain(self, reason: str) -> None:
        if reason and reason != self._complaint:
            _log.warning("hits and drops of policies not read reason=%r", reason)
        self._complaint = reason

    def _need(self, chains: Iterable[CountedChain]) -> None:
        now_s = self._clock()
        hits: set[Hit] = set()
        drops: set[Drop] = set()
        for each in chains:
            hits.update(_hit(key, each.direction) for key in each.policies.values())
            drops.add(_drop(each))
        self._hits.need(hits, now_s)
        self._drops.need(drops, now_s)

    def _add(self, chain: CountedChain, grown: Sequence[int]) -> None:
        for name, packets in chain.counters.admitted(grown).items():
            if name in chain.policies and packets:
                self._hits.add(_hit(chain.policies[name], chain.direction), packets)
        if refused := grown[chain.counters.refused]:
            self._drops.add(_drop(chain), refused)

    def _lines(self) -> Iterator[str]:
        yield from family("policy_hits_total", sorted(self._hits.values().items()))
        yield from family("policy_drops_total", sorted(self._drops.values().items()))
        yield single("policy_series_dropped", self._hits.left_out + self._drops.left_out)


def _hit(policy: str, direction: str) -> Hit:
    namespace, _, name = policy.partition("/")
    return namespace, name, direction


def _drop(chain: CountedChain) -> Drop:
    namespace, _, name = chain.pod.partition("/")
    verdict = "audited" if chain.counters.is_audited else "refused"
    return namespace, name, chain.direction, verdict
