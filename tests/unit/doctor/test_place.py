"""Finding the agent and its files; looks that fail; the report; the command."""

import io
import json
import os
from types import SimpleNamespace

import pytest

from kube_router_py.agent_questions import questions
from kube_router_py.colours import Painter
from kube_router_py.commands import doctor
from kube_router_py.doctor import place as places
from kube_router_py.doctor.examine import settled
from kube_router_py.doctor.findings import found
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.paths import inside, read_file
from kube_router_py.doctor.report import document, lines
from kube_router_py.errors import ConfigurationError
from kube_router_py.observe.agent_socket import AgentSocket
from kube_router_py.options import parse

ANY = [
    "--run-router=false",
    "--service-cluster-ip-range=10.96.0.0/12,fd00::/112",
    "--enable-ipv6",
    "--peer-router-ips=192.0.2.1",
    "--peer-router-asns=65000",
    "--peer-router-passwords=c2VjcmV0",
    "--loadbalancer-ip-range=192.0.2.0/28,198.51.100.0/28",
    "--ipvs-sync-period=1m30s",
    "--v=3",
]


class Status:
    def status(self):
        return {"ready": True, "node": "node1", "version": "x", "problems": []}


@pytest.fixture
def agent(tmp_path):
    """An agent's socket; call it with the agent's flags, it returns the path."""
    running = []

    def start(flags):
        path = str(tmp_path / "agent.sock")
        asked = questions(Status(), parse(flags, {}), SimpleNamespace(explain=None))
        running.append(AgentSocket(path, asked, {}))
        running[-1].start()
        return path

    yield start
    for each in running:
        each.stop()


def test_an_agent_tells_its_flags_but_no_secrets(agent):
    path = agent(ANY)
    given = parse([f"--agent-socket={path}"], {})
    place, findings = places.find(given, [f"--agent-socket={path}"], {"NODE_NAME": "x"})
    assert findings == []
    assert place.is_running
    assert place.status["node"] == "node1"
    assert place.flags["peer-router-passwords"] == "(hidden)"
    assert "c2VjcmV0" not in json.dumps(place.flags)
    wanted = parse([each for each in ANY if "passwords" not in each], {})
    assert place.options == wanted


def test_flags_that_differ_from_the_agents_are_told_and_the_agents_count(agent):
    path = agent(["--run-router=false"])
    arguments = [f"--agent-socket={path}", "--run-router=true", "--v=0"]
    place, findings = places.find(parse(arguments, {}), arguments, {})
    assert [(each.code, each.object) for each in findings] == [
        ("agent-flags-differ", "Flag --run-router")
    ]
    assert place.options.run_router is False


def test_without_an_agent_the_given_flags_count(tmp_path):
    options = parse([f"--agent-socket={tmp_path}/none", "--run-router=false"], {})
    place, (only,) = places.find(options, [], {})
    assert only.code in ("agent-not-running", "agent-silent")
    assert not place.is_running
    assert place.options == options


def test_an_agent_that_calls_the_question_a_mistake_is_silent_and_ends_nothing(monkeypatch):
    def refuse(path, name, asked=None):
        raise ConfigurationError("what is that?")

    monkeypatch.setattr(places.agent_client, "ask", refuse)
    monkeypatch.setattr(places, "agent_lock_is_held", lambda: True)
    place, (only,) = places.find(parse(["--run-router=false"], {}), [], {})
    assert only.code == "agent-silent"
    assert not place.is_running


def test_only_files_are_read(tmp_path):
    (tmp_path / "file").write_text("text")
    assert read_file(str(tmp_path / "file"), 3) == "tex"
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="no regular file"):
            read_file(str(odd), 3)


def test_paths_of_another_root_follow_its_own_links(tmp_path):
    root = tmp_path / "root"
    (root / "run/x").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "var/lib").symlink_to("../run/x")
    (root / "loop").symlink_to("/loop")
    assert inside(str(root), "/var/run/x") == f"{root}/run/x"
    assert inside(str(root), "/var/lib/y") == f"{root}/run/x/y"
    assert inside(str(root), "/var/run/../../../etc") == f"{root}/etc"
    assert inside("", "/var/run/x") == "/var/run/x"
    with pytest.raises(OSError, match="too many links"):
        inside(str(root), "/loop")


