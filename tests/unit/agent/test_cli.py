"""The command line: exit codes, streams, and what is not imported."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import kube_router_py
from kube_router_py import cli
from kube_router_py.agent import run
from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.options import parse

REPOSITORY = Path(__file__).parents[3]
MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
"""


@pytest.fixture(autouse=True)
def _environment_without_flags(monkeypatch):
    for name in list(os.environ):
        if name.startswith("KUBE_ROUTER_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "argument", ["--version", "-V", "version", "--version=true", "cleanup --version", "render -V"]
)
def test_the_version_goes_to_stdout_and_nothing_else_happens(argument, capsys):
    assert cli.main(argument.split()) == 0
    out, err = capsys.readouterr()
    assert out == f"kube-router-py {kube_router_py.__version__}\n"
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--help"], "--ipvs-sync-period"),
        (["-h"], "Service proxy"),
        (["render", "--help"], "--node=NAME"),
        (["render", "--help"], "--show-secrets"),
        (["cleanup", "-h"], "--excluded-cidrs"),
    ],
)
def test_help_goes_to_stdout(argv, word, capsys):
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert word in out
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rendr"], ["'rendr'", "did you mean render?"]),
        (["xyzzy"], ["'xyzzy'", ", ".join(sorted(cli.COMMANDS))]),
        (["--overlay-type=mesh", "--nonsense"], ["--overlay-type", "--nonsense"]),
        (["version", "now"], ["'now'"]),
        (["cleanup", "--vip-mode=x"], ["--vip-mode"]),
        (["render"], ["-f is missing", "--node is missing"]),
        (["render", "-f", "x", "--node", "n", "--output", "xml"], ["'xml'", "text or json"]),
        (["render", "-f", "x", "--node=n", "--vip-mode=y"], ["--vip-mode"]),
        (["render", "-f", "x", "--node"], ["--node needs a value"]),
        (["render", "--show-secrets=no", "-f", "x", "--node=n"], ["takes no value"]),
        (["render", "-f", "x", "--node=n", "stray"], ["'stray'"]),
        (["render", "-f", "x", "--node=n", "--link=10.0.0.1"], ["--link '10.0.0.1'", "/24"]),
        (["render", "-f", "x", "--node=n", "--link-mtu=9k"], ["--link-mtu '9k'", "1500"]),
    ],
)
def test_mistakes_exit_with_2_and_go_to_stderr(argv, words, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for word in words:
        assert word in err


def test_the_agent_looks_at_the_files_it_needs_and_tells_all_mistakes_at_once(tmp_path, capsys):
    missing = str(tmp_path / "none")
    flags = [f"--kubeconfig={missing}", f"--peer-router-passwords-file={missing}", "--bgp-port=0"]
    assert cli.main(flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "--bgp-port",
        "--kubeconfig",
        "--peer-router-passwords-file",
    ]
    assert all("No such file" in line for line in lines[1:])


def test_a_refused_start_is_an_error_in_the_journal(tmp_path):
    """journalctl -p warning must show why the service does not start."""
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        done = subprocess.run(
            [sys.executable, "-m", "kube_router_py", "--nonsense", "--overlay-type=a\nb"],
            stderr=stream,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            check=False,
            timeout=60,
            cwd=REPOSITORY,
        )
        stream.seek(0)
        lines = stream.read().splitlines()
    assert done.returncode == 2
    assert len(lines) == 2
    assert all(line.startswith("<3>kube-router-py: --") for line in lines)


def test_a_kernel_that_refuses_cleanup_is_no_traceback(monkeypatch, capsys):
    def refuse(*_):
        raise KernelError("netlink is out of order")

    monkeypatch.setattr("kube_router_py.adapters.check_capabilities", refuse)
    assert cli.main(["cleanup"]) == 1
    assert "netlink is out of order" in capsys.readouterr().err


def test_render_takes_agent_flags_among_its_own(tmp_path, capsys):
    file = tmp_path / "web.yaml"
    file.write_text(MANIFEST)
    argv = ["render", "--ipvs-sync-period", "1m", "-f", str(file), "-v", "2", "--node=n1"]
    argv += ["--kubeconfig=/on/the/node/only"]
    assert cli.main([*argv, "--hairpin-mode", "-o", "json"]) == 0
    assert '"10.96.0.10"' in capsys.readouterr().out


def test_render_is_told_of_links_and_whose_secrets_to_show(tmp_path, capsys, monkeypatch):
    file = tmp_path / "nodes.yaml"
    file.write_text(
        """
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    kube-router.io/peers: |
      - {remoteip: 192.0.2.1, remoteasn: 65000, passwordsecretref: {name: bgp, key: tor}}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 10.0.1.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 10.0.2.1}]}
---
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: network}
stringData: {tor: hunter2}
"""
    )
    argv = ["render", "-f", str(file), "--node=n1", "--link", "10.0.1.1/16", "--link-mtu=9000"]
    monkeypatch.setenv("POD_NAMESPACE", "network")
    assert cli.main(argv) == 0
    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err
    assert "10.244.2.0/24 via 10.0.2.1" in told.out
    assert '"mtu": 8980' in told.out
    assert cli.main([*argv, "--show-secrets"]) == 0
    assert "neighbor 192.0.2.1 password hunter2" in capsys.readouterr().out


def test_render_of_a_missing_file_exits_with_1(tmp_path, capsys):
    assert cli.main(["render", "-f", str(tmp_path / "none.yaml"), "--node=n1"]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_nothing_to_run_is_no_failure():
    flags = ("--run-service-proxy=false", "--run-firewall=false", "--run-router=false")
    done = subprocess.run(
        [sys.executable, "-m", "kube_router_py", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to run" in done.stderr


KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


def test_the_agent_answers_probes_and_ends_on_sigterm(tmp_path, free_port):
    """As a process of its own, with the real adapters; without an API server it writes nothing."""
    (tmp_path / "config").write_text(KUBECONFIG)
    port = free_port()
    command = [sys.executable, "-m", "kube_router_py", f"--kubeconfig={tmp_path / 'config'}"]
    command += ["--health-addr=127.0.0.1", f"--health-port={port}", "--run-router=false"]
    command += [f"--agent-socket={tmp_path / 'agent.sock'}"]
    with (tmp_path / "log").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, cwd=REPOSITORY)
    try:
        if os.geteuid() != 0:
            assert process.wait(60) == 1
            assert "CAP_NET_ADMIN" in (tmp_path / "log").read_text()
            return
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as found:
                    assert found.status == 200
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                threading.Event().wait(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)
    text = (tmp_path / "log").read_text()
    assert "starting version=" in text
    assert "stopped writes=" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["render", "-f", "-", "--node=n"]])
def test_light_commands_do_not_load_heavy_libraries(argv):
    program = (
        "import sys\nfrom kube_router_py import cli\n"
        f"assert cli.main({argv!r}) == 0\n"
        "heavy = {'kubernetes', 'pyroute2', 'prometheus_client', 'aiohttp', 'urllib3', 'iptc'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=MANIFEST,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr


def test_cleanup_does_not_begin_beside_an_agent(monkeypatch, capsys):
    def refuse(self, wait_s):
        assert wait_s >= 1.0  # one that is just ending is waited for
        raise PreflightError("another kube-router-py agent runs in this network namespace")

    def opened(*_, **__):
        raise AssertionError("the kernel was touched")

    monkeypatch.setattr("kube_router_py.adapters.check_capabilities", lambda: None)
    monkeypatch.setattr("kube_router_py.adapters.opener", opened)
    monkeypatch.setattr("kube_router_py.kernel.agent_lock.AgentLock.take", refuse)
    for argv in (["cleanup"], ["--cleanup-config"]):
        assert cli.main(argv) == 1
        assert "another kube-router-py agent" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--run-firewall=false", "--run-firewall"])
def test_rules_of_policies_that_nobody_follows_are_told_at_the_start(monkeypatch, caplog, flag):
    def refuse(self, wait_s):
        raise PreflightError("far enough")

    monkeypatch.setattr("kube_router_py.agent.log_targets.configure", lambda *_, **__: None)
    monkeypatch.setattr("kube_router_py.agent.check_capabilities", lambda: None)
    monkeypatch.setattr("kube_router_py.agent.missing_modules", lambda _: ())
    monkeypatch.setattr("kube_router_py.agent.AgentLock.take", refuse)
    monkeypatch.setattr("kube_router_py.agent.old_policies", lambda _: "old rules stand")
    with caplog.at_level("WARNING"), pytest.raises(PreflightError):
        run(parse([flag], {}), {"NODE_NAME": "node1"})
    assert ("old rules stand" in caplog.text) == (flag == "--run-firewall=false")


@pytest.mark.parametrize("flag", ["--run-router=false", "--run-router"])
def test_daemons_that_nobody_looks_after_are_told_at_the_start(monkeypatch, caplog, tmp_path, flag):
    def refuse(self, wait_s):
        raise PreflightError("far enough")

    monkeypatch.setattr("kube_router_py.agent.log_targets.configure", lambda *_, **__: None)
    monkeypatch.setattr("kube_router_py.agent.check_capabilities", lambda: None)
    monkeypatch.setattr("kube_router_py.agent.missing_modules", lambda _: ())
    monkeypatch.setattr("kube_router_py.agent.old_policies", lambda _: "")
    monkeypatch.setattr("kube_router_py.agent.AgentLock.take", refuse)
    # What is known of a daemon is its command line, and that it answers at its socket.
    left = subprocess.Popen(
        [
            "/usr/lib/frr/zebra",
            "-c",
            "import socket, sys, time\n"
            "listener = socket.socket(socket.AF_UNIX)\n"
            "listener.bind(sys.argv[1] + '/zebra.vty')\n"
            "listener.listen()\n"
            "print('ready', flush=True)\n"
            "time.sleep(600)",
            str(tmp_path),
            *("-i", f"{tmp_path}/zebra.pid", "--vty_socket", str(tmp_path)),
        ],
        executable=sys.executable,
        stdout=subprocess.PIPE,
    )
    try:
        assert left.stdout.readline() == b"ready\n"
        with caplog.at_level("WARNING"), pytest.raises(PreflightError):
            run(parse([flag, f"--frr-dir={tmp_path}"], {}), {"NODE_NAME": "node1"})
    finally:
        left.kill()
        left.wait()
        left.stdout.close()
    told = f"cleanup on this node, or set --run-router pids={left.pid}"
    assert (told in caplog.text) == (flag == "--run-router=false")
