"""The router outside: FRR, GoBGP or BIRD in the namespace ``router``, a BGP neighbor of every node.

It learns pods and Services, puts both into its kernel with as many ways side by side as there are,
and announces the client's network. GoBGP installs no routes itself: ``gobgp`` does.
"""

import asyncio
import logging
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.fabric import CLUSTER_ASN, OUTSIDE_NETS, ROUTER, ROUTER_ASN, Topology
from kube_router_py.lab.gobgp import POLL_S, POLL_SHARE, GobgpRoutes
from kube_router_py.lab.netns import Namespaces

_log = logging.getLogger(__name__)

KINDS = ("frr", "gobgp", "bird")
FRR = "/usr/lib/frr"
MAXIMUM_PATHS = 8
# Seconds. Not FRR's datacenter values: under emulation a busy daemon may be late.
KEEPALIVE_S, HOLD_S, CONNECT_S, RESTART_S = 20, 60, 2, 120
START_DEADLINE_S = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Daemon:
    """A program of the router; ``socket`` is there once it runs (none: nothing tells)."""

    name: str
    argv: tuple[str, ...]
    socket: str = ""


@dataclass(frozen=True)
class RouterPlan:
    """Files (by name in the run directory) and daemons in the order of their start.

    ``show``: a command that tells of the sessions in the router's own words.
    """

    files: tuple[tuple[str, str], ...]
    daemons: tuple[Daemon, ...]
    show: tuple[str, ...]


def compile_router(kind: str, topology: Topology, directory: str) -> RouterPlan:
    """The router of ``kind`` (frr, gobgp, bird). Pure."""
    peers = tuple(
        (f"{node.name}_{6 if ':' in address else 4}", address)
        for node in topology.nodes
        for address in node.addresses
    )
    networks = tuple(str(OUTSIDE_NETS[family]) for family in topology.families)
    # Also where there is no IPv4: it is a number only.
    router_id = "10.10.0.1"
    if kind == "bird":
        return RouterPlan(
            (("bird.conf", _bird(peers, networks, router_id)),),
            (
                Daemon(
                    "bird",
                    ("bird", "-f", "-c", f"{directory}/bird.conf", "-s", f"{directory}/bird.ctl"),
                    f"{directory}/bird.ctl",
                ),
            ),
            ("birdc", "-s", f"{directory}/bird.ctl", "show", "protocols"),
        )
    if kind == "gobgp":
        argv = ("gobgpd", "-f", f"{directory}/gobgpd.toml", "-t", "toml", "--pprof-disable")
        return RouterPlan(
            (("gobgpd.toml", _gobgp(peers, router_id)),),
            (Daemon("gobgpd", (*argv, "--api-hosts", "127.0.0.1:50051")),),
            ("gobgp", "neighbor"),
        )
    return RouterPlan(
        (("zebra.conf", ""), ("bgpd.conf", _frr(peers, networks, router_id))),
        (_frr_daemon("zebra", directory), _frr_daemon("bgpd", directory)),
        ("vtysh", "--vty_socket", directory, "-c", "show bgp summary"),
    )


def _frr_daemon(name: str, directory: str) -> Daemon:
    argv = [
        *(f"{FRR}/{name}", "-f", f"{directory}/{name}.conf", "-i", f"{directory}/{name}.pid"),
        *("--vty_socket", directory, "-z", f"{directory}/zserv.api", "-A", "127.0.0.1"),
        *("-P", "0", "--log", "stdout", "--log-level", "info", "--limit-fds", "4096"),
    ]
    return Daemon(name, tuple(argv), f"{directory}/{name}.vty")


def _is_6(address: str) -> bool:
    return ":" in address


def _frr(peers: Sequence[tuple[str, str]], networks: Sequence[str], router_id: str) -> str:
    lines = [
        "frr defaults datacenter",
        f"router bgp {ROUTER_ASN}",
        f" bgp router-id {router_id}",
        " no bgp ebgp-requires-policy",
        " no bgp default ipv4-unicast",
        " no bgp network import-check",
        f" timers bgp {KEEPALIVE_S} {HOLD_S}",
    ]
    for _, address in peers:
        lines += [
            f" neighbor {address} remote-as {CLUSTER_ASN}",
            f" neighbor {address} timers connect {CONNECT_S}",
            f" neighbor {address} graceful-restart-helper",
        ]
    for network in networks:
        found = [f"  network {network}", f"  maximum-paths {MAXIMUM_PATHS}"]
        found += [
            f"  neighbor {address} activate"
            for _, address in peers
            if _is_6(address) == _is_6(network)
        ]
        family = "ipv6" if _is_6(network) else "ipv4"
        lines += [f" address-family {family} unicast", *found, " exit-address-family"]
    return "".join(f"{line}\n" for line in [*lines, "exit"])


