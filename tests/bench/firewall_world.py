"""The firewall of one node of a synthetic cluster, in the kernel or on fakes, turned by hand."""

import json
import logging
import time
from itertools import count
from types import SimpleNamespace
from typing import Any

from synthetic_cluster import NODE, POLICIES_PER_NAMESPACE, namespace, pod, policy


class Cluster:
    """The cache of a cluster: 10 policies a namespace; ``local`` pods are on this node."""

    def __init__(self, pods: int, policies: int, local: int) -> None:
        logging.disable(logging.CRITICAL)
        from kube_router_py.cluster import objects
        from kube_router_py.cluster.cache import Cache
        from kube_router_py.cluster.reflector import Reflector
        from kube_router_py.firewall.controller import KINDS

        self.pods, self.local = pods, local
        self.namespaces = max(1, policies // POLICIES_PER_NAMESPACE)
        self.cache = Cache(KINDS)
        self._revisions = count(2)
        client: Any = SimpleNamespace()  # nothing is asked of it
        self._watches = {kind: Reflector(client, self.cache, kind)._apply for kind in KINDS}
        self._put(objects.Node, NODE)
        for number in range(self.namespaces):
            self._put(objects.Namespace, namespace(number))
        for number in range(pods):
            self._put(objects.Pod, self.pod(number))
        for number in range(policies):
            self._put(objects.NetworkPolicy, policy(number, self.namespaces))

    def _put(self, kind: type, value: dict[str, Any]) -> None:
        import msgspec

        self.cache.put(kind, msgspec.convert(value, kind))

    def pod(self, number: int, **labels: str) -> dict[str, Any]:
        return pod(number, self.namespaces, local=number < self.local, **labels)

    def line(self, verb: str, value: dict[str, Any]) -> bytes:
        """A line of a watch."""
        value["metadata"]["resourceVersion"] = str(next(self._revisions))
        return json.dumps({"type": verb, "object": value}).encode()

    def tell(self, kind: str, line: bytes) -> None:
        """What a reflector does with a line of its watch."""
        from kube_router_py.cluster import objects

        self._watches[getattr(objects, kind)](line)


class Node:
    """An agent's firewall. ``variant`` of iptables in a namespace of its own; ``""``: on fakes."""

    def __init__(self, cluster: Cluster, variant: str) -> None:
        from kube_router_py.firewall.controller import Firewall
        from kube_router_py.firewall.settings import FirewallOptions
        from kube_router_py.kernel.host import open_host

        def open_ports() -> Any:
            if variant:
                return open_host(iptables_variant=variant, needs_ipvs=False)
            return fake_ports()

        self.cluster = cluster
        self.dirty: set[Any] = set()
        self.firewall = Firewall(cluster.cache, FirewallOptions(), "node1", open_ports)
        self.firewall.subscribe(cluster.cache, SimpleNamespace(mark=self.dirty.update))  # type: ignore[arg-type]
        self.firewall.open()
        self.kernel_s = 0.0
        apply = self.firewall._applier.apply

        def timed(*arguments: Any, **options: Any) -> None:
            begun = time.perf_counter()
            apply(*arguments, **options)
            self.kernel_s = time.perf_counter() - begun

        self.firewall._applier.apply = timed  # type: ignore[method-assign]

    @property
    def writes(self) -> int:
        assert self.firewall.ports is not None
        return self.firewall.ports.writes

    def turn(self, *, full: bool = False) -> SimpleNamespace:
        keys = frozenset(self.dirty)
        self.dirty.clear()
        writes, begun = self.writes, time.perf_counter()
        outcome = self.firewall.reconcile(keys, full)
        wall = time.perf_counter() - begun
        assert not outcome.failed, outcome.problems
        return SimpleNamespace(
            wall=wall,
            kernel=self.kernel_s,
            compile=wall - self.kernel_s,
            writes=self.writes - writes,
        )

    def size(self) -> SimpleNamespace:
        desired = self.firewall._desired
        chains = desired.chains["inet"]
        specs = list(desired.sets.specs())
        return SimpleNamespace(
            chains=len(chains),
            rules=sum(map(len, chains.values())),
            sets=len(specs),
            entries=sum(len(desired.sets[spec]) for spec in specs),
        )


def fake_ports() -> Any:
    from kube_router_py.kernel import fake_host
    from kube_router_py.kernel.host import NoIpvs
    from kube_router_py.kernel.ports import HostPorts

    sets, rules = fake_host.FakeIpsets(), fake_host.FakeIptables()
    fake_host.connect(sets.kernel, rules.kernel)
    return HostPorts(NoIpvs(), fake_host.FakeLinks(), sets, rules, fake_host.FakeSysctls())
