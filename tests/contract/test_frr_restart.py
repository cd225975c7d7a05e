"""What a crash of FRR, or of the agent, does to routes and sessions: nothing that forwards ends.

Every test has a real peer with graceful restart behind a veth, and rtnetlink's own word for it that
no route was deleted.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel.frr import ExternalFrr, ManagedFrr
from kube_router_py.kernel.frr_daemons import Patience
from kube_router_py.kernel.frr_process import Layout
from kube_router_py.kernel.frr_vty import VtyClient, VtyLostError
from kube_router_py.kernel.frr_watch import Rhythm
from kube_router_py.kernel.ports_frr import Boot, DaemonsDownError, Opened

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture
def pair(lab: Any) -> Iterator[Any]:
    lab.require()
    with ExitStack() as stack:
        yield lab.Pair(stack)


class Agent:
    """An agent on the node: an adapter whose ``down`` sets an event."""

    def __init__(self, pair: Any, **options: Any) -> None:
        self._pair = pair
        self.down = threading.Event()
        self.frr = ManagedFrr(pair.layout, self.down.set, **options)

    def run(self, name: str, *arguments: Any) -> Any:
        return self._pair.node.run(getattr(self.frr, name), *arguments)

    def close(self) -> None:
        self.run("close")


@pytest.mark.parametrize("daemon", ["bgpd", "zebra", "bfdd"])
def test_a_killed_daemon_costs_no_route(lab: Any, pair: Any, daemon: str) -> None:
    pair.open_router(bfd=True)
    with closing(Agent(pair)) as agent:
        boot = lab.boot("node", bfd=True)
        assert agent.run("open", boot) is Opened.STARTED
        pair.await_routes()
        lab.until(lambda: [each.state for each in agent.run("summary").bfd] == ["up"], "BFD is up")
        before = lab.alive(pair.layout)
        with (
            closing(lab.RouteMonitor(pair.node)) as here,
            closing(lab.RouteMonitor(pair.router)) as there,
        ):
            killed = time.clock_gettime(time.CLOCK_BOOTTIME)
            os.kill(lab.pid_of(pair.layout, daemon), signal.SIGKILL)
            assert agent.down.wait(lab.DEADLINE_S)
            # All have gone with the one, before the peer's BFD can have noticed.
            lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
            with pytest.raises(DaemonsDownError, match=daemon):
                agent.run("running")
            agent.run("restart", boot)
            after = lab.alive(pair.layout)
            assert set(after) == set(before)
            assert all(len(pids) == 1 for pids in after.values())
            assert all(after[name] != before[name] for name in after)
            times = [lab.started(pair.layout, name) for name in ("zebra", "bfdd", "bgpd")]
            assert times == sorted(times)
            # Not before the router's BFD has noticed: see frr_detection.
            assert times[2] > (killed + lab.BFD_S) * os.sysconf("SC_CLK_TCK")
            lab.until(
                lambda: [each.is_established for each in agent.run("summary").sessions] == [True],
                "the session is established anew",
            )
            pair.await_routes()
            lab.until(
                lambda: [each.received for each in agent.run("summary").sessions] == [1],
                "the router's prefix is heard again",
            )
            assert here.deleted() == []
            assert there.deleted() == []


# An agent of its own, to be killed: it starts FRR in the network namespace it is started in.
_AGENT = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import frr_lab
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_process import Layout
frr = ManagedFrr(Layout(run_dir=sys.argv[2]), lambda: None)
print(frr.open(frr_lab.boot("node", bfd=True)).value, flush=True)
threading.Event().wait()
"""


