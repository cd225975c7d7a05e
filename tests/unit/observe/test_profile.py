"""What the agent's threads are doing, and where its memory goes, when somebody asks."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from kube_router_py.agent import Agent
from kube_router_py.cluster.client import Client
from kube_router_py.errors import ConfigurationError, KernelError
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.observe.profile import Profiler, threads
from kube_router_py.observe.serve import Answer, HttpServer
from kube_router_py.options import parse

_TIMEOUT_S = 60


class Time:
    """Passes only while somebody waits; ``then`` is done meanwhile."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.now_s = 0.0
        self.then = then

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.then()


def ask(profiler: Profiler, name: str, **query: str) -> Answer:
    return profiler.pages()[f"/debug/pprof/{name}"].answer(query)


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    """A thread of a known name that is in a known function."""
    begun, ending = threading.Event(), threading.Event()

    def stays_here() -> None:
        begun.set()
        ending.wait(_TIMEOUT_S)

    thread = threading.Thread(target=stays_here, name="one; that waits", daemon=True)
    thread.start()
    assert begun.wait(_TIMEOUT_S)
    there = "ending.wait(_TIMEOUT_S)"
    deadline = monotonic() + _TIMEOUT_S
    while there not in threads():
        assert monotonic() < deadline
        sleep(0.005)
    yield thread
    ending.set()
    thread.join(_TIMEOUT_S)


def test_a_profile_counts_the_stacks_of_all_other_threads(waiting: threading.Thread) -> None:
    time = Time()
    answer = ask(Profiler(lambda: time.now_s, time.wait), "profile", seconds="1")
    assert answer.status == 200
    found = {}
    for line in answer.body.decode().splitlines():
        stack, _, count = line.rpartition(" ")
        found[tuple(stack.split(";"))] = int(count)
    # Several, where it is still on its way into what it waits in.
    stacks = {stack: count for stack, count in found.items() if stack[0] == "one,_that_waits"}
    assert sum(stacks.values()) == pytest.approx(100, abs=1)
    for stack in stacks:
        assert stack[1] == "threading.Thread._bootstrap"
        assert any(each.endswith("waiting.<locals>.stays_here") for each in stack)
    # Who asks is of no interest.
    assert not any(each.endswith("Profiler._profile") for stack in found for each in stack)


def test_threads_are_told_with_the_line_each_is_at(waiting: threading.Thread) -> None:
    text = threads()
    assert f"thread one; that waits ({waiting.ident})" in text
    assert "ending.wait(_TIMEOUT_S)" in text
    assert f"({threading.get_ident()})" in text


def test_the_heap_tells_which_lines_took_memory_meanwhile() -> None:
    kept: list[bytearray] = []
    time = Time(lambda: kept.append(bytearray(3 << 20)))
    answer = ask(Profiler(wait=time.wait), "heap", seconds="2")
    first = answer.body.decode().splitlines()[1]
    assert __file__ in first
    assert float(first.split()[0]) == pytest.approx(3 << 10, abs=10)
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize("seconds", ["0", "-1", "61", "nan", "inf", "long"])
def test_no_question_takes_longer_than_a_minute(seconds: str) -> None:
    assert ask(Profiler(wait=Time().wait), "profile", seconds=seconds).status == 400


def test_one_question_is_answered_at_a_time() -> None:
    answers: list[int] = []
    time = Time()
    profiler = Profiler(lambda: time.now_s, time.wait)
    time.then = lambda: answers.append(ask(profiler, "heap").status)
    assert ask(profiler, "profile", seconds="0.01").status == 200
    assert answers == [503]
    assert ask(profiler, "profile", seconds="0.01").status == 200


def test_questions_come_by_http() -> None:
    server = HttpServer("127.0.0.1", 0, Profiler().pages(), "pprof-port")
    server.start()
    try:
        root = f"http://127.0.0.1:{server.port}/debug/pprof"
        with urlopen(f"{root}/profile?seconds=0.05", timeout=_TIMEOUT_S) as answer:
            assert b"MainThread;" in answer.read()
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{root}/profile?seconds=1000", timeout=_TIMEOUT_S)
        assert refused.value.code == 400
        refused.value.close()
    finally:
        server.stop()


class NoCredentials:
    addresses = ("http://192.0.2.1:6443",)

    def configurations(self) -> tuple[object, ...]:
        return ()

    def reload(self) -> None: ...


def no_host() -> HostPorts:
    raise KernelError("no host here")


def servers(*flags: str) -> list[HttpServer]:
    options = parse(["--health-port=0", "--healthz-bind-address=", *flags], {})
    client = Client(NoCredentials())  # type: ignore[arg-type]
    return Agent(options, {"NODE_NAME": "node1"}, no_host, client=client).servers


def test_it_is_off_unless_asked_for_and_for_the_node_alone(free_port: Callable[[], int]) -> None:
    assert servers() == []
    assert servers("--enable-pprof", "--pprof-port=0") == []
    port = free_port()
    (server,) = servers("--enable-pprof", f"--pprof-port={port}")
    try:
        with pytest.raises(ConfigurationError, match="--pprof-port=0 to do without"):
            servers("--enable-pprof", f"--pprof-port={port}")
        assert server._server.server_address[0] == "127.0.0.1"
    finally:
        server.stop()


def test_ports_are_not_mixed_up() -> None:
    with pytest.raises(ConfigurationError, match="--pprof-port 7000"):
        parse(["--enable-pprof", "--pprof-port=7000", "--metrics-port=7000"], {})
    parse(["--pprof-port=7000", "--metrics-port=7000"], {})
