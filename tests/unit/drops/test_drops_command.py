"""``kube-router-py drops``, asked of a socket as the agent serves it."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kube_router_py.agent_client import follow as real
from kube_router_py.agent_questions import streams
from kube_router_py.cluster.cache import Cache
from kube_router_py.commands import drops
from kube_router_py.drops import hub as hub_module
from kube_router_py.drops.agent_side import Drops
from kube_router_py.errors import ApiError, ConfigurationError
from kube_router_py.kernel.fake_nflog import FakeNflog
from kube_router_py.observe.agent_socket import AgentSocket
from kube_router_py.options import parse

_TIMEOUT_S = 60.0
END = {"end": True}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Agent:
    """What of an agent answers ``drops``."""

    def __init__(self, cache: Cache, path: Path, *flags: str) -> None:
        self.nflog = FakeNflog()
        self.posted: list[Any] = []
        self.drops = Drops(
            parse(list(flags), {}),
            cache,
            self,  # type: ignore[arg-type]
            "node2",
            self.nflog.open,
        )
        self.path = str(path / "agent.sock")
        self._socket = AgentSocket(self.path, {}, {"drops": self.drops.stream})
        self._socket.start()
        self.drops.start()

    def post(self, path: str, body: Any) -> bytes:
        self.posted.append((path, body))
        return b"{}"

    def run(self, *arguments: str) -> int:
        return drops.main([*arguments, "--agent-socket", self.path])

    def stop(self) -> None:
        self._socket.stop()
        self.drops.stop(_TIMEOUT_S)


@pytest.fixture
def make(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Agent]]:
    monkeypatch.setattr(hub_module, "_READ_S", 0.02)
    made: list[Agent] = []

    def make_agent(*flags: str) -> Agent:
        made.append(Agent(world.cache, tmp_path, *flags))
        return made[-1]

    yield make_agent
    for each in made:
        each.stop()


@pytest.fixture
def agent(make: Callable[..., Agent]) -> Agent:
    return make()


@pytest.fixture
def remembering(make: Callable[..., Agent], packet: Any) -> Agent:
    """Has seen three refused packets, by --policy-drop-log."""
    agent = make("--policy-drop-log=log")
    until(lambda: agent.nflog.is_read)
    agent.nflog.log(packet(meant=("10.96.0.10", 3306)))
    agent.nflog.log(packet("default/client", "egress", "audit", destination="203.0.113.9"))
    agent.nflog.log(packet("", "ingress", "invalid", source="10.10.0.11"))
    until(lambda: agent.drops.numbers()["drop_records_total"] == 3)
    return agent


def test_text(remembering: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert remembering.run("--for=0s") == 0
    out, err = capsys.readouterr()
    assert err == "what policies refuse on node2, so far:\n"
    heading, first, second, third = out.splitlines()
    assert heading.split() == [
        *("TIME", "DIRECTION", "VERDICT", "FROM", "TO", "PORT", "SERVICE", "BECAUSE")
    ]
    places = [heading.index(name) for name in ("DIRECTION", "FROM", "TO", "PORT", "BECAUSE")]
    for line in (first, second, third):
        assert all(line[place - 1] == " " and line[place] != " " for place in places), line
    assert " ".join(first.split()[1:]) == (
        "ingress refused default/client (10.244.2.3) shop/db (10.244.2.2) 5432/TCP shop/db "
        "shop/all,shop/only-web"
    )
    assert " ".join(second.split()[1:]) == (
        "egress audited default/client (10.244.2.3) 203.0.113.9 5432/TCP - default/way-out"
    )
    assert " ".join(third.split()[1:]) == (
        "ingress refused node/node1 (10.10.0.11) shop/db (10.244.2.2) 5432/TCP shop/db "
        "invalid (shop/all,shop/only-web)"
    )


def test_json(remembering: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert remembering.run("--for", "0s", "-o", "json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second, _ = map(json.loads, out.splitlines())
    assert first == {
        "time": first["time"],
        "node": "node2",
        "direction": "ingress",
        "verdict": "refused",
        "cause": "policy",
        "reason": "no policy that isolates the pod allows it",
        "protocol": "tcp",
        "source": {
            "address": "10.244.2.3",
            "port": 40000,
            "pod": "default/client",
            "node": "node2",
        },
        "destination": {
            "address": "10.244.2.2",
            "port": 5432,
            "pod": "shop/db",
            "node": "node2",
            "services": ["shop/db"],
        },
        "pod": "shop/db",
        "policies": ["shop/all", "shop/only-web"],
        "chain": first["chain"],
        "meant": {"address": "10.96.0.10", "port": 3306, "services": ["shop/db"]},
    }
    assert second["verdict"] == "audited"


def test_of_one_namespace(remembering: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert remembering.run("--for=0s", "-n", "default", "-o", "json") == 0
    found = [json.loads(line)["direction"] for line in capsys.readouterr().out.splitlines()]
    assert found == ["ingress", "egress"]


def test_nothing(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.run("--for=0s") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing was seen on node2" in err


def test_following_until_interrupted(
    agent: Agent, packet: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(path: str, name: str, asked: Any) -> Iterator[Any]:
        assert asked["follow"] is True
        for line in real(path, name, asked):
            yield line
            if "node" in line:
                agent.nflog.log(packet())
            if "drop" in line:
                agent.nflog.lose(7)
            if "lost" in line:
                raise KeyboardInterrupt

    monkeypatch.setattr(drops, "follow", follow)
    assert agent.run("--follow") == 0
    out, err = capsys.readouterr()
    assert err == "what policies refuse on node2, until ^C:\n"
    assert "shop/db (10.244.2.2)" in out
    assert out.endswith("... 7 are missing here\n")
    until(lambda: not agent.nflog.is_read)


def test_what_is_lost_in_json(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drops, "follow", lambda *_: iter(({"node": "node2"}, {"lost": 3}, END)))
    assert agent.run("-o", "json") == 0
    assert capsys.readouterr().out == '{"lost":3}\n'


def test_names_of_strangers_do_nothing_to_a_terminal(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "time": "2023-11-14T22:13:20.500Z",
        "node": "n",
        "direction": "ingress",
        "verdict": "refused",
        "cause": "policy",
        "reason": "r",
        "protocol": "tcp",
        "source": {"address": "\x1b[2J"},
        "destination": {"address": "b\nc"},
    }
    lines = ({"node": "\x1b[2J"}, {"drop": record}, END)
    monkeypatch.setattr(drops, "follow", lambda *_: iter(lines))
    assert agent.run() == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert len(out.splitlines()) == 2


def test_a_long_name_does_not_move_all_other_lines() -> None:
    columns = drops.Columns()
    wide = columns.row(["1", "2", "3", "x" * 80, "5"])
    assert "x" * 80 + "  5" in wide
    after = columns.row(["1", "2", "3", "4", "5"])
    assert len(after) < len(wide)


@pytest.mark.parametrize("output", ["text", "json"])
def test_an_agent_that_breaks_off_does_not_look_like_one_that_saw_nothing(
    agent: Agent,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    """It was killed, or restarted."""
    monkeypatch.setattr(drops, "follow", lambda *_: iter(({"node": "node2"},)))
    with pytest.raises(ApiError, match="broke off"):
        agent.run("-o", output)
    assert "nothing was seen" not in capsys.readouterr().err


def test_half_a_line_is_no_agent_of_another_version(tmp_path: Path) -> None:
    place = str(tmp_path / "half.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ending:
        ending.bind(place)
        ending.listen()

        def answer() -> None:
            with ending.accept()[0] as client:
                asked = b""  # head and body are sent apart; what is not read resets the connection
                while not asked.endswith(b"{}") and (more := client.recv(1 << 16)):
                    asked += more
                client.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"node":"n"}\n{"drop":{"ti')

        thread = threading.Thread(target=answer)
        thread.start()
        lines = real(place, "drops")
        assert next(lines) == {"node": "n"}
        with pytest.raises(ApiError, match="broke off"):
            next(lines)
        thread.join(_TIMEOUT_S)


def test_an_agent_of_another_version(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ({"node": "n"}, {"drop": {"direction": "sideways"}}, END)
    monkeypatch.setattr(drops, "follow", lambda *_: iter(lines))
    with pytest.raises(ApiError, match="of another version"):
        agent.run()


def test_ends_of_all_kinds_are_told_apart(
    remembering: Agent, packet: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("10.10.0.11", "10.244.1.77", "203.0.113.9", ""):
        remembering.nflog.log(packet(source=source))
    until(lambda: remembering.drops.numbers()["drop_records_total"] == 7)
    assert remembering.run("--for=0s") == 0
    told = [line.split("  ")[3].strip() for line in _squeezed(capsys.readouterr().out)[-4:]]
    assert told == ["node/node1 (10.10.0.11)", "10.244.1.77 (range of node1)", "203.0.113.9", "-"]


def _squeezed(text: str) -> list[str]:
    """Lines whose columns are two blanks apart."""
    return [re.sub(r" {2,}", "  ", line) for line in text.splitlines()]


def test_a_group_that_is_taken(agent: Agent) -> None:
    agent.nflog.holder = "tcpdump (process 12)"
    with pytest.raises(ApiError, match=r"tcpdump \(process 12\) reads NFLOG group 100"):
        agent.run()


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="no agent answers"):
        drops.main(["--agent-socket", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for=x"], "--for 'x' is not a duration"),
        (["--for=25h"], "--for '25h' is out of range"),
        (["--for=-1s"], "--for '-1s' is out of range"),
        (["--follow", "--for=1s"], "exclude each other"),
        (["--namespace="], "--namespace is empty"),
        (["-n", "\udcff"], r"--namespace '\\udcff' is no name of a namespace"),
        (["shop"], "'shop' is not wanted"),
        (["--output=yaml"], "'yaml' is unknown"),
        (["--folow"], "--folow"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        drops.main(arguments)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        assert drops.main([flag]) == 0
        assert capsys.readouterr().out == drops.USAGE


# --- the agent's flag ----------------------------------------------------------------------------


def test_by_default_nobody_reads(agent: Agent) -> None:
    assert agent.nflog.opened == 0
    assert agent.drops.numbers() == {
        "drop_records_total": 0,
        "drop_records_lost_total": 0,
        "events_dropped_total": 0,
    }


def test_only_an_agent_with_a_firewall_knows_of_drops(agent: Agent) -> None:
    for found, names in ((None, []), (agent.drops, ["drops"])):
        assert [*streams(SimpleNamespace(drops=found))] == names  # type: ignore[arg-type]


def test_events(make: Callable[..., Agent], packet: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kube_router_py.drops")
    agent = make("--policy-drop-log=events")
    until(lambda: agent.nflog.is_read)
    agent.nflog.log(packet())
    until(lambda: agent.posted)
    path, event = agent.posted[0]
    assert path == "/api/v1/namespaces/shop/events"
    assert (event["reason"], event["source"]["host"]) == ("PolicyRefused", "node2")
    assert [each.getMessage() for each in caplog.records if "verdict=refused" in each.getMessage()]


def test_the_log_alone_writes_no_events(remembering: Agent) -> None:
    remembering.stop()
    assert remembering.posted == []