def start_agent(lab: Any, pair: Any) -> "subprocess.Popen[str]":
    """A process with an adapter whose FRR runs."""

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", _AGENT, os.path.dirname(lab.__file__), pair.layout.run_dir],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    found: subprocess.Popen[str] = pair.node.run(start)
    return found


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_agent_adopts_what_the_last_one_started(
    lab: Any, pair: Any, signalled: signal.Signals
) -> None:
    pair.open_router(bfd=True)
    process = start_agent(lab, pair)
    try:
        assert first_line(process) == "started"
        pair.await_routes()
        before = lab.alive(pair.layout)
        with (
            closing(lab.RouteMonitor(pair.node)) as here,
            closing(lab.RouteMonitor(pair.router)) as there,
        ):
            # To its whole process group, as a terminal or a shell would.
            os.killpg(process.pid, signalled)
            process.wait(lab.DEADLINE_S)
            assert lab.alive(pair.layout) == before
            with closing(Agent(pair)) as agent:
                boot = lab.boot("node", bfd=True)
                assert agent.run("open", boot) is Opened.ADOPTED
                assert lab.alive(pair.layout) == before
                assert f"network {lab.PODS}" in agent.run("running")["bgpd"]
                commands = [f"router bgp {lab.NODE_AS}", "address-family ipv4 unicast"]
                results = agent.run("apply", {"bgpd": [*commands, "network 192.0.3.0/24"]})
                assert not any(each.is_failed for each in results["bgpd"])
                lab.until(
                    lambda: "192.0.3.0/24" in pair.learned(pair.router), "the router hears of it"
                )
                [session] = pair.router.run(pair.far.summary).sessions
                assert (session.established, session.dropped) == (1, 0)
                assert here.deleted() == []
                assert there.deleted() == []
                # What is adopted is watched as well: its end is the end of all.
                os.kill(before["zebra"][0], signal.SIGKILL)
                assert agent.down.wait(lab.DEADLINE_S)
                lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
    finally:
        kill(process)


def test_a_restart_of_one_s_own_and_the_end_of_everything_cost_no_route(
    lab: Any, pair: Any
) -> None:
    """What a change of the router id does, and then what a container does that is ended."""
    pair.open_router(bfd=True)
    boot = lab.boot("node", bfd=True)

    def await_session(agent: Agent) -> None:
        lab.until(
            lambda: [each.received for each in agent.run("summary").sessions] == [1],
            "the router's prefix is heard",
        )
        lab.until(lambda: [each.state for each in agent.run("summary").bfd] == ["up"], "BFD is up")

    with ExitStack() as stack:
        first = stack.enter_context(closing(Agent(pair)))
        first.run("open", boot)
        pair.await_routes()
        await_session(first)
        here = stack.enter_context(closing(lab.RouteMonitor(pair.node)))
        there = stack.enter_context(closing(lab.RouteMonitor(pair.router)))
        first.run("restart", boot)
        await_session(first)
        first.close()
        for daemon, [pid] in lab.alive(pair.layout).items():
            assert pid == lab.pid_of(pair.layout, daemon)
            os.kill(pid, signal.SIGKILL)
        lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
        second = stack.enter_context(closing(Agent(pair)))
        assert second.run("open", boot) is Opened.STARTED
        await_session(second)
        assert here.deleted() == []
        assert there.deleted() == []


@pytest.mark.parametrize("daemon", ["bgpd", "zebra", "bfdd"])
def test_what_is_not_whole_is_restarted_not_adopted(lab: Any, pair: Any, daemon: str) -> None:
    """A daemon dies while there is no agent."""
    pair.open_router(bfd=True)
    process = start_agent(lab, pair)
    try:
        assert first_line(process) == "started"
        pair.await_routes()
        before = lab.alive(pair.layout)
        with closing(lab.RouteMonitor(pair.node)) as here:
            process.kill()
            process.wait()
            os.kill(before[daemon][0], signal.SIGKILL)
            lab.until(lambda: daemon not in lab.alive(pair.layout), "it has ended")
            with closing(Agent(pair)) as agent:
                assert agent.run("open", lab.boot("node", bfd=True)) is Opened.STARTED
                after = lab.alive(pair.layout)
                assert {name: len(pids) for name, pids in after.items()} == dict.fromkeys(before, 1)
                assert not any(after[name] == before[name] for name in before)
                lab.until(
                    lambda: [each.received for each in agent.run("summary").sessions] == [1],
                    "the router's prefix is heard again",
                )
                assert here.deleted() == []
    finally:
        kill(process)


