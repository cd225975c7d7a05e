"""Parts of running FRR that need no FRR: its logs, its summaries, times and capabilities."""

import logging
import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel import frr_summary
from kube_router_py.kernel.frr_detection import detection_s
from kube_router_py.kernel.frr_log import DaemonLog
from kube_router_py.kernel.frr_preflight import check_version, lacking_capabilities
from kube_router_py.kernel.frr_process import Layout, cut_log, start, survivors
from kube_router_py.kernel.ports_frr import BfdState, Boot, CommandResult, SessionState
from kube_router_py.observe.log_fields import values

# As FRR 8.4 prints it, shortened.
_SUMMARY = """{
"ipv4Unicast":{"routerId":"10.99.0.1","as":64512,"ribCount":3,"peerCount":2,"peers":{
  "eth0":{"remoteAs":65001,"state":"Idle (Admin)","peerState":"Admin","peerUptimeMsec":7000},
  "10.99.0.9":{"hostname":"vm","remoteAs":65000,"localAs":64512,"peerUptime":"00:00:02",
   "peerUptimeMsec":2000,"pfxRcd":1,"pfxSnt":2,"state":"Established","peerState":"OK",
   "connectionsEstablished":4,"connectionsDropped":3,"idType":"ipv4"}},"failedPeers":1},
"ipv6Unicast":{"ribCount":0,"peers":{}},
"l2VpnEvpn":{"unknown":[1]}}
"""
_BFD = """[{"multihop":false,"peer":"10.99.0.9","local":"10.99.0.1","status":"up","uptime":5,
 "detect-multiplier":3,"transmit-interval":300,"remote-receive-interval":1000},
 {"peer":"10.99.0.2","status":"down","downtime":9,"detect-multiplier":5,"transmit-interval":50}]"""


def reply(text: str, code: int = 0) -> CommandResult:
    return CommandResult("show", code, text)


def test_a_summary_has_a_state_for_each_neighbor_and_family() -> None:
    sessions, routes = frr_summary.sessions(reply(_SUMMARY))
    assert sessions == (
        SessionState("10.99.0.9", 4, 65000, "Established", 2.0, 1, 2, 4, 3),
        SessionState("eth0", 4, 65001, "Idle (Admin)", 0.0, 0, 0, 0, 0),
    )
    assert routes == {4: 3, 6: 0}


@pytest.mark.parametrize(
    "nothing", [reply("{}\n", 1), reply("{}\n"), reply("% BGP instance not found\n")]
)
def test_without_a_router_there_are_no_sessions(nothing: CommandResult) -> None:
    assert frr_summary.sessions(nothing) == ((), {})


def test_bfd_sessions_are_told() -> None:
    assert frr_summary.bfd_sessions(reply(_BFD)) == (
        BfdState("10.99.0.2", "down", 0.0),
        BfdState("10.99.0.9", "up", 5.0),
    )


def test_bfd_names_a_neighbor_behind_an_interface_as_bgp_does() -> None:
    text = """[{"peer":"fe80::2","interface":"eth1","status":"up","uptime":1},
     {"peer":"10.99.0.9","interface":"eth0","status":"up","uptime":2}]"""
    assert frr_summary.bfd_sessions(reply(text)) == (
        BfdState("10.99.0.9", "up", 2.0),
        BfdState("eth1", "up", 1.0),
    )


@pytest.mark.parametrize("text", ["", "what", '{"ipv4Unicast":{"peers":[]}}'])
def test_what_is_no_summary_is_an_error(text: str) -> None:
    with pytest.raises(KernelError):
        frr_summary.sessions(reply(text))
    with pytest.raises(KernelError):
        frr_summary.bfd_sessions(reply(text))


@pytest.mark.parametrize(
    ("file", "peers", "expected_s"),
    [
        ("", "", 0.9),
        ("bfd\n profile a\n  detect-multiplier 4\n  transmit-interval 500\n", "", 2.0),
        # The slowest interval and the largest multiplier may meet in one session.
        ("  transmit-interval 50\n  transmit-interval 1000\n  detect-multiplier 5", "", 5.0),
        ("", _BFD, 3.0),
        ("  transmit-interval 2000\n", _BFD, 6.0),
        ("", "% nonsense", 0.9),
        ("  transmit-interval 60000\n  detect-multiplier 255\n", "", 20.0),
    ],
)
def test_how_long_peers_take_to_notice(file: str, peers: str, expected_s: float) -> None:
    assert detection_s(file, peers) == pytest.approx(expected_s + 0.3)


def test_capabilities_are_told_by_name() -> None:
    status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{:016x}\n"
    assert lacking_capabilities(status.format(0x1FFFFFFFFFF)) == []
    assert lacking_capabilities(status.format(0x1FFFFFFFFFF & ~(1 << 21))) == ["CAP_SYS_ADMIN"]
    # Docker's usual set: neither NET_ADMIN nor SYS_ADMIN.
    assert lacking_capabilities(status.format(0xA80425FB)) == ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]