def test_a_look_that_fails_is_a_finding_and_nothing_more():
    look = Look()

    def fail():
        raise RuntimeError("two\nlines")

    assert look.at("links", fail) is None
    assert look.at("other", lambda: 7) == 7
    (only,) = look.findings
    assert (only.code, only.object, only.what) == ("could-not-look", "links", "two lines")


def test_a_judgement_that_fails_is_a_finding_after_those_before_it():
    look = Look()

    def judge():
        yield found("clock-skew", "API server x", "what", "remedy")
        raise KeyError("odd")

    look.tell(judge())
    look.tell([found("node-missing", "Node x", "what", "remedy")])
    assert [each.code for each in look.findings] == ["clock-skew", "could-not-look", "node-missing"]
    assert "KeyError" in look.findings[1].what
    assert "test_place.py" in look.findings[1].object


def test_before_the_start_what_the_agent_waits_for_is_no_error():
    down = found("api-unreachable", "API server x", "what", "remedy")
    module = found("kernel-module-missing", "module ip_vs", "what", "remedy")
    kept = settled([down, module], is_preflight=True)
    assert [each.severity for each in kept] == ["warning", "error"]
    assert [each.severity for each in settled([down], is_preflight=False)] == ["error"]


def test_that_no_agent_runs_is_told_where_nothing_says_why():
    absent = found("agent-not-running", "agent", "what", "remedy")
    module = found("kernel-module-missing", "module x", "what", "remedy")
    assert settled([absent, module], is_preflight=False) == [module]
    assert settled([absent], is_preflight=False) == [absent]


def test_the_report_says_what_and_what_to_do():
    finding = found(
        "kernel-module-missing", "module x", "it is \x1b[31mnot\x1b[0m there", "load it"
    )
    text = "\n".join(lines([finding], Painter(io.StringIO()), "node1"))
    assert "error    kernel-module-missing  module x" in text
    assert "remedy: load it" in text
    assert "node node1: 1 error" in text
    assert "\x1b" not in text
    assert list(lines([], Painter(io.StringIO()), "node1")) == ["node node1: nothing is wrong"]
    assert "\x1b" not in "".join(lines([], Painter(io.StringIO()), "\x1b[31m"))


def test_the_report_for_programs():
    warning = found("clock-skew", "API server x", "what", "remedy")
    assert document([warning], "node1", "1")["ok"] is True
    told = document([found("node-missing", "Node x", "what", "remedy")], "node1", "1")
    assert (told["ok"], told["node"], told["version"]) == (False, "node1", "1")
    assert told["findings"] == [
        {
            "code": "node-missing",
            "object": "Node x",
            "what": "what",
            "remedy": "remedy",
            "severity": "error",
        }
    ]


def test_help_and_mistakes(capsys):
    assert doctor.main(["--help"]) == 0
    assert capsys.readouterr().out == doctor.USAGE
    with pytest.raises(ConfigurationError, match="do not go together"):
        doctor.main(["--preflight", "--bundle=x"])
    with pytest.raises(ConfigurationError, match="--nonsense"):
        doctor.main(["--nonsense"])


@pytest.fixture
def examined(monkeypatch):
    """What ``examine`` finds, put by the test."""
    findings = []
    monkeypatch.setattr(
        "kube_router_py.doctor.examine.examine",
        lambda place, before, name, *, is_preflight: (*before, *findings),
    )
    return findings


@pytest.mark.parametrize(
    ("severity", "code"), [("error", 1), ("warning", 0), ("note", 0), (None, 0)]
)
def test_exit_codes(examined, capsys, severity, code):
    if severity:
        examined.append(found("clock-skew", "API server x", "what", "remedy", severity))
    assert doctor.main(["--preflight", "--output=json"]) == code
    assert len(json.loads(capsys.readouterr().out)["findings"]) == bool(severity)