def test_a_pid_file_that_names_somebody_else_harms_nobody(lab: Any, pair: Any) -> None:
    with closing(Agent(pair)) as first:
        first.run("open", lab.boot("node"))
        before = lab.alive(pair.layout)
    other = subprocess.Popen(["sleep", "1000"])
    try:
        lab.write_text(pair.layout.path("bgpd", "pid"), f"{other.pid}\n")
        with closing(Agent(pair)) as second:
            assert second.run("open", lab.boot("node")) is Opened.STARTED
            after = lab.alive(pair.layout)
            assert {name: len(pids) for name, pids in after.items()} == {"zebra": 1, "bgpd": 1}
            assert after["bgpd"] != before["bgpd"]
            assert lab.pid_of(pair.layout, "bgpd") == after["bgpd"][0]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_of_two_bgpd_none_is_adopted_and_one_is_left(lab: Any, pair: Any) -> None:
    boot = lab.boot("node")
    with closing(Agent(pair)) as first:
        first.run("open", boot)
    # Without its pid file, nothing but its command line tells of the first one.
    os.unlink(pair.layout.path("bgpd", "pid"))
    second = pair.node.run(
        lambda: subprocess.Popen(
            pair.layout.command("bgpd", boot), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    try:
        lab.until(lambda: len(lab.alive(pair.layout)["bgpd"]) == 2, "there are two")
        with closing(Agent(pair)) as agent:
            agent.run("open", boot)
            assert {name: len(pids) for name, pids in lab.alive(pair.layout).items()} == {
                "zebra": 1,
                "bgpd": 1,
            }
            assert agent.run("running")
    finally:
        second.kill()
        second.wait()


def test_daemons_of_a_directory_of_the_same_name_elsewhere_are_left_alone(
    lab: Any, pair: Any
) -> None:
    """As in another container, where this one sees the processes of all."""
    boot = lab.boot("node")
    path = pair.layout.run_dir
    other = pair.router.run(
        lambda: subprocess.Popen(
            [
                *("unshare", "--mount", "sh", "-ec"),
                f'mount -t tmpfs none {path}; chown frr:frr {path}; exec "$@"',
                *("sh", *pair.layout.command("zebra", boot)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    try:
        lab.until(
            lambda: os.path.exists(f"/proc/{other.pid}/root{path}/zebra.vty"), "the other one runs"
        )
        assert lab.alive(pair.layout) == {}
        with closing(Agent(pair)) as agent:
            assert agent.run("open", boot) is Opened.STARTED
            agent.run("restart", boot)
            assert other.pid not in lab.alive(pair.layout)["zebra"]
            agent.run("stop")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_daemon_without_its_socket_is_found_nevertheless(lab: Any, pair: Any) -> None:
    with closing(Agent(pair)) as first:
        first.run("open", lab.boot("node"))
    before = lab.alive(pair.layout)
    for kind in ("vty", "pid"):
        os.unlink(pair.layout.path("zebra", kind))
    with closing(Agent(pair)) as second:
        assert second.run("open", lab.boot("node")) is Opened.STARTED
        after = lab.alive(pair.layout)
        assert {name: len(pids) for name, pids in after.items()} == {"zebra": 1, "bgpd": 1}
        assert not any(after[name] == before[name] for name in after)


def test_daemons_of_another_command_line_or_network_are_not_adopted(lab: Any, pair: Any) -> None:
    boot = lab.boot("node")
    with closing(Agent(pair)) as first:
        first.run("open", boot)
        before = lab.alive(pair.layout)
    elsewhere = ManagedFrr(pair.layout, lambda: None)
    assert pair.router.run(elsewhere.open, boot) is Opened.STARTED
    pair.router.run(elsewhere.close)
    between = lab.alive(pair.layout)
    assert before["bgpd"] != between["bgpd"]
    with closing(Agent(pair)) as agent:
        other = Boot(files=boot.files, listen=(lab.address(lab.NODE),), port=1790)
        assert agent.run("open", other) is Opened.STARTED
        assert {name: len(pids) for name, pids in lab.alive(pair.layout).items()} == {
            "zebra": 1,
            "bgpd": 1,
        }
        lab.until(
            lambda: f"{lab.NODE}:1790" in pair.node.run(lab.sh, "ss -Hltn"), "bgpd listens there"
        )
        assert ":179 " not in pair.node.run(lab.sh, "ss -Hltn")


@pytest.mark.parametrize("daemon", ["bgpd", "zebra"])
def test_a_daemon_that_hangs_is_ended(lab: Any, pair: Any, daemon: str) -> None:
    pair.open_router()
    with closing(Agent(pair, rhythm=Rhythm(probe_s=0.2, hung_s=6.0, log_s=0.2))) as agent:
        boot = lab.boot("node")
        agent.run("open", boot)
        pair.await_routes()
        with closing(lab.RouteMonitor(pair.node)) as here:
            os.kill(lab.pid_of(pair.layout, daemon), signal.SIGSTOP)
            assert agent.down.wait(lab.DEADLINE_S)
            with pytest.raises(DaemonsDownError, match=f"{daemon} has not answered for 6 s"):
                agent.run("running")
            agent.run("restart", boot)
            lab.until(
                lambda: [each.received for each in agent.run("summary").sessions] == [1],
                "the router's prefix is heard again",
            )
            assert here.deleted() == []


def test_a_batch_to_a_daemon_that_hangs_is_given_up(lab: Any, pair: Any) -> None:
    with closing(Agent(pair, timeout_s=3.0)) as agent:
        agent.run("open", lab.boot("node"))
        agent.run("running")
        os.kill(lab.pid_of(pair.layout, "bgpd"), signal.SIGSTOP)
        with pytest.raises(VtyLostError, match="did not answer in time"):
            agent.run("running")
        os.kill(lab.pid_of(pair.layout, "bgpd"), signal.SIGCONT)
        # The next one comes over a new connection: no late answer is taken for its own.
        lab.until(lambda: "router bgp" in _shown_by(agent), "it answers again")


def _shown_by(agent: Agent) -> str:
    try:
        return str(agent.run("running")["bgpd"])
    except VtyLostError:
        return ""


def test_what_dies_again_and_again_is_started_ever_more_slowly(
    lab: Any, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is told is the time left: it passes as we say.
    now = [time.monotonic()]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr("kube_router_py.kernel.frr_daemons.time", clock)
    patience = Patience(first_wait_s=0.5, last_wait_s=1.0)
    with closing(Agent(pair, patience=patience)) as agent:
        boot = lab.boot("node")
        agent.run("open", boot)
        for wait_s in (0.0, 0.5, 1.0, 1.0):
            agent.down.clear()
            killed = time.monotonic()
            os.kill(lab.pid_of(pair.layout, "bgpd"), signal.SIGKILL)
            refused = lab.until(lambda: _refused(agent), "the end is noticed")
            assert refused.wait_s == pytest.approx(wait_s)
            if wait_s > 0:
                with pytest.raises(DaemonsDownError):
                    agent.run("restart", boot)
            assert agent.down.wait(lab.DEADLINE_S)
            assert time.monotonic() >= killed + wait_s
            now[0] += wait_s
            agent.run("restart", boot)


def _refused(agent: Agent) -> DaemonsDownError | None:
    try:
        agent.run("summary")
    except DaemonsDownError as error:
        return error
    except KernelError:  # nothing is known of its end yet
        return None
    return None


def test_a_start_that_fails_says_why_and_leaves_nothing(
    lab: Any, pair: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    programs = tmp_path_factory.mktemp("frr")
    for daemon in ("zebra", "bfdd"):
        (programs / daemon).symlink_to(f"/usr/lib/frr/{daemon}")
    broken = programs / "bgpd"
    broken.write_text("#!/bin/sh\necho privs_init: initial cap_set_proc failed\nexit 1\n")
    broken.chmod(0o755)
    layout = Layout(run_dir=pair.layout.run_dir, programs=str(programs))
    frr = ManagedFrr(layout, lambda: None)
    with pytest.raises(KernelError, match=r"bgpd exited with 1 .*initial cap_set_proc failed"):
        pair.node.run(frr.open, lab.boot("node"))
    assert lab.alive(layout) == {}
    broken.unlink()
    broken.symlink_to("/usr/lib/frr/bgpd")
    assert pair.node.run(frr.open, lab.boot("node")) is Opened.STARTED
    pair.node.run(frr.close)


def test_where_bgpd_cannot_listen_it_is_not_tried(lab: Any, pair: Any) -> None:
    def occupied() -> socket.socket:
        return socket.create_server((lab.NODE, 1790))

    with closing(Agent(pair)) as agent, pair.node.run(occupied):
        boot = lab.boot("node")
        agent.run("open", boot)
        before = lab.alive(pair.layout)
        for address, port, reason in (
            ("10.1.2.3", 179, "10.1.2.3 port 179: Cannot assign requested address"),
            (lab.NODE, 1790, "port 1790: Address already in use"),
        ):
            other = Boot(files=boot.files, listen=(lab.address(address),), port=port)
            with pytest.raises(KernelError, match=reason):
                agent.run("open", other)
        with pytest.raises(KernelError, match="Address already in use"):
            agent.run("restart", Boot(files=boot.files, port=1790))
        assert lab.alive(pair.layout) == before
        assert agent.run("running")
        # Its own port is no obstacle to itself.
        own = Boot(files=boot.files, listen=(lab.address(lab.NODE),))
        assert agent.run("open", own) is Opened.STARTED
        agent.run("restart", own)
        agent.run("restart", Boot(files=boot.files, port=0))
        assert ":179 " not in pair.node.run(lab.sh, "ss -Hltn")


def test_stop_takes_the_routes_back(lab: Any, pair: Any) -> None:
    pair.open_router()
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        pair.await_routes()
        agent.run("stop")
        assert lab.alive(pair.layout) == {}
        assert pair.learned(pair.node) == set()
        lab.until(lambda: pair.learned(pair.router) == set(), "the peer has no route left")


@pytest.mark.parametrize("is_alone", [True, False])
def test_stop_removes_what_daemons_that_were_killed_had_learned(
    lab: Any, pair: Any, is_alone: bool
) -> None:
    """As in a DaemonSet, where they end with the container, before the cleanup."""
    pair.open_router()
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        pair.await_routes()
        pids = [lab.pid_of(pair.layout, daemon) for daemon in ("zebra", "bgpd")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
    assert pair.learned(pair.node) == {lab.OUTSIDE}
    with ExitStack() as stack:
        if not is_alone:  # these routes may be those of that one

            def listen() -> socket.socket:
                return socket.create_server(("", 179))

            stack.enter_context(closing(pair.node.run(listen)))
        told = nullcontext() if is_alone else pytest.raises(KernelError, match="1 routes learned")
        with closing(Agent(pair)) as agent, told:
            agent.run("stop")
        assert pair.learned(pair.node) == (set() if is_alone else {lab.OUTSIDE})
    # Once only: what comes afterwards is not ours.
    pair.node.run(lab.sh, "ip route add 198.51.100.0/24 dev eth0 proto bgp metric 20")
    with closing(Agent(pair)) as agent:
        agent.run("stop")
    assert "198.51.100.0/24" in pair.learned(pair.node)


def test_learned_routes_come_back_after_a_foreign_flush_and_a_flap(lab: Any, pair: Any) -> None:
    pair.open_router()
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        pair.await_routes()
        pair.node.run(lab.sh, "ip route flush proto bgp")
        lab.until(lambda: lab.OUTSIDE in pair.learned(pair.node), "zebra puts its route again")
        # Not even the session ends.
        (session,) = agent.run("summary").sessions
        assert (session.established, session.dropped) == (1, 0)
        pair.node.run(lab.sh, "ip link set eth0 down")
        lab.until(lambda: pair.learned(pair.node) == set(), "the kernel drops what led there")
        pair.node.run(lab.sh, "ip link set eth0 up")
        pair.await_routes()


def test_a_bad_line_of_a_file_costs_that_line_and_tells_no_key(
    lab: Any, pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    boot = lab.boot("node")
    text = boot.files["bgpd"].replace(
        " address-family", f" neighbor {lab.ROUTER} password hush hush\n address-family", 1
    )
    with caplog.at_level(logging.DEBUG), closing(Agent(pair)) as agent:
        agent.run("open", Boot(files={**boot.files, "bgpd": text}))
        assert f"network {lab.PODS}" in agent.run("running")["bgpd"]
        lab.until(lambda: "on config line" in caplog.text, "bgpd's complaint is forwarded")
    assert "password ***" in caplog.text
    assert "hush" not in caplog.text


def test_thousands_of_networks_are_one_batch(lab: Any, pair: Any) -> None:
    pair.open_router()
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        networks = [f"network 10.{100 + at // 250}.{at % 250}.0/24" for at in range(5000)]
        head = [f"router bgp {lab.NODE_AS}", "address-family ipv4 unicast"]
        results = agent.run("apply", {"bgpd": [*head, *networks]})["bgpd"]
        assert len(results) == 5002
        assert not any(each.is_failed for each in results)
        shown = agent.run("running")["bgpd"].split("\n")
        assert {line.strip() for line in shown} >= set(networks)
        lab.until(
            lambda: (
                [each.received for each in pair.router.run(pair.far.summary).sessions] == [5001]
            ),
            "the router has heard of all",
        )


def test_what_frr_refuses_with_code_0_is_a_failure(lab: Any, pair: Any) -> None:
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        name = "n" * 200
        [result] = agent.run("apply", {"bgpd": [f"ip prefix-list {name} seq 5 permit any"]})["bgpd"]
        assert result.code == 0
        assert result.is_failed
        assert name not in agent.run("running")["bgpd"]


def test_daemons_of_somebody_else_are_configured_not_run(lab: Any, pair: Any) -> None:
    with ExitStack() as stack:
        theirs = stack.enter_context(closing(Agent(pair)))
        ours = stack.enter_context(closing(ExternalFrr(pair.layout.run_dir)))
        boot = lab.boot("node")
        with pytest.raises(DaemonsDownError, match="--vty_socket"):
            ours.open(boot)
        theirs.run("open", boot)
        before = lab.alive(pair.layout)
        assert ours.open(boot) is Opened.ADOPTED
        assert ours.open(boot) is Opened.KEPT
        head = [f"router bgp {lab.NODE_AS}", "address-family ipv4 unicast"]
        ours.apply({"bgpd": [*head, "network 192.0.3.0/24"]})
        assert "network 192.0.3.0/24" in ours.running()["bgpd"]
        assert [each.neighbor for each in ours.summary().sessions] == [lab.ROUTER]
        with pytest.raises(KernelError, match="run by somebody else"):
            ours.restart(boot)
        ours.stop()
        assert lab.alive(pair.layout) == before
        # Its owner restarts it: the next call finds the new one, and of that nothing is known.
        theirs.run("restart", boot)
        assert ours.open(boot) is Opened.ADOPTED
        assert ours.open(boot) is Opened.KEPT
        assert "network 192.0.3.0/24" not in ours.running()["bgpd"]


def test_a_node_that_lacks_something_is_told_what(lab: Any, pair: Any) -> None:
    boot = lab.boot("node")
    for layout, remedy in (
        (Layout(run_dir=pair.layout.run_dir, programs="/nowhere"), "install the package frr"),
        (Layout(run_dir="/run/" + "x" * 120), "too long"),
        (Layout(run_dir="/proc/nowhere"), "mount a writable directory"),
    ):
        frr = ManagedFrr(layout, lambda: None)
        with pytest.raises(PreflightError, match=remedy):
            pair.node.run(frr.open, boot)


def test_files_are_for_frr_alone(lab: Any, pair: Any) -> None:
    with closing(Agent(pair)) as agent:
        agent.run("open", lab.boot("node"))
        status = os.stat(pair.layout.path("bgpd", "conf"))
        assert (status.st_uid, status.st_mode & 0o777) == (lab.frr_user(), 0o640)
        client = VtyClient(pair.layout.path("bgpd", "vty"))
        assert client.show("show version").text.startswith("FRRouting 8")
        client.close()