def test_command_lines() -> None:
    layout = Layout(run_dir="/run/x", retain_s=90)
    boot = Boot(files={}, listen=(ip_address("10.0.0.1"), ip_address("fd00::1")), port=1790)
    bgpd = " ".join(layout.command("bgpd", boot))
    assert bgpd.startswith("/usr/lib/frr/bgpd -f /run/x/bgpd.conf -i /run/x/bgpd.pid ")
    assert bgpd.endswith("-p 1790 -l 10.0.0.1 -l fd00::1")
    assert layout.command("zebra", boot)[-3:] == ("-r", "-K", "90")
    assert layout.command("bfdd", boot)[-2:] == ("--bfdctl", "/run/x/bfdd.sock")
    for daemon in ("zebra", "bfdd", "bgpd"):
        command = " ".join(layout.command(daemon, boot))
        assert "--vty_socket /run/x -z /run/x/zserv.api" in command
        assert "-P 0" in command  # no control over TCP
        assert " -d" not in command


def test_nobody_else_s_process_survives_from_us(tmp_path: Path) -> None:
    assert survivors(Layout(run_dir=str(tmp_path)), ("zebra", "bgpd", "bfdd")) == []


def test_logs_are_forwarded_by_line_once_and_without_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(run_dir=str(tmp_path))
    path = tmp_path / "bgpd.log"
    path.write_text("2026/11/21 12:42:04 BGP: [AAAAA-BBBBB] of an earlier life\n")
    log = DaemonLog("bgpd", layout)

    def write(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    caplog.set_level(logging.DEBUG)
    write(
        "2026/11/21 12:42:05 BGP: [T83RR-8SM5G] bgpd 8.4.4 starting\n2026/11/21 12:42:05 BGP: [SH"
    )
    assert log.forward() == ["bgpd 8.4.4 starting"]
    write("WNK-NWT5S][EC 100663304] No such command on config line 8: password a b\nprivs_init\n")
    assert log.forward() == ["No such command on config line 8: password ***", "privs_init"]
    write("2026/11/21 12:42:06.123 BGP: [M59KS-A3ZXZ] %ADJCHANGE: neighbor 10.99.0.9 Up\n")
    # What zebra says when another one ends, which is told of elsewhere.
    write("2026/11/21 12:42:07 ZEBRA: [X-Y][EC 4043309121] Client 'bgp' encountered an error and\n")
    log.forward()
    assert log.forward() == []
    said = [(each.levelname, *values(each.msg, each.args)) for each in caplog.records]
    bgpd = ("daemon", "bgpd")
    assert said == [
        ("DEBUG", bgpd, ("text", "bgpd 8.4.4 starting")),
        ("WARNING", bgpd, ("text", "No such command on config line 8: password ***")),
        ("DEBUG", bgpd, ("text", "privs_init")),
        ("INFO", bgpd, ("text", "%ADJCHANGE: neighbor 10.99.0.9 Up")),
        ("DEBUG", bgpd, ("text", "Client 'bgp' encountered an error and")),
    ]


def test_a_long_log_is_cut_when_it_has_been_read(tmp_path: Path) -> None:
    path = tmp_path / "bgpd.log"
    log = DaemonLog("bgpd", Layout(run_dir=str(tmp_path)))
    line = "x" * 99 + "\n"
    told = 0
    with path.open("a") as file:
        for _ in range(30):
            file.write(line * 1000)
            file.flush()
            while lines := log.forward():
                told += len(lines)
            assert os.stat(path).st_size < 2 << 20
        file.write("last\n")
    assert told == 30_000
    assert log.forward() == ["last"]
    # Somebody else may cut it as well.
    path.write_text("anew\n")
    os.truncate(path, 5)
    assert log.forward() == ["anew"]


def test_without_a_log_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert DaemonLog("bgpd", Layout(run_dir=str(tmp_path))).forward() == []


def test_a_log_that_is_a_link_is_not_cut(tmp_path: Path) -> None:
    layout = Layout(run_dir=str(tmp_path))
    other = tmp_path / "other"
    other.write_text("precious\n")
    (tmp_path / "bgpd.log").symlink_to(other)
    cut_log(layout, "bgpd")
    with pytest.raises(KernelError, match="cannot be started"):
        start("bgpd", layout, Boot(files={}))
    assert other.read_text() == "precious\n"
    (tmp_path / "zebra.log").write_text("told\n")
    cut_log(layout, "zebra")
    assert (tmp_path / "zebra.log").read_text() == ""
    cut_log(layout, "bfdd")
    assert not (tmp_path / "bfdd.log").exists()


@pytest.mark.parametrize("said", ["zebra version 8.4.4\nCopyright", "!\nfrr version 9.1\n", ""])
def test_versions_of_frr_that_may_do(said: str) -> None:
    check_version(said)


@pytest.mark.parametrize("said", ["zebra version 10.3", "Building...\n!\nfrr version 10.0.1\n!"])
def test_versions_of_frr_that_take_their_configuration_from_elsewhere(said: str) -> None:
    with pytest.raises(PreflightError, match=r"FRR 10\..* is not supported: .*; run FRR 8.4"):
        check_version(said)
