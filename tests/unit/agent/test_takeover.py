"""Beside kube-proxy, and after it: what the agent waits for, and what it clears away."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel import kube_router
from kube_router_py.kernel.kube_proxy import Step, is_chain, is_set, running_mode
from kube_router_py.kernel.modules import advice, missing_modules
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.takeover import Takeover

NODE = ThisNode("node1")
NOTHING = Changes(frozenset(), frozenset())


class Rig:
    """A takeover whose surroundings the test plays."""

    def __init__(self, mode: str | None, *failing: str) -> None:
        self.mode, self.failing, self.now_s = mode, set(failing), 0.0
        self.left = ["chains", "link"]
        self.looks = 0
        self.takeover = Takeover("node1", self._look, self._steps, lambda: self.now_s)

    def _look(self) -> str | None:
        self.looks += 1
        return self.mode

    def _steps(self) -> Iterator[Step]:
        for each in [*self.left]:
            yield each, lambda each=each: self._remove(each)  # type: ignore[misc]

    def _remove(self, what: str) -> None:
        if what in self.failing:
            raise KernelError(f"{what} is busy")
        self.left.remove(what)

    def turn(self, *, full: bool = True) -> list[str]:
        found = self.takeover.follow(Desired(), NODE, NOTHING, full=full)
        return [problem.reason for problem in found]


@pytest.mark.parametrize("mode", ["ipvs", "unknown", "userspace"])
def test_the_agent_waits_for_a_kube_proxy_that_would_fight(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(mode)
    with caplog.at_level("ERROR"):
        assert not rig.takeover.may_program()
        assert not rig.takeover.may_program()
    assert rig.looks == 1
    assert caplog.text.count("delete daemonset kube-proxy") == 1
    rig.mode, rig.now_s = None, 6.0
    assert rig.takeover.may_program()
    assert rig.turn() == []
    assert rig.left == []


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_beside_another_kube_proxy_everything_is_programmed_and_nothing_removed(mode: str) -> None:
    rig = Rig(mode)
    assert rig.takeover.may_program()
    (reason,) = rig.turn()
    assert f"mode {mode}" in reason
    assert rig.left == ["chains", "link"]
    rig.mode, rig.now_s = None, 300.0
    assert rig.turn(full=False) != []  # only a full turn knows that all is programmed
    assert rig.left == ["chains", "link"]
    assert rig.turn() == []
    assert rig.left == []


def test_nothing_goes_before_the_rules_stand_that_take_its_place() -> None:
    rig = Rig(None)
    rig.takeover.is_settled = lambda: False
    rig.turn()
    assert rig.left == ["chains", "link"]
    rig.takeover.is_settled = lambda: True
    rig.turn()
    assert rig.left == []


def test_what_cannot_be_removed_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(None, "chains")
    with caplog.at_level("WARNING"):
        rig.turn()
    assert rig.left == ["chains"]
    assert "chains is busy" in caplog.text
    rig.failing.clear()
    rig.turn()
    assert rig.left == []
    rig.left = ["somebody else's"]
    rig.now_s = 600.0
    assert rig.turn() == []
    assert rig.left == ["somebody else's"]  # and then it is over


@pytest.mark.parametrize(
    ("mode", "does"),
    [("iptables", "come before the agent's own"), ("ipvs", "deletes what the agent makes")],
)
def test_a_kube_proxy_that_comes_back_is_told_of_and_cleared_away_again(
    mode: str, does: str
) -> None:
    rig = Rig(None)
    assert rig.takeover.may_program()
    assert rig.turn() == []
    rig.mode, rig.left, rig.now_s = mode, ["chains"], 300.0
    (reason,) = rig.turn()
    assert does in reason
    assert rig.takeover.may_program()  # Services are not given up
    assert rig.left == ["chains"]
    rig.mode, rig.now_s = None, 600.0
    assert rig.turn() == []
    assert rig.left == []


@pytest.mark.parametrize(
    ("table", "name", "is_kube_proxys"),
    [
        ("nat", "KUBE-SERVICES", True),
        ("nat", "KUBE-SVC-ERIFXISQEP7F7OF4", True),
        ("nat", "KUBE-SEP-ERIFXISQEP7F7OF4", True),
        ("nat", "KUBE-EXT-ERIFXISQEP7F7OF4", True),
        ("nat", "KUBE-NODEPORTS", True),
        ("nat", "KUBE-POSTROUTING", True),
        ("nat", "KUBE-NODE-PORT", True),
        ("filter", "KUBE-SERVICES", True),
        ("filter", "KUBE-PROXY-FIREWALL", True),
        ("filter", "KUBE-IPVS-FILTER", True),
        ("mangle", "KUBE-PROXY-CANARY", True),
        ("filter", "KUBE-FIREWALL", False),
        ("mangle", "KUBE-KUBELET-CANARY", False),
        ("mangle", "KUBE-IPTABLES-HINT", False),
        ("nat", "KUBE-KUBELET-CANARY", False),
        ("nat", "KUBE-ROUTER-MASQ", False),
        ("filter", "KUBE-ROUTER-SERVICES", False),
        ("filter", "KUBE-NWPLCY-COMMON", False),
        ("filter", "KUBE-POD-FW-ERIFXISQEP7F7OF4", False),
        ("raw", "KUBE-SERVICES", False),
        ("nat", "CNI-KUBE-SERVICES", False),
    ],
)
def test_whose_a_chain_is(table: str, name: str, is_kube_proxys: bool) -> None:
    assert is_chain(table, name) is is_kube_proxys


def test_the_chain_that_accepts_replies_stays_until_it_is_asked_for() -> None:
    assert is_chain("filter", "KUBE-FORWARD")
    assert not is_chain("filter", "KUBE-FORWARD", everything=False)


@pytest.mark.parametrize(
    ("name", "is_kube_proxys"),
    [
        ("KUBE-CLUSTER-IP", True),
        ("KUBE-6-CLUSTER-IP", True),
        ("KUBE-LOOP-BACK", True),
        ("KUBE-NODE-PORT-TCP", True),
        ("KUBE-NODE-PORT-LOCAL-SCTP-HASH", True),
        ("KUBE-LOAD-BALANCER-SOURCE-CIDR", True),
        ("KUBE-6-LOAD-BALANCER-SOURCE-CID", True),
        ("KUBE-SRC-ERIFXISQEP7F7OF4", False),
        ("kube-router-svip", False),
        ("MY-KUBE-CLUSTER-IP", False),
    ],
)
def test_whose_a_set_is(name: str, is_kube_proxys: bool) -> None:
    assert is_set(name) is is_kube_proxys


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture(params=["127.0.0.1", "::1"])
def metrics_port(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[str]]]:
    """kube-proxy's metrics port, on loopback of either family, and what it answers."""
    answer = ["ipvs"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_asked = self.path == "/proxyMode"
            self.send_response(200 if is_asked else 404)
            self.end_headers()
            self.wfile.write(answer[0].encode())

        def log_message(self, *arguments: Any) -> None:
            del arguments

    kind = Server6 if request.param == "::1" else http.server.ThreadingHTTPServer
    with kind((request.param, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1], answer
        server.shutdown()
        thread.join()


def processes(tmp_path: Path, **found: tuple[str, str]) -> Path:
    """/proc with these processes by number: command and arguments; all in one namespace."""
    namespace = tmp_path / "net"
    namespace.touch()
    for number, (comm, arguments) in {"thread-self": ("us", ""), **found}.items():
        place = tmp_path / number.removeprefix("p")
        (place / "ns").mkdir(parents=True)
        (place / "ns/net").hardlink_to(namespace)
        (place / "comm").write_text(f"{comm}\n")
        (place / "cmdline").write_text(arguments)
    return tmp_path


def test_the_mode_is_told_by_the_metrics_port(
    metrics_port: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, answer = metrics_port
    proc = processes(tmp_path)
    assert running_mode(port, proc) == "ipvs"
    answer[0] = "<html>something else has the port</html>"
    assert running_mode(port, proc) is None


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ("/usr/local/bin/kube-proxy\0--proxy-mode=iptables\0", "iptables"),
        ("kube-proxy\0--proxy-mode\0nftables\0", "nftables"),
        ("kube-proxy\0--config=/var/lib/kube-proxy/config.conf\0", "unknown"),
    ],
)
def test_a_process_is_found_where_the_port_is_silent(
    arguments: str, mode: str, tmp_path: Path
) -> None:
    proc = processes(tmp_path, p7=("kube-proxy", arguments), p8=("kubelet", ""))
    assert running_mode(1, proc) == mode


def test_a_kube_proxy_of_another_namespace_does_not_count(tmp_path: Path) -> None:
    proc = processes(tmp_path, p7=("kube-proxy", "kube-proxy"))
    (proc / "7/ns/net").unlink()
    (proc / "7/ns/net").touch()
    assert running_mode(1, proc) is None


def test_the_source_nat_of_kube_router_is_told_from_ours() -> None:
    theirs = (
        '-m comment --comment "" -m ipvs --vdir ORIGINAL --vmethod MASQ ! -s 10.244.1.0/24 '
        "! -d 10.244.1.0/24 -j SNAT --to-source 192.168.1.1 --random-fully"
    )
    chains = {
        "POSTROUTING": (
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-MASQ",
            theirs,
            "-s 10.0.0.0/8 -j SNAT --to-source 192.0.2.1",
        )
    }
    assert kube_router.source_nat(chains) == {"POSTROUTING": (theirs,)}
    assert kube_router.source_nat({}) == {}


def test_marks_of_kube_router_are_told_from_those_of_others() -> None:
    mark = "-d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark"
    clamp = (
        "-i kube-bridge -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440"
    )
    chains = {
        "PREROUTING": (
            f"{mark} 0x2a7b/0xffffffff",
            f"{mark} 0x2a7c/0xffffffff",  # no policy rule has this one
            f"{mark} 0x2a7b/0xffff",
            "-p tcp -j MARK --set-xmark 0x2a7b/0xffffffff",
            f"-s 10.96.0.9/32 {clamp}",
            f"-s 192.0.2.9/32 {clamp}",
            "-j KUBE-ROUTER-DSR",
        ),
        "OUTPUT": (f"{mark} 0x2a7b/0xffffffff",),
        "POSTROUTING": (f"{mark} 0x2a7b/0xffffffff",),
    }
    assert kube_router.direct_return(chains, [0x2A7B]) == {
        "PREROUTING": (f"{mark} 0x2a7b/0xffffffff", f"-s 10.96.0.9/32 {clamp}"),
        "OUTPUT": (f"{mark} 0x2a7b/0xffffffff",),
    }
    assert kube_router.direct_return(chains, []) == {}


def test_modules_are_looked_for_where_the_kernel_tells(tmp_path: Path) -> None:
    names = ("ip_vs", "dummy", "no_such_module_at_all")
    assert missing_modules(names, "1.2.3", tmp_path) == ()  # it does not tell what is built in
    directory = tmp_path / "lib/modules/1.2.3"
    directory.mkdir(parents=True)
    (directory / "modules.builtin").write_text("kernel/drivers/net/dummy.ko\n")
    (tmp_path / "sys/module/ip_vs").mkdir(parents=True)
    missing = missing_modules(names, "1.2.3", tmp_path)
    assert missing == ("no_such_module_at_all",)
    assert "modprobe -a ip_vs xt_set" in advice(["xt_set", "ip_vs"])
