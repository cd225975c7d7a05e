"""The status of Services is written by compare-and-swap, within a term, by a few threads."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kube_router_py.cluster.client import FencedError, RefusedError
from kube_router_py.cluster.objects import LoadBalancerIngress, ObjectMeta, PortStatus, Service
from kube_router_py.errors import ApiError
from kube_router_py.loadbalancer.status_writer import (
    Done,
    Result,
    StatusWriter,
    Write,
    list_services,
)

DEADLINE_S = 60.0
INGRESS = (
    LoadBalancerIngress(
        ip="192.0.2.1", ip_mode="VIP", ports=(PortStatus(port=80, protocol="TCP"),)
    ),
)


def service(name: str = "web", revision: str = "5") -> Service:
    return Service(
        metadata=ObjectMeta(
            name=name, namespace="default", uid=f"uid-{name}", resource_version=revision
        )
    )


def on_the_wire(name: str, revision: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "resourceVersion": revision,
        }
    }


def refused(status: int) -> Callable[[], bytes]:
    def answer() -> bytes:
        raise RefusedError(f"HTTP {status}", status, "", 0)

    return answer


class Server:
    """Answers patches as a test says, and knows what a list of one name finds."""

    def __init__(self) -> None:
        self.patches: list[tuple[str, Any, float | None]] = []
        self.lists: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[], bytes] = lambda: json.dumps(on_the_wire("web", "6")).encode()
        self.found: list[Any] = []
        self.stands = lambda: None  # what happens while the connection is made

    def patch(
        self, path: str, body: Any, *, timeout_s: float | None = None, fence: Any = None
    ) -> bytes:
        self.stands()
        if not fence():
            raise FencedError("too late")
        self.patches.append((path, body, timeout_s))
        return self.answer()

    def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
        self.lists.append((path, dict(query or {})))
        metadata = {"resourceVersion": "9"}
        return json.dumps(
            {"kind": "ServiceList", "metadata": metadata, "items": self.found}
        ).encode()


class Bench:
    """A writer, and what it has done."""

    def __init__(self, server: Any, threads: int = 4) -> None:
        self.term = 1
        self.ended = threading.Semaphore(0)
        self.writer = StatusWriter(
            server, lambda term: term == self.term, 3.0, self.ended.release, threads
        )

    def do(self, write: Write) -> Done:
        self.writer.put(write)
        assert self.ended.acquire(timeout=DEADLINE_S)
        (done,) = self.writer.take()
        return done


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_write_names_the_very_object_that_it_was_decided_on(server: Server) -> None:
    bench = Bench(server)
    done = bench.do(Write(1, service(), INGRESS))
    assert done.result is Result.WRITTEN
    assert done.service is not None
    assert done.service.metadata.resource_version == "6"
    ((path, body, timeout_s),) = server.patches
    assert path == "/api/v1/namespaces/default/services/web/status"
    assert timeout_s == 3.0
    assert body == {
        "metadata": {"uid": "uid-web", "resourceVersion": "5"},
        "status": {"loadBalancer": {"ingress": INGRESS}},
    }
    assert bench.writer.results()[Result.WRITTEN] == 1


def test_no_address_is_no_list_at_all(server: Server) -> None:
    Bench(server).do(Write(1, service(), ()))
    assert server.patches[0][1]["status"] == {"loadBalancer": {"ingress": None}}


@pytest.mark.parametrize("status", [404, 409])
def test_after_a_conflict_the_present_service_is_looked_up_by_a_list(
    server: Server, status: int
) -> None:
    bench = Bench(server)
    server.answer = refused(status)
    server.found = [on_the_wire("web", "8")]
    done = bench.do(Write(1, service(), INGRESS))
    assert done.result is Result.CHANGED
    assert done.service is not None
    assert done.service.metadata.resource_version == "8"
    query = {"fieldSelector": "metadata.name=web"}
    assert server.lists == [("/api/v1/namespaces/default/services", query)]
    server.found = []
    assert bench.do(Write(1, service(), INGRESS)).result is Result.GONE


def test_whatever_else_is_refused_fails_and_says_why(server: Server) -> None:
    bench = Bench(server)
    for status in (400, 403, 422, 429):
        server.answer = refused(status)
        done = bench.do(Write(1, service(), INGRESS))
        assert (done.result, done.why) == (Result.FAILED, f"HTTP {status}")


def test_without_a_word_from_etcd_it_is_not_known_whether_it_was_written(server: Server) -> None:
    bench = Bench(server)
    server.answer = refused(504)
    assert bench.do(Write(1, service(), INGRESS)).result is Result.UNKNOWN

    def silent() -> bytes:
        raise ApiError("no API server answers")

    server.answer = silent
    assert bench.do(Write(1, service(), INGRESS)).result is Result.UNKNOWN
    server.answer = refused(409)  # perhaps because of this very write, the time before
    server.found = [{"metadata": {"name": "web", "namespace": "default"}, "spec": 5}]
    assert bench.do(Write(1, service(), INGRESS)).result is Result.UNKNOWN
    server.answer = lambda: b"<html>"
    done = bench.do(Write(1, service(), INGRESS))
    assert done.result is Result.UNKNOWN
    assert "cannot be read" in done.why


def test_outside_its_term_nothing_is_sent(server: Server) -> None:
    bench = Bench(server)
    assert bench.do(Write(2, service(), INGRESS)).result is Result.FENCED

    def lose() -> None:
        bench.term = 2

    server.stands = lose  # type: ignore[assignment]
    assert bench.do(Write(1, service(), INGRESS)).result is Result.FENCED
    assert server.patches == []


def test_several_are_written_at_a_time_and_the_end_waits_for_them() -> None:
    begun = threading.Semaphore(0)
    may_end = threading.Event()

    class Slow(Server):
        def patch(self, path: str, body: Any, **how: Any) -> bytes:
            begun.release()
            assert may_end.wait(DEADLINE_S)
            return super().patch(path, body, **how)

    server = Slow()
    bench = Bench(server, threads=3)
    for number in range(8):
        bench.writer.put(Write(1, service(f"web-{number}"), INGRESS))
    for _ in range(3):
        assert begun.acquire(timeout=DEADLINE_S)
    assert not bench.writer.is_idle
    bench.writer.clear()
    assert not bench.writer.is_idle, "three are on their way"
    assert not bench.writer.stop(0.01)
    may_end.set()
    assert bench.writer.stop(DEADLINE_S)
    assert bench.writer.is_idle
    assert len(server.patches) == 3
    bench.writer.put(Write(1, service("late"), INGRESS))
    assert bench.writer.is_idle
    assert len(server.patches) == 3


def test_a_thread_that_cannot_be_had_costs_one_write(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench = Bench(server, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError):
            bench.writer.put(Write(1, service(), INGRESS))
    assert bench.writer.is_idle
    assert bench.do(Write(1, service(), INGRESS)).result is Result.WRITTEN


def test_a_bug_costs_one_write() -> None:
    class Broken(Server):
        def patch(self, path: str, body: Any, **how: Any) -> bytes:
            raise ZeroDivisionError

    bench = Bench(Broken(), threads=1)
    for _ in range(2):
        assert bench.do(Write(1, service(), INGRESS)).result is Result.UNKNOWN


# --- the list of all Services ---------------------------------------------------------------------


class Pages:
    """Answers of one list after another."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.queries: list[dict[str, str]] = []

    def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
        assert path == "/api/v1/services"
        self.queries.append(dict(query))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    def patch(self, *args: Any, **how: Any) -> bytes:
        raise NotImplementedError


