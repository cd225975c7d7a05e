"""GoBGP and BIRD as peers of a node: what they are told, and what they say of what they heard.

Each runs in a box (``frr_lab.Box``) of its own and is asked by its own command line: ``gobgp``
(JSON, but for graceful restart) and ``birdc``.
"""

import json
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


class Link(NamedTuple):
    """A session with the node, as the peer is told of it."""

    node: str
    own: str
    node_as: int
    versions: tuple[int, ...] = (4, 6)
    password: str = ""
    has_gtsm: bool = False
    # As BIRD has it: "on", or "graceful"; empty: none.
    bfd: str = ""
    has_restart: bool = True
    # How far away the node may be; 0: it is on the same link.
    hops: int = 0


class Route(NamedTuple):
    """What came with a prefix. Communities of both sorts as people write them."""

    path: tuple[int, ...]
    communities: frozenset[str]
    preference: int | None
    next_hop: str


class Restart(NamedTuple):
    """Graceful restart as the node offers it: for how long, and whose routes stay meanwhile."""

    seconds: int
    kept: frozenset[int]


class Peer(ABC):
    """A program in a box.

    ``own`` are the box's addresses, IPv4 and IPv6. ``text`` is its configuration; without one it
    is made from ``links``.
    """

    program = ""

    def __init__(
        self,
        box: Any,
        directory: Path,
        asn: int,
        own: tuple[str, str],
        links: Iterable[Link],
        text: str = "",
    ) -> None:
        self.box = box
        self._asn, self._own = asn, own
        self._directory = directory
        self._links = tuple(links)
        self._announced: list[str] = []
        self._text = text
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    def start(self, until: Callable[[Callable[[], Any], str], Any]) -> None:
        """Returns when it answers."""
        if shutil.which(self.program, path=_PATH) is None:
            pytest.skip(f"missing capability: {self.program} (.ci/setup installs it)")
        self._write()

        def popen() -> "subprocess.Popen[bytes]":
            with (self._directory / "log").open("wb") as log:
                return subprocess.Popen(
                    self._command(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PATH": _PATH},
                )

        self._process = self.box.run(popen)

        def is_ready() -> bool:
            process = self._process
            assert process is not None
            assert process.poll() is None, (self._directory / "log").read_text()
            return self._is_ready()

        until(is_ready, f"{self.program} answers")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def announce(self, prefix: str) -> None:
        """One more, behind all those before."""
        self._announced.append(prefix)
        self._announce([prefix])

    def is_established(self) -> bool:
        """All sessions are."""
        return all(map(self._is_established, self._links))

    def is_open(self) -> bool:
        """Whether it would take connections for all sessions just now."""
        return all(map(self._is_open, self._links))

    def heard(self) -> dict[str, Route]:
        """All that the node has announced to it, and it takes."""
        return {key: route for link in self._links for key, route in self._heard(link).items()}

    def stale(self) -> set[str]:
        """What it still holds of a node that has gone without a word."""
        return {key for link in self._links for key in self._stale(link)}

    def restarts(self) -> list[Restart]:
        """Of each session."""
        return [self._restart(link) for link in self._links]

    def sent(self) -> set[str]:
        """What it has announced to the node."""
        return {key for link in self._links for key in self._sent(link)}

    def counted(self, counter: str) -> int:
        """One of the kernel's counters of TCP there (``nstat``), from when there was a box."""
        return int(self.box.run(tcp_counter, counter))

    def ask(self, *words: str) -> str:
        """What the command line says."""
        done = self._asked(*words)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def _write(self) -> None:
        (self._directory / "conf").write_text(self._text or self._made())

    def _asked(self, *words: str) -> "subprocess.CompletedProcess[str]":
        found: subprocess.CompletedProcess[str] = self.box.run(
            lambda: subprocess.run(
                [*self._client(), *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "PATH": _PATH},
            )
        )
        return found

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _client(self) -> list[str]: ...

    @abstractmethod
    def _made(self) -> str: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    @abstractmethod
    def _announce(self, prefixes: Iterable[str]) -> None: ...

    @abstractmethod
    def _is_established(self, link: Link) -> bool: ...

    @abstractmethod
    def _is_open(self, link: Link) -> bool: ...

    @abstractmethod
    def _heard(self, link: Link) -> dict[str, Route]: ...

    @abstractmethod
    def _stale(self, link: Link) -> set[str]: ...

    @abstractmethod
    def _restart(self, link: Link) -> Restart: ...

    @abstractmethod
    def _sent(self, link: Link) -> set[str]: ...


def tcp_counter(name: str) -> int:
    """Of the network namespace of the calling thread: /proc/net would be that of the process."""
    lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))[name])


# --- GoBGP ----------------------------------------------------------------------------------

