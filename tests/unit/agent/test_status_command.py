"""``status``: what it asks, what it prints, how it ends."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kube_router_py import status_command
from kube_router_py.cli import MISTAKE, main
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Service
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.agent_socket import AgentSocket
from kube_router_py.observe.health import Health
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


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@contextmanager
def answering(path: str, report: dict[str, Any]) -> Iterator[None]:
    server = AgentSocket(path, {"status": lambda asked: report}, {})
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextmanager
def serving(path: str, reason: str = "") -> Iterator[None]:
    cache = Cache((Service,))
    cache.replace(Service, (), "7")
    health = Health(
        node="node-1", version="1.2.3", cache=cache, loops=[Loop(reason)], sections=sections
    )
    with answering(path, health.status()):
        yield


def test_everything_that_the_agent_says_is_shown(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(path):
        assert main(["status", f"--agent-socket={path}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("node node-1, kube-router-py 1.2.3, up 0s\nready\n")
    assert "load balancer:\n  leader: node-2\n" in shown
    assert "    NAME  IN USE  ADDRESSES\n    red   4       4\n" in shown
    assert "waiting: none" in shown
    # One table of what is wrong, whoever found it.
    assert shown.count("pool 'red' is full") == 1
    assert "Service default/web" in shown


def test_one_that_is_not_ready_says_why(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(path, "no turn has succeeded yet"):
        assert main(["status", "-o", "json", f"--agent-socket={path}"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["reason"] == "loadbalancer: no turn has succeeded yet"
    assert report["problems"] == [
        {"object": PROBLEM.object, "field": PROBLEM.field, "reason": PROBLEM.reason}
    ]
    with serving(path, "no turn has succeeded yet"):
        main(["status", f"--agent-socket={path}"])
    assert "not ready: loadbalancer: no turn has succeeded yet" in capsys.readouterr().out


def test_where_nobody_answers_the_remedy_is_named(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", f"--agent-socket={path}"]) == 1
    assert f"no agent answers at {path}" in (said := capsys.readouterr().err)
    assert "is it running" in said
    assert main(["status", "--agent-socket=here"]) == MISTAKE
    assert "--agent-socket" in capsys.readouterr().err


def test_another_program_at_the_socket_is_no_agent(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        assert main(["status", f"--agent-socket={path}"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_control_characters_of_others_do_not_reach_the_terminal(path: str) -> None:
    stdout = io.StringIO()
    report = {"ready": True, "node": "n", "version": "1", "problems": [{"reason": "\x1b[2J"}]}
    with answering(path, report):
        options = parse([f"--agent-socket={path}"], {})
        assert status_command.main(options, "text", stdout) == 0
    assert "\x1b" not in stdout.getvalue()


def test_mistakes_in_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-f", "--output=xml"]) == MISTAKE
    said = capsys.readouterr().err
    assert "'-f'" in said
    assert "--output 'xml' is unknown" in said
    assert main(["status", "--help"]) == 0
    assert capsys.readouterr().out == status_command.USAGE