def page(names: str, token: str = "") -> dict[str, Any]:
    metadata = {"resourceVersion": "77", "continue": token}
    items: list[Any] = [on_the_wire(name, "5") for name in names]
    return {"kind": "ServiceList", "metadata": metadata, "items": items}


def test_all_pages_of_a_consistent_list_are_read() -> None:
    bad = {"metadata": {"name": "x", "namespace": "default"}, "spec": []}
    last = page("c")
    last["items"].append(bad)
    server = Pages(page("ab", "more"), last)
    found, revision, unreadable = list_services(server)
    assert sorted(found) == ["default/a", "default/b", "default/c"]
    assert (revision, unreadable) == ("77", {"default/x"})
    # No resourceVersion: an older answer would hide what is in use.
    assert server.queries == [{"limit": "500"}, {"limit": "500", "continue": "more"}]


def test_a_list_that_takes_longer_than_its_snapshot_lives_is_asked_for_in_one_piece() -> None:
    gone = RefusedError("too old", 410, "Expired", 0)
    server = Pages(page("a", "x"), gone, page("a", "y"), gone, page("ab"))
    found, _, _ = list_services(server)
    assert sorted(found) == ["default/a", "default/b"]
    assert server.queries[-1] == {}
    with pytest.raises(RefusedError):
        list_services(Pages(RefusedError("no", 403, "Forbidden", 0)))
