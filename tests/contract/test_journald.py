"""The journal, for real: what is logged comes out of journalctl by its fields.

systemd-journald runs in a mount namespace of its own, with its own /run and machine id: it knows
nothing of the host's journal, and the host nothing of it.
"""

import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.observe.journal import JournalHandler, JournalSocket
from kube_router_py.problem import Problem

pytestmark = [pytest.mark.netfilter, pytest.mark.timeout(600)]
JOURNALD = "/lib/systemd/systemd-journald"
GUIDE = Path(__file__).parents[2] / "docs" / "journal.md"
MACHINE = "0123456789abcdef0123456789abcdef"
DEADLINE_S = 120.0
# Neither the kernel's log nor its audit: both would be the host's.
SETUP = f"""
set -e
[ -z "$1" ] || mount --bind "$1" /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/log/journal /run/systemd/journal /run/systemd/journald.conf.d
[ -z "$1" ] || mount --move /mnt /run/systemd/journal
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\nRateLimitIntervalSec=0\\n' \\
  >/run/systemd/journald.conf.d/test.conf
echo {MACHINE} >/run/machine-id
mount --bind /run/machine-id /etc/machine-id
echo ready
exec cat
"""


class Journal:
    """A journal of its own. ``root`` is the file system as its daemon sees it; in ``directory`` it
    has its sockets, where one is given."""

    def __init__(self, stack: ExitStack, directory: str = "") -> None:
        self._stack = stack
        alone = ("unshare", "--mount", "--propagation", "private")
        self._keeper = stack.enter_context(
            subprocess.Popen(
                [*alone, "sh", "-c", SETUP, "sh", directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(self._keeper.kill)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"
        self.root = Path(f"/proc/{self._keeper.pid}/root")
        self.socket = self.root / "run/systemd/journal/socket"
        self._daemon: subprocess.Popen[bytes] | None = None

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "--mount", "--target", str(self._keeper.pid), *command]

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._daemon = self._stack.enter_context(subprocess.Popen(self.inside(JOURNALD)))
        self._stack.callback(self._daemon.kill)
        until(self.socket.is_socket, "journald listens")

    def stop(self) -> None:
        """As a crash does it: the socket's file stays, and nobody listens."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(DEADLINE_S)

    def query(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = ["journalctl", "-D", str(self.root / "run/log/journal"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)

    def show(self, *words: str) -> list[dict[str, Any]]:
        """What journalctl has for these matches of the agent, oldest first."""
        done = self.query("-t", "kube-router-py", "-o", "json", "--all", *words)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for(self, number: int, *words: str) -> list[dict[str, Any]]:
        return until(lambda: len(found := self.show(*words)) >= number and found, f"{words}")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return found


@pytest.fixture
def journal() -> Iterator[Journal]:
    with ExitStack() as stack:
        made = Journal(stack)
        made.start()
        yield made


@pytest.fixture
def handler(journal: Journal) -> Iterator[JournalHandler]:
    made = JournalHandler(JournalSocket(journal.socket), node="node1", tracebacks=False)
    yield made
    made.close()


@pytest.fixture
def log(handler: JournalHandler) -> Iterator[logging.Logger]:
    found = logging.getLogger("kube_router_py.journal_test")
    found.addHandler(handler)
    found.setLevel(logging.DEBUG)
    yield found
    found.removeHandler(handler)


def test_the_lines_about_an_object_are_found_by_its_name(
    journal: Journal, log: logging.Logger, handler: JournalHandler
) -> None:
    problem = Problem("Service default/website", "spec.ports[0]", 'it\'s wrong; "correct" it')
    log.info("programmed service=%s operations=%d", "default/website", 3)
    log.info("programmed service=%s operations=%d", "default/other", 1)
    log.info("programmed policy=%s", "default/website")
    found = (problem.object, problem.field, problem.reason)
    log.warning("problem loop=%s object=%r field=%r reason=%r", "service-proxy", *found)
    log.info("refused services=%r", "default/a, default/website")
    told = journal.wait_for(4, "KUBE_OBJECT=default/website")
    assert [each["MESSAGE"].split(": ", 1)[1].split("=")[0] for each in told] == [
        "programmed service",
        "programmed policy",
        "problem loop",
        "refused services",
    ]
    first, _, third, fourth = told
    here = {
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "kube-router-py",
        "LOGGER": "kube_router_py.journal_test",
        "THREAD": threading.current_thread().name,
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_the_lines_about_an_object_are_found_by_its_name",
        "KUBE_NODE": "node1",
        "KUBE_OBJECT": "default/website",
        "KUBE_NAMESPACE": "default",
        "KUBE_KIND": "Service",
        "KRP_SERVICE": "default/website",
        "KRP_OPERATIONS": "3",
        "_TRANSPORT": "journal",
        "_MACHINE_ID": MACHINE,
    }
    assert {name: first[name] for name in here} == here
    assert (third["PRIORITY"], third["KUBE_REASON"]) == ("4", problem.reason)
    assert (third["KUBE_KIND"], third["KRP_FIELD"]) == ("Service", problem.field)
    assert sorted(fourth["KUBE_OBJECT"]) == ["default/a", "default/website"]
    assert len(journal.show("KUBE_OBJECT=default/website", "KUBE_KIND=Service")) == 3
    assert len(journal.show("KUBE_NODE=node1", "-p", "warning")) == 1
    assert len(journal.show("KRP_LOOP=service-proxy")) == 1
    assert handler.dropped == 0


def test_no_value_forges_a_field(journal: Journal, log: logging.Logger) -> None:
    evil = "x\nKUBE_OBJECT=kube-system/forged\nPRIORITY=0\n_PID=1\nMESSAGE=all is well"
    log.info("refused service=%s text=%r", "default/web", evil)
    (found,) = journal.wait_for(1, "KUBE_OBJECT=default/web")
    assert found["KRP_TEXT"] == evil
    assert found["PRIORITY"] == "6"
    assert found["MESSAGE"].startswith("INFO journal_test: refused service=default/web")
    assert journal.show("KUBE_OBJECT=kube-system/forged") == []
    assert journal.show("-p", "0") == []


def test_what_does_not_fit_into_a_datagram_gets_there_whole(
    journal: Journal, log: logging.Logger, handler: JournalHandler
) -> None:
    """journald takes 64 MiB of a field; 12 MiB are more than the largest buffer of a socket."""
    text = "0123456789abcdef" * 786_432
    log.info("large service=%s text=%s", "default/large", text)
    (found,) = journal.wait_for(1, "KUBE_OBJECT=default/large")
    assert found["KRP_TEXT"] == text
    assert handler.dropped == 0


def test_a_restart_of_journald_costs_what_was_told_meanwhile_and_that_is_told(
    journal: Journal, log: logging.Logger, handler: JournalHandler
) -> None:
    log.info("one service=%s", "default/web")
    journal.wait_for(1)
    journal.stop()
    log.info("two service=%s", "default/web")
    assert handler.dropped == 1
    journal.start()
    log.info("three service=%s", "default/web")
    found = journal.wait_for(3)
    assert [each["MESSAGE"] for each in found] == [
        "INFO journal_test: one service=default/web",
        "INFO journal_test: three service=default/web",
        "WARNING observe: log records did not get into the journal count=1",
    ]


def test_an_exception_is_there_as_a_whole(journal: Journal, log: logging.Logger) -> None:
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        log.exception("cannot compile service=%s", "default/web")
    (found,) = journal.wait_for(1, "EXCEPTION=ValueError")
    assert found["TRACEBACK"].startswith("Traceback (most recent call last):\n")
    assert found["TRACEBACK"].endswith("ValueError: of two\nlines\n")
    assert "\n" not in found["MESSAGE"]
    assert found["PRIORITY"] == "3"


def test_the_recipes_of_the_guide_find_what_they_say(journal: Journal, log: logging.Logger) -> None:
    lines = [line for line in GUIDE.read_text().splitlines() if line.startswith("journalctl ")]
    recipes = [shlex.split(line, comments=True)[1:] for line in lines]
    assert len(recipes) > 10
    objects = {word for each in recipes for word in each if word.startswith("KUBE_OBJECT=")}
    log.warning("not allowed by policies pod=%s loop=%s", "shop/api", "service-proxy")
    for word in objects:
        kind = "policy" if "deny" in word else "service"
        log.info(f"about {kind}=%s", word.partition("=")[2])
    journal.wait_for(1 + len(objects))
    for recipe in recipes:
        if "-f" in recipe:
            recipe.remove("-f")  # it would go on for ever
        if "-1" in recipe:
            recipe.remove("-1")  # this machine may have booted once
        done = journal.query(*recipe)
        assert (done.returncode, done.stderr) == (0, ""), recipe
        if objects.intersection(recipe) and not any(word.startswith("LOG") for word in recipe):
            assert "about " in done.stdout, recipe


# As systemd starts a service: stderr is a stream to journald, and a variable says which.
SERVICE = """
import logging, os, sys
from pathlib import Path
from kube_router_py.observe import log_targets
found = os.fstat(2)
environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
log_targets.configure(0, sys.stderr, environ, node="node1", journal=sys.argv[1])
log = logging.getLogger("kube_router_py.journal_test")
log.warning("one service=%s", "default/web")
if sys.argv[1] == "auto":
    Path("/run/systemd/journal/socket").rename("/run/systemd/journal/hidden")
log.warning("two service=%s", "default/web")
"""


@pytest.mark.parametrize(
    ("mode", "ways"), [("auto", ["journal", "stdout"]), ("off", ["stdout", "stdout"])]
)
def test_a_service_of_systemd_tells_nothing_twice(
    journal: Journal, mode: str, ways: list[str]
) -> None:
    """Records as long as there is a socket for them, else lines; both with their priority."""
    start = ["systemd-cat", "-t", "kube-router-py", sys.executable, "-c", SERVICE, mode]
    done = subprocess.run(journal.inside(*start), capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    found = journal.wait_for(2)
    assert [(each["_TRANSPORT"], each["PRIORITY"]) for each in found] == [
        (way, "4") for way in ways
    ]
    assert [each["MESSAGE"] for each in found] == [
        "WARNING journal_test: one service=default/web",
        "WARNING journal_test: two service=default/web",
    ]


CRASH = """
import sys, threading
from kube_router_py.observe import log_targets
log_targets.configure(0, sys.stderr, {}, node="node1", journal="auto")
def work():
    raise ValueError("of a thread")
thread = threading.Thread(target=work, name="worker")
thread.start()
thread.join()
raise KeyError("of all")
"""


def test_what_nobody_catches_is_in_the_journal(journal: Journal) -> None:
    done = subprocess.run(
        journal.inside(sys.executable, "-c", CRASH), capture_output=True, timeout=DEADLINE_S
    )
    assert done.returncode == 1
    assert b"KeyError: 'of all'" in done.stderr
    first, second = journal.wait_for(2)
    assert (first["EXCEPTION"], first["THREAD"], first["PRIORITY"]) == ("ValueError", "worker", "2")
    assert "of a thread" in first["TRACEBACK"]
    assert (second["EXCEPTION"], second["PRIORITY"]) == ("KeyError", "2")
    assert "in <module>" in second["TRACEBACK"]


POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: website, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


@pytest.fixture
def lab() -> Iterator[Callable[..., str]]:
    """A lab with one node: ``lab(*arguments)`` runs ``kube-router-py lab``, or kubectl, in it."""
    program = [sys.executable, "-m", "kube_router_py.cli"]
    wanted = ["lab", "--nodes=1", "--agent-arg=--run-service-proxy=false", "--"]
    shell = ["sh", "-c", 'echo "lab=$KUBE_ROUTER_LAB config=$KUBECONFIG"; exec cat']
    with ExitStack() as stack:
        running = stack.enter_context(
            subprocess.Popen(
                [*program, *wanted, *shell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert running.stdin is not None
        assert running.stdout is not None
        said = next(line for line in running.stdout if line.startswith("lab="))
        directory, config = (each.partition("=")[2] for each in said.split())
        stack.callback(running.wait, DEADLINE_S)
        stack.callback(running.stdin.close)
        environ = {**os.environ, "KUBE_ROUTER_LAB": directory, "KUBECONFIG": config}

        def run(*command: str, text: str = "") -> str:
            start = ["kubectl"] if command[0] == "apply" else [*program, "lab"]
            done = subprocess.run(
                [*start, *command],
                input=text,
                env=environ,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run.directory = directory  # type: ignore[attr-defined]
        yield run


def test_an_agent_in_its_daemonset_logs_into_the_journal_of_its_node(lab: Any) -> None:
    """As the manifests have it: the directory of journald's socket is mounted from the node."""
    mounted = f"{lab.directory}/nodes/node1/root/run/systemd/journal"
    with ExitStack() as stack:
        journal = Journal(stack, mounted)
        journal.start()
        # The agent began before journald did, and finds it all the same.
        lab("apply", "-f", "-", text=POLICY)
        (found, *_) = journal.wait_for(1, "KUBE_OBJECT=default/website")
        assert (found["KUBE_KIND"], found["KUBE_NODE"]) == ("NetworkPolicy", "node1")
        lab("agent", "node1", "stop")
        lab("agent", "node1", "start")
        (found, *_) = journal.wait_for(1, "KUBE_OBJECT=node1", "CODE_FUNC=run")
        assert found["MESSAGE"].startswith("INFO agent: starting version=")
        assert found["KRP_FLAGS"]
