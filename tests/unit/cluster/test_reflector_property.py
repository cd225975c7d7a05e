"""Whatever the server and the network do: the cache ends equal, and nobody missed a change."""

import json
import random
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.decode import ObjectDecoder
from kube_router_py.cluster.objects import EndpointSlice, Pod, Service
from kube_router_py.cluster.reflector import Reflector, Timing

KINDS = (Service, EndpointSlice, Pod)
HASTY = Timing(
    retry_min_s=0.001,
    retry_first_s=0.002,
    retry_max_s=0.02,
    watch_min_s=1,
    watch_max_s=2,
    idle_s=3,
)


class Witness:
    """A subscriber that rebuilds the store from what it is told, and objects to impossible news."""

    def __init__(self, deleted: dict[str, set[str]]) -> None:
        self.mirror: dict[type, dict[str, Any]] = {kind: {} for kind in KINDS}
        self.told: set[tuple[type, str]] = set()
        self.complaints: list[str] = []
        self._deleted = deleted

    def notify(self, event: Event) -> None:
        self.told.add((event.kind, event.key))
        mirror = self.mirror[event.kind]
        if strip(mirror.get(event.key)) != strip(event.old):
            self.complaints.append(f"{event} does not start from what was told before")
        if strip(event.old) == strip(event.new):
            self.complaints.append(f"{event} changes nothing")
        if event.new is None:
            mirror.pop(event.key, None)
            if event.key not in self._deleted[event.kind.__name__]:
                self.complaints.append(f"{event.key} was removed, and never deleted on the server")
        else:
            mirror[event.key] = event.new


def change(api: Any, rng: random.Random) -> None:
    """One random operation on the server's objects or on its health."""
    draw = rng.random()
    kind = rng.choice(["Service", "EndpointSlice", "Pod"])
    keys = [k for k in api.objects[kind] if k != "default/kubernetes"]
    if draw < 0.06:
        api.disconnect()
    elif draw < 0.10:
        api.gone_in_stream = rng.random() < 0.5
        api.compact()
    elif draw < 0.30 and keys:
        api.delete(kind, rng.choice(keys))
    elif draw < 0.36 and keys:
        api.put(kind, rng.choice(keys), **BAD[kind])
    else:
        key = f"ns{rng.randrange(3)}/x{rng.randrange(12)}"
        api.put(kind, key, **GOOD[kind](rng))


GOOD: dict[str, Any] = {
    "Service": lambda r: {
        "spec": {"clusterIP": f"10.96.0.{r.randrange(2, 9)}", "ports": [{"port": 80}]}
    },
    "EndpointSlice": lambda r: {
        "metadata": {"labels": {"kubernetes.io/service-name": f"x{r.randrange(5)}"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [f"10.1.0.{r.randrange(9)}"]}],
        "ports": None,
    },
    "Pod": lambda r: {
        "spec": {"nodeName": f"node{r.randrange(3)}", "containers": None},
        "status": {"podIP": f"10.1.0.{r.randrange(20)}", "phase": "Running"},
    },
}
BAD: dict[str, Any] = {
    "Service": {"spec": {"ports": [{"port": "http"}]}},
    "EndpointSlice": {"endpoints": [{"addresses": [1]}]},
    "Pod": {"spec": {"nodeName": {"no": "string"}}},
}


def difference(api: Any, cache: Cache) -> str:
    """How cache and server differ; "" if they do not. Undecodable objects stand as they stood."""
    with api.changed:
        on_server = {kind: dict(api.objects[kind.__name__]) for kind in KINDS}
    bad = set()
    for kind, objects in on_server.items():
        decoder: ObjectDecoder[Any] = ObjectDecoder(kind)
        cached = {o.metadata.key: o for o in cache.list(kind)}
        for key, obj in objects.items():
            item = decoder.item(json.dumps(obj).encode())
            if item.problem:
                bad.add(item.problem)
                cached.pop(key, None)
            elif cached.pop(key, None) != item.object:
                return f"{kind.__name__} {key} differs"
        if cached:
            return f"{kind.__name__} {sorted(cached)} should be gone"
    if set(cache.problems()) != bad:
        return f"problems {cache.problems()} instead of {bad}"
    return ""


