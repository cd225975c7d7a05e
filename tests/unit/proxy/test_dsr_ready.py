"""What nodes tell each other: the annotation's text, and Leases written by a thread."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.objects import Lease, Node, ObjectMeta, Service
from kube_router_py.errors import ApiError
from kube_router_py.proxy.dsr import DSR_ANNOTATION
from kube_router_py.proxy.dsr_ready import (
    ANNOTATION,
    MOST_BYTES,
    LeaseReady,
    NobodyReady,
    read_ready,
    write_ready,
)

_DEADLINE_S = 60.0
VIP = "203.0.113.10"

# --- the text -------------------------------------------------------------------------------------


UIDS = st.uuids().map(str)
VIPS = st.lists(st.ip_addresses().map(str), min_size=1, max_size=8, unique=True)


@given(st.dictionaries(UIDS, VIPS, max_size=20))
def test_what_is_written_is_read(ready: dict[str, list[str]]) -> None:
    assert read_ready(write_ready(ready)) == {uid: frozenset(vips) for uid, vips in ready.items()}


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(uid and not uid.isspace() for uid in read_ready(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("\n\n \n", {}),
        ("u", {"u": frozenset()}),
        (f"u {VIP}\n\nv  {VIP}  2001:db8::1 ", {"u": {VIP}, "v": {VIP, "2001:db8::1"}}),
        (f"u {VIP}\nu 192.0.2.1", {"u": {"192.0.2.1"}}),
    ],
)
def test_lines(text: str, found: dict[str, Any]) -> None:
    assert read_ready(text) == found


def test_pods_that_answer_for_nothing_are_not_written() -> None:
    assert write_ready({"a": [], "b": [VIP]}) == f"b {VIP}"


def test_what_does_not_fit_is_left_out_by_whole_lines() -> None:
    ready = {f"{number:036}": [VIP] for number in range(10_000)}
    text = write_ready(ready)
    assert MOST_BYTES - 100 < len(text) <= MOST_BYTES
    assert set(read_ready(text).values()) == {frozenset({VIP})}


# --- Leases ---------------------------------------------------------------------------------------


class Server:
    """The API server as far as Leases go: what is written comes back through the watch."""

    def __init__(self, leases: Cache) -> None:
        self._leases = leases
        self.exists = False
        self.refusals: list[ApiError] = []
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.changed = threading.Condition()

    def patch(self, path: str, body: Any) -> bytes:
        return self._do("PATCH", path, path.rpartition("/")[2], body, must_exist=True)

    def post(self, path: str, body: Any) -> bytes:
        return self._do("POST", path, body["metadata"]["name"], body, must_exist=False)

    def _do(self, verb: str, path: str, name: str, body: Any, *, must_exist: bool) -> bytes:
        with self.changed:
            self.calls.append((verb, path))
            self.changed.notify_all()
            if self.refusals:
                raise self.refusals.pop(0)
            if must_exist and not self.exists:
                raise RefusedError("leases not found", 404, "NotFound", 0.0)
            self.exists = True
            self.bodies.append(body)
            metadata = {**body["metadata"], "name": name, "namespace": "kube-system"}
            self._leases.put(Lease, msgspec.convert({"metadata": metadata}, Lease))
        return b""

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, _DEADLINE_S), self.calls


class World:
    def __init__(self) -> None:
        self.cache = Cache((Service, Node))
        self.leases = Cache((Lease,))
        self.server = Server(self.leases)
        self.now = 100.0
        self.ready = self.agent()

    def agent(self) -> LeaseReady:
        client: Any = self.server
        return LeaseReady(
            self.cache, self.leases, client, "node1", "kube-system", clock=lambda: self.now
        )

    def told(self, node: str = "node1") -> str | None:
        lease = self.leases.get(Lease, f"kube-system/kube-router-py-{node}")
        return None if lease is None else lease.metadata.annotation(ANNOTATION)


@pytest.fixture
def world() -> Iterator[World]:
    found = World()
    yield found
    found.ready.stop(_DEADLINE_S)


def lease(node: str, text: str | None) -> Lease:
    annotations = None if text is None else {ANNOTATION: text}
    return Lease(ObjectMeta(f"kube-router-py-{node}", "kube-system", annotations=annotations))


def test_only_what_the_pods_own_node_says_counts(world: World) -> None:
    world.leases.replace(Lease, [lease("node2", f"u {VIP}"), lease("node3", None)], "1")
    assert world.ready.elsewhere("node2", "u", VIP)
    assert not world.ready.elsewhere("node2", "u", "203.0.113.11")
    assert not world.ready.elsewhere("node2", "v", VIP)
    assert not world.ready.elsewhere("node3", "u", VIP)
    assert not world.ready.elsewhere("node4", "u", VIP)
    assert not world.ready.elsewhere("", "u", VIP)
    world.leases.delete(Lease, "kube-system/kube-router-py-node2")  # gone with its Node
    assert not world.ready.elsewhere("node2", "u", VIP)


def test_nothing_is_asked_of_the_server_while_there_is_nothing_to_tell(world: World) -> None:
    world.leases.replace(Lease, [], "1")
    world.ready.publish({})
    world.ready.publish({"a": []}, check=True)
    assert "dsr-ready" not in {each.name for each in threading.enumerate()}
    assert world.server.calls == []


def test_the_first_word_makes_the_lease_and_later_ones_change_it(world: World) -> None:
    world.leases.replace(Lease, [], "1")
    world.cache.put(Node, Node(ObjectMeta("node1", uid="uid-of-node1")))
    world.ready.publish({"u": [VIP]})
    world.server.wait(lambda: world.told() == f"u {VIP}")
    (body,) = world.server.bodies
    assert body["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "uid-of-node1"}
    ]
    assert body["metadata"]["labels"] == {"app.kubernetes.io/name": "kube-router-py"}
    world.ready.publish({"u": [VIP], "v": [VIP]})
    world.server.wait(lambda: world.told() == f"u {VIP}\nv {VIP}")
    world.ready.publish({})
    world.server.wait(lambda: world.told() == "")
    base = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    own = f"{base}/kube-router-py-node1"
    assert world.server.calls == [("PATCH", own), ("POST", base), ("PATCH", own), ("PATCH", own)]


def test_a_restart_says_nothing_new(world: World) -> None:
    world.leases.replace(Lease, [lease("node1", f"u {VIP}")], "1")
    assert world.ready.formerly() == {"u"}
    world.ready.publish({"u": [VIP]})
    world.ready.publish({"u": [VIP]}, check=True)
    assert world.server.calls == []


def test_what_others_have_changed_is_put_right_when_it_is_looked_at(world: World) -> None:
    world.server.exists = True
    world.leases.replace(Lease, [lease("node1", f"u {VIP}")], "1")
    world.ready.publish({"u": [VIP]})
    world.leases.put(Lease, lease("node1", "nonsense"))
    world.ready.publish({"u": [VIP]}, check=True)
    world.server.wait(lambda: world.told() == f"u {VIP}")


def test_a_refusal_is_tried_again_with_what_is_true_by_then(world: World) -> None:
    world.leases.replace(Lease, [], "1")
    world.server.exists = True
    world.server.refusals = [
        RefusedError("forbidden", 403, "Forbidden", 0.0),
        ApiError("no route"),
    ]
    world.ready.publish({"u": [VIP]})
    world.server.wait(lambda: len(world.server.calls) >= 1)
    world.ready.publish({"v": [VIP]})
    world.server.wait(lambda: world.told() == f"v {VIP}")


def test_stopping_does_not_wait_for_a_pause(world: World) -> None:
    world.server.refusals = [ApiError("no route")] * 100
    world.leases.replace(Lease, [], "1")
    world.ready.publish({"u": [VIP]})
    world.server.wait(lambda: len(world.server.calls) >= 4)  # the pause is 8 s and more by now
    before = time.monotonic()
    world.ready.stop(_DEADLINE_S)
    assert "dsr-ready" not in {each.name for each in threading.enumerate()}
    assert time.monotonic() - before < _DEADLINE_S


# --- whether to wait for them ---------------------------------------------------------------------


def test_without_a_service_that_asks_nobody_waits_for_leases(world: World) -> None:
    world.cache.put(Service, Service(ObjectMeta("web", "default")))
    assert world.ready.is_known()


def test_a_start_waits_for_leases_and_not_for_ever(world: World) -> None:
    annotations = {DSR_ANNOTATION: "tunnel"}
    world.cache.put(Service, Service(ObjectMeta("web", "default", annotations=annotations)))
    assert not world.ready.is_known()
    world.now += 29.0
    assert not world.ready.is_known()
    world.now += 1.5
    assert world.ready.is_known()
    other = world.agent()
    assert not other.is_known()
    world.leases.replace(Lease, [], "1")
    assert other.is_known()


def test_nobody() -> None:
    nobody = NobodyReady()
    nobody.publish({"u": [VIP]})
    assert not nobody.elsewhere("node2", "u", VIP)
    assert nobody.formerly() == frozenset()