def _bird(peers: Sequence[tuple[str, str]], networks: Sequence[str], router_id: str) -> str:
    lines = [f"router id {router_id};", "log stderr { info, warning, error, fatal };"]
    lines += ["protocol device {}"]
    for network in networks:
        family = "ipv6" if _is_6(network) else "ipv4"
        lines += [
            f'protocol direct direct_{family} {{ {family}; interface "eth1"; }}',
            f"protocol kernel kernel_{family} {{ merge paths on limit {MAXIMUM_PATHS};",
            f"  {family} {{ import none; export where source = RTS_BGP; }}; }}",
        ]
    for name, address in peers:
        network = next(each for each in networks if _is_6(each) == _is_6(address))
        family = "ipv6" if _is_6(address) else "ipv4"
        lines += [
            f"protocol bgp {name} {{",
            f"  local as {ROUTER_ASN}; neighbor {address} as {CLUSTER_ASN};",
            f"  connect retry time {CONNECT_S}; connect delay time 1; error wait time 1, 5;",
            f"  hold time {HOLD_S}; graceful restart on;",
            f"  {family} {{ import all; export where net = {network}; }};",
            "}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _gobgp(peers: Sequence[tuple[str, str]], router_id: str) -> str:
    lines = [
        *("[global.config]", f"  as = {ROUTER_ASN}", f'  router-id = "{router_id}"'),
    ]
    for _, address in peers:
        family = "ipv6" if _is_6(address) else "ipv4"
        lines += [
            "[[neighbors]]",
            "  [neighbors.config]",
            f'    neighbor-address = "{address}"',
            f"    peer-as = {CLUSTER_ASN}",
            "  [neighbors.timers.config]",
            f"    connect-retry = {CONNECT_S}",
            f"    hold-time = {HOLD_S}",
            f"    keepalive-interval = {KEEPALIVE_S}",
            "  [neighbors.graceful-restart.config]",
            "    enabled = true",
            f"    restart-time = {RESTART_S}",
            "  [[neighbors.afi-safis]]",
            "    [neighbors.afi-safis.config]",
            f'      afi-safi-name = "{family}-unicast"',
            "    [neighbors.afi-safis.mp-graceful-restart.config]",
            "      enabled = true",
        ]
    return "".join(f"{line}\n" for line in lines)


def check_programs(kind: str) -> None:
    """Raises LabError, with the remedy, where a program of this kind of router is missing."""
    wanted = {
        "frr": (f"{FRR}/zebra", f"{FRR}/bgpd"),
        "gobgp": ("gobgpd", "gobgp"),
        "bird": ("bird",),
    }[kind]
    # The agents run FRR, whatever the router is.
    for program in (f"{FRR}/bgpd", *wanted):
        if shutil.which(program, path=_PATH) is None:
            raise LabError(f"{program} not found: apt-get install frr gobgpd bird2")


class Router:
    """The daemons, as children of the lab's server. ``start`` blocks; the others do not."""

    def __init__(
        self, kind: str, topology: Topology, namespaces: Namespaces, directory: Path, logs: Path
    ) -> None:
        self.plan = compile_router(kind, topology, str(directory))
        self._directory = directory
        self._namespaces = namespaces
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        networks = [str(OUTSIDE_NETS[family]) for family in topology.families]
        self._routes = GobgpRoutes(namespaces, ROUTER, networks) if kind == "gobgp" else None

    async def follow(self) -> None:
        """Lay the routes of a router that does not do so itself, until cancelled."""
        while self._routes is not None:
            began = time.monotonic()
            try:
                await self._namespaces.call(self._routes.turn)
            except LabError as error:
                _log.warning("router: %s", error)  # it is not up yet, or an address is not
            # Under emulation asking takes long; most of the time is to be for others.
            await asyncio.sleep(max(POLL_S, POLL_SHARE * (time.monotonic() - began)))

    def start(self) -> None:
        """Start the daemons one after the other. Raises LabError with what they said."""
        self._directory.mkdir()
        if any(daemon.argv[0].startswith(FRR) for daemon in self.plan.daemons):
            user = pwd.getpwnam("frr")
            os.chown(self._directory, user.pw_uid, user.pw_gid)
        for name, text in self.plan.files:
            (self._directory / name).write_text(text)
        for daemon in self.plan.daemons:
            log = self._logs / f"router-{daemon.name}.log"
            with log.open("ab") as output:
                process = self._namespaces.popen(
                    ROUTER,
                    daemon.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={"PATH": _PATH},
                )
            self._processes.append(process)
            _await(daemon, process, log)

    def learned(self) -> set[str]:
        """Destinations in the router's kernel, as ``ip route`` writes them. Blocking."""
        text = "".join(
            self._namespaces.run(ROUTER, ["ip", f"-{family}", "route", "show"]) for family in (4, 6)
        )
        return {line.split()[0] for line in text.splitlines() if not line[0].isspace()}

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _await(daemon: Daemon, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while daemon.socket and not Path(daemon.socket).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-1000:]
            raise LabError(f"the router's {daemon.name} does not come up: {said}")
        time.sleep(0.05)
