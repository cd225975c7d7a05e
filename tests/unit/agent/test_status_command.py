"""``status``: what it asks, what it prints, how it ends."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kube_router_py import status_command
from kube_router_py.cli import MISTAKE, main
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Service
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.health import Health
from kube_router_py.observe.serve import Answer, HttpServer
from kube_router_py.options import parse
from kube_router_py.problem import Problem

PROBLEM = Problem("Service default/web", "metadata.annotations", "pool 'red' is full")


class Loop:
    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def status(self) -> LoopStatus:
        return LoopStatus(
            name="loadbalancer",
            turning=True,
            ready=not self._reason,
            reason=self._reason,
            dirty=0,
            busy=False,
            settled=True,
            last_turn_s=0.4,
            last_success_s=0.4,
            turns=3,
            successes=3,
            restarts=0,
            problems=(PROBLEM,),
        )


def sections() -> dict[str, Any]:
    return {
        "load_balancer": {
            "leader": "node-2",
            "pools": [{"name": "red", "in_use": 4, "addresses": 4}],
            "waiting": [],
        }
    }


@contextmanager
def serving(reason: str = "") -> Iterator[int]:
    cache = Cache((Service,))
    cache.replace(Service, (), "7")
    health = Health(
        node="node-1", version="1.2.3", cache=cache, loops=[Loop(reason)], sections=sections
    )
    server = HttpServer("127.0.0.1", 0, health.pages(), "health-port")
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def test_everything_that_the_agent_says_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as port:
        assert main(["status", f"--health-port={port}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("node node-1, kube-router-py 1.2.3\nready\n")
    assert "load balancer:\n  leader: node-2\n" in shown
    assert "    NAME  IN USE  ADDRESSES\n    red   4       4\n" in shown
    assert "waiting: none" in shown
    # One table of what is wrong, whoever found it.
    assert shown.count("pool 'red' is full") == 1
    assert "Service default/web" in shown


def test_one_that_is_not_ready_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("no turn has succeeded yet") as port:
        assert main(["status", "-o", "json", f"--health-port={port}"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["reason"] == "loadbalancer: no turn has succeeded yet"
    assert report["problems"] == [
        {"object": PROBLEM.object, "field": PROBLEM.field, "reason": PROBLEM.reason}
    ]
    with serving("no turn has succeeded yet") as port:
        main(["status", f"--health-port={port}"])
    assert "not ready: loadbalancer: no turn has succeeded yet" in capsys.readouterr().out


def test_where_nobody_answers_the_remedy_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as port:
        pass
    assert main(["status", f"--health-port={port}"]) == 1
    assert f"no agent answers at 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["status", "--health-port=0"]) == MISTAKE
    assert "--health-port is 0" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [Answer(200, "text/plain", b"hello"), Answer(404, "", b"")])
def test_another_program_on_the_port_is_no_agent(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = HttpServer("127.0.0.1", 0, {"/status": lambda: answer}, "health-port")
    server.start()
    try:
        assert main(["status", f"--health-port={server.port}"]) == 1
    finally:
        server.stop()
    assert "agent" in capsys.readouterr().err or answer.status == 404


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    stdout = io.StringIO()
    report = {"ready": True, "node": "n", "version": "1", "problems": [{"reason": "\x1b[2J"}]}
    server = HttpServer(
        *("127.0.0.1", 0),
        {"/status": lambda: Answer(200, "application/json", json.dumps(report).encode())},
        "health-port",
    )
    server.start()
    try:
        options = parse([f"--health-port={server.port}"], {})
        assert status_command.main(options, "text", stdout) == 0
    finally:
        server.stop()
    assert "\x1b" not in stdout.getvalue()


def test_mistakes_in_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-f", "x.yaml", "--output=xml"]) == MISTAKE
    said = capsys.readouterr().err
    assert "-f is for render and explain" in said
    assert "--output 'xml' is unknown" in said
    assert main(["status", "--help"]) == 0
    assert capsys.readouterr().out == status_command.USAGE