_GOBGP_FAMILY = """\
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv{version}-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = {restart}
"""
_GOBGP_NEIGHBOR = """\
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{link.node}"
    peer-as = {link.node_as}
    auth-password = "{link.password}"
  [neighbors.transport.config]
    local-address = "{link.own}"
  [neighbors.graceful-restart.config]
    enabled = {restart}
    restart-time = 300
"""
# Types of attributes on the wire (IANA, BGP Path Attributes).
_AS_PATH, _NEXT_HOP, _PREFERENCE, _COMMUNITIES, _MP_REACH, _LARGE = 2, 3, 5, 8, 14, 32
_ACTIVE, _ESTABLISHED = 3, 6


class Gobgpd(Peer):
    program = "gobgpd"

    def _command(self) -> list[str]:
        conf = str(self._directory / "conf")
        return ["gobgpd", "-f", conf, "-t", "toml", "--pprof-disable", "--api-hosts", self._api]

    def _client(self) -> list[str]:
        return ["gobgp", "--target", self._api]

    @property
    def _api(self) -> str:
        return f"unix://{self._directory}/api"

    def _made(self) -> str:
        text = f'[global.config]\n  as = {self._asn}\n  router-id = "{self._own[0]}"\n'
        for link in self._links:
            restart = str(link.has_restart).lower()
            text += _GOBGP_NEIGHBOR.format(link=link, restart=restart)
            for version in link.versions:
                text += _GOBGP_FAMILY.format(version=version, restart=restart)
        return text

    def _is_ready(self) -> bool:
        return self._asked("global").returncode == 0

    def _announce(self, prefixes: Iterable[str]) -> None:
        # Of a family with a session of its own it finds the next hop itself.
        shared = {each for link in self._links for each in link.versions if len(link.versions) > 1}
        for prefix in prefixes:
            version = ip_network(prefix).version
            hop = ("nexthop", self._own[version == 6]) if version in shared else ()
            self.ask("global", "rib", "add", prefix, *hop, "-a", f"ipv{version}")

    def _is_established(self, link: Link) -> bool:
        return self._state(link) == _ESTABLISHED

    def _is_open(self, link: Link) -> bool:
        return self._state(link) == _ACTIVE

    def _state(self, link: Link) -> int:
        said = json.loads(self.ask("neighbor", link.node, "-j"))
        return int(said["state"].get("session_state", 0))

    def _heard(self, link: Link) -> dict[str, Route]:
        return {key: self._route(path) for key, path in self._held(link, "adj-in").items()}

    def _stale(self, link: Link) -> set[str]:
        return {key for key, path in self._held(link, "adj-in").items() if path["stale"]}

    def _sent(self, link: Link) -> set[str]:
        return set(self._held(link, "adj-out"))

    def _held(self, link: Link, which: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for version in link.versions:
            asked = self._asked("neighbor", link.node, which, "-a", f"ipv{version}", "-j")
            # It has no answer while there has been no session yet.
            said = json.loads(asked.stdout) if asked.returncode == 0 and asked.stdout else {}
            for prefix, paths in said.items():
                (found[prefix],) = paths
        return found

    @staticmethod
    def _route(path: dict[str, Any]) -> Route:
        attributes = {each["type"]: each for each in path["attrs"]}
        segments = attributes[_AS_PATH].get("as_paths") or ()
        numbers = attributes.get(_COMMUNITIES, {}).get("communities", ())
        communities = {f"{each >> 16}:{each & 0xFFFF}" for each in numbers}
        for each in attributes.get(_LARGE, {}).get("value", ()):
            communities.add(f"{each['ASN']}:{each['LocalData1']}:{each['LocalData2']}")
        hops = [attributes[each] for each in (_NEXT_HOP, _MP_REACH) if each in attributes]
        return Route(
            path=tuple(asn for segment in segments for asn in segment["asns"]),
            communities=frozenset(communities),
            preference=attributes.get(_PREFERENCE, {}).get("value"),
            next_hop=hops[0]["nexthop"],
        )

    def _restart(self, link: Link) -> Restart:
        said = self.ask("neighbor", link.node)
        remote = re.search(
            r"graceful-restart:.*?Remote: restart time (\d+) sec[^\n]*\n(.*?)(?:\n    \S|\Z)",
            said,
            re.DOTALL,
        )
        if remote is None:
            return Restart(0, frozenset())
        kept = re.findall(r"ipv(\d)-unicast, forward flag set", remote[2])
        return Restart(int(remote[1]), frozenset(map(int, kept)))


# --- BIRD -----------------------------------------------------------------------------------

_BIRD = """\
log stderr all;
router id {own[0]};
protocol device {{}}
protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; }}
protocol kernel {{ ipv6 {{ export where source = RTS_BGP; }}; }}
"""
_BIRD_BFD = """\
protocol bfd {
  interface "*" { interval 500 ms; multiplier 5; };
  multihop { interval 500 ms; multiplier 5; };
}
"""
# A session of several hops looks up its next hop among routes.
_BIRD_DIRECT = "protocol direct { ipv4; ipv6; }\n"
_BIRD_NEIGHBOR = """\
protocol bgp {name} {{
  local {link.own} as {asn};
  neighbor {link.node} as {link.node_as};
  {reach};
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
{options}}}
"""


class Bird(Peer):
    program = "bird"

    def _command(self) -> list[str]:
        return ["bird", "-f", "-c", str(self._directory / "conf"), "-s", self._control]

    def _client(self) -> list[str]:
        return ["birdc", "-s", self._control]

    @property
    def _control(self) -> str:
        return str(self._directory / "ctl")

    def _made(self) -> str:
        text = _BIRD.format(own=self._own)
        if any(link.bfd for link in self._links):
            text += _BIRD_BFD
        if any(link.hops for link in self._links):
            text += _BIRD_DIRECT
        for version in (4, 6):
            own = [each for each in self._announced if ip_network(each).version == version]
            routes = "".join(f'route {each} via "lo"; ' for each in own)
            text += f"protocol static own{version} {{ ipv{version}; {routes}}}\n"
        for link in self._links:
            text += _BIRD_NEIGHBOR.format(
                name=self._name(link),
                asn=self._asn,
                link=link,
                reach=f"multihop {link.hops}" if link.hops else "direct",
                options=self._options(link),
            )
        return text

    def _options(self, link: Link) -> str:
        lines = [f'password "{link.password}";'] if link.password else []
        lines += ["ttl security on;"] if link.has_gtsm else []
        lines += [f"bfd {link.bfd};"] if link.bfd else []
        if link.has_restart:
            lines += ["graceful restart on;", "graceful restart time 300;"]
        for version in link.versions:
            is_foreign = version == 6 and ":" not in link.own
            hop = f"address {self._own[1]}" if is_foreign else "self"
            channel = f"import all; export where source = RTS_STATIC; next hop {hop};"
            lines.append(f"ipv{version} {{ {channel} }};")
        return "".join(f"  {line}\n" for line in lines)

    @staticmethod
    def _name(link: Link) -> str:
        return "node6" if ":" in link.node else "node4"

    def _is_ready(self) -> bool:
        return self._asked("show", "status").returncode == 0

    def _announce(self, prefixes: Iterable[str]) -> None:
        if not set(prefixes) <= self._static():
            self._write()
            assert "Reconfigured" in self.ask("configure")

    def _static(self) -> set[str]:
        return set(self._table("protocol", "own4")) | set(self._table("protocol", "own6"))

    def _is_established(self, link: Link) -> bool:
        return bool(re.search(r"BGP state: +Established", self.protocol(link)))

    def _is_open(self, link: Link) -> bool:
        return bool(re.search(r"BGP state: +Active", self.protocol(link)))

    def protocol(self, link: Link) -> str:
        """All that it says of a session."""
        return self.ask("show", "protocols", "all", self._name(link))

    def _heard(self, link: Link) -> dict[str, Route]:
        table = self._table("all", "protocol", self._name(link))
        return {prefix: self._route(lines) for prefix, lines in table.items()}

    def _stale(self, link: Link) -> set[str]:
        is_waiting = "Neighbor graceful restart active" in self.protocol(link)
        return set(self._heard(link)) if is_waiting else set()

    def _sent(self, link: Link) -> set[str]:
        return set(self._table("export", self._name(link)))

    def _table(self, *which: str) -> dict[str, list[str]]:
        """Prefixes with the lines below them."""
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in self.ask("show", "route", *which).splitlines():
            if line.startswith("\t"):
                lines.append(line.strip())
            elif "/" in line.partition(" ")[0]:
                lines = found.setdefault(line.split()[0], [])
        return found

    @staticmethod
    def _route(lines: list[str]) -> Route:
        said = {
            name.removeprefix("BGP."): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
            if name.startswith("BGP.")
        }
        both = f"{said.get('community', '')} {said.get('large_community', '')}"
        parts = re.findall(r"\(([^)]*)\)", both)
        preference = said.get("local_pref")
        return Route(
            path=tuple(map(int, said["as_path"].split())),
            communities=frozenset(re.sub(r", ?", ":", each) for each in parts),
            preference=int(preference) if preference else None,
            next_hop=said["next_hop"].split()[0],
        )

    def _restart(self, link: Link) -> Restart:
        remote = re.search(
            r"Neighbor capabilities.*?Graceful restart\n\s+Restart time: (\d+)\n"
            r".*?AF preserved:([^\n]*)\n",
            self.protocol(link),
            re.DOTALL,
        )
        if remote is None:
            return Restart(0, frozenset())
        return Restart(int(remote[1]), frozenset(map(int, re.findall(r"ipv(\d)", remote[2]))))


KINDS = {"gobgp": Gobgpd, "bird": Bird}