def index_errors(cache: Cache) -> list[str]:
    """Indexes compared with what the objects themselves say."""
    pods = cache.list(Pod)
    errors = [
        f"pods of {node}"
        for node in ("node0", "node1", "node2")
        if cache.pods_of_node(node) != {p.metadata.key for p in pods if p.spec.node_name == node}
    ]
    for i in range(20):
        ip = f"10.1.0.{i}"
        with_ip = {p.metadata.key for p in pods if p.status and p.status.pod_ip == ip}
        if cache.pods_of_ip(ip) != with_ip:
            errors.append(f"pods of {ip}")
    for i in range(10):
        ip = f"10.96.0.{i}"
        vips = {s.metadata.key for s in cache.list(Service) if s.spec.cluster_ip == ip}
        if cache.services_of_vip(ip) != vips:
            errors.append(f"services of {ip}")
    for ns in range(3):
        in_ns = {p.metadata.key for p in pods if p.metadata.namespace == f"ns{ns}"}
        if cache.pods_in_namespace(f"ns{ns}") != in_ns:
            errors.append(f"pods in ns{ns}")
        for i in range(5):
            slices = [
                s
                for s in cache.list(EndpointSlice)
                if s.metadata.namespace == f"ns{ns}"
                and s.metadata.label("kubernetes.io/service-name") == f"x{i}"
            ]
            wanted = tuple(sorted(slices, key=lambda s: s.metadata.name))
            if cache.slices_of(f"ns{ns}/x{i}") != wanted:
                errors.append(f"slices of ns{ns}/x{i}")
    return errors


@pytest.mark.parametrize("seed", range(6))
def test_cache_ends_equal_and_every_change_is_told(
    seed: int, api: Any, client: Any, until: Any, chaos_of: Any
) -> None:
    rng = random.Random(seed)
    api.chaos = chaos_of(seed + 1000)
    cache = Cache(KINDS)
    witness = Witness(api.deleted)
    cache.subscribe(KINDS, witness.notify)
    reflectors = [Reflector(client, cache, k, timing=HASTY, list_limit=5) for k in KINDS]
    for reflector in reflectors:
        reflector.start()
    try:
        for round_ in range(8):
            with api.changed:
                before = {k: dict(witness.mirror[k]) for k in KINDS}
                witness.told.clear()
            api.chaos.active = True
            for _ in range(25):
                change(api, rng)
                # Let the watches run now and then, so that both single events and batches occur.
                if rng.random() < 0.3:
                    seen = len(api.requests)
                    until(
                        lambda seen=seen: len(api.requests) > seen or not difference(api, cache),
                        "the reflectors to move",
                    )
            api.chaos.active = False
            until(lambda: not difference(api, cache), f"equality in round {round_}")
            after = {k: {o.metadata.key: o for o in cache.list(k)} for k in KINDS}
            changed = {
                (kind, key)
                for kind in KINDS
                for key in before[kind].keys() | after[kind].keys()
                if strip(before[kind].get(key)) != strip(after[kind].get(key))
            }
            assert changed <= witness.told
            assert not index_errors(cache)
            assert not witness.complaints
            for kind in KINDS:
                told = {k: strip(o) for k, o in witness.mirror[kind].items()}
                assert told == {k: strip(o) for k, o in after[kind].items()}
    finally:
        stopped = [reflector.stop(30) for reflector in reflectors]
    assert all(stopped)
    assert cache.is_synced()
    assert all(stats.errors and stats.relists > 1 for stats in cache.stats().values())


def strip(obj: Any) -> Any:
    """An object without its resourceVersion, which may change without anyone being told."""
    if obj is None:
        return None
    meta = msgspec.structs.replace(obj.metadata, resource_version="")
    return msgspec.structs.replace(obj, metadata=meta)
