"""Whether this node can run FRR's daemons: the programs, their user, and what they must be allowed.

FRR's daemons start as root, keep a few capabilities and become the user ``frr``. What they lack
they tell in one line of their log and exit; here it is told before, with the remedy.
"""

import errno
import grp
import os
import pwd
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel.frr_process import USER, Layout
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.kernel.program import run

_VTY_GROUP = "frrvty"
_SOCKET_PATH_MAX = 107
_VERSION = re.compile(r"^(?:zebra|frr) version (\d+)\.(\d+)", re.MULTILINE)
_VERSION_S = 30.0
_TOO_NEW = 10
_ADVICE = {
    errno.EADDRINUSE: "; end what listens there (ss -ltnp: kube-router, BIRD, another FRR), or "
    "choose another port, --bgp-port",
    errno.EADDRNOTAVAIL: "; the node has no such address: give it one, or say where to listen by "
    "the annotation kube-router.io/bgp-local-addresses",
}
# capabilities(7): zebra and bgpd exit where one of the first four lacks (bgpd alone needs the
# first), the others are for becoming another user, for its files and for signals to it.
_NEEDED = {
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_ADMIN": 21,
    "CAP_SETUID": 7,
    "CAP_SETGID": 6,
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
}


def prepare(layout: Layout, daemons: Iterable[str]) -> tuple[int, int]:
    """Check what the daemons need and make the run directory theirs; user and group of FRR.

    Raises PreflightError, which says what to do.
    """
    for daemon in daemons:
        if not os.access(f"{layout.programs}/{daemon}", os.X_OK):
            raise PreflightError(
                f"{layout.programs}/{daemon} is not there: install the package frr, or let "
                "--frr-mode=external use daemons that run elsewhere"
            )
    check_version(run([f"{layout.programs}/zebra", "--version"], timeout_s=_VERSION_S).stdout)
    owner = _owner()
    lacking = lacking_capabilities(Path("/proc/thread-self/status").read_text())
    if lacking:
        raise PreflightError(
            f"FRR's daemons cannot be run without {', '.join(lacking)}: add them to the "
            "container's securityContext.capabilities (or run it privileged)"
        )
    _make_directory(layout.run_dir, owner)
    return owner


def check_version(said: str) -> None:
    """``said`` by a daemon of itself: ``zebra version 8.4.4``, ``frr version 8.4.4``.

    From 10 on zebra takes part of its configuration from another daemon, mgmtd, and nothing of that
    from us; what runs would never be what is wanted. Raises PreflightError.
    """
    found = _VERSION.search(said)
    if found is not None and int(found[1]) >= _TOO_NEW:
        raise PreflightError(
            f"FRR {found[1]}.{found[2]} is not supported: its zebra is configured through mgmtd; "
            "run FRR 8.4 (Debian 12, as in the image of this agent)"
        )


def check_listening(boot: Boot, own_port: int | None) -> None:
    """Try what bgpd would exit for: addresses that this node has not, a port that others use.

    ``own_port`` is that of a bgpd of ours that runs. Raises KernelError.
    """
    if boot.port == 0:
        return
    for address in boot.listen or (IPv4Address("0.0.0.0"), IPv6Address("::")):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if address.version == 6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((str(address), boot.port))
                listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE and own_port == boot.port:
                continue
            if error.errno == errno.EAFNOSUPPORT and not boot.listen:
                continue  # a node without IPv6 listens on IPv4
            raise KernelError(
                f"bgpd cannot listen on {address} port {boot.port}: {error.strerror}"
                f"{_ADVICE.get(error.errno or 0, '')}",
                error.errno or 0,
            ) from error


def lacking_capabilities(status: str) -> list[str]:
    """Names of needed capabilities that a process with this /proc/PID/status has not."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = int(value, 16)
            return [name for name, bit in _NEEDED.items() if not held >> bit & 1]
    return []


def _owner() -> tuple[int, int]:
    try:
        user = pwd.getpwnam(USER)
        vty = grp.getgrnam(_VTY_GROUP)
    except KeyError as error:
        raise PreflightError(
            f"FRR's user {USER} or group {_VTY_GROUP} does not exist here: its package makes both "
            "(addgroup --system frrvty; adduser --system --group frr; usermod -aG frrvty frr)"
        ) from error
    if vty.gr_gid not in os.getgrouplist(USER, user.pw_gid):
        raise PreflightError(
            f"FRR's user {USER} is not in the group {_VTY_GROUP}: usermod -aG {_VTY_GROUP} {USER}"
        )
    return user.pw_uid, user.pw_gid


def _make_directory(path: str, owner: tuple[int, int]) -> None:
    """The daemons make their sockets and pid files there."""
    if len(os.fsencode(f"{path}/zserv.api")) > _SOCKET_PATH_MAX:
        raise PreflightError(f"FRR's run directory {path} is too long a name for sockets (unix(7))")
    try:
        os.makedirs(path, 0o750, exist_ok=True)
        status = os.stat(path)
        if (status.st_uid, status.st_gid) != owner:
            os.chown(path, *owner)
    except OSError as error:
        raise PreflightError(
            f"FRR's run directory {path} cannot be made ready: {error.strerror}; mount a writable "
            "directory there"
        ) from error
    for above in Path(path).absolute().parents:
        if not above.stat().st_mode & 0o001:
            raise PreflightError(
                f"FRR's run directory {path} lies in {above}, which the user {USER} may not enter: "
                "chmod o+x it, or name another run directory"
            )
