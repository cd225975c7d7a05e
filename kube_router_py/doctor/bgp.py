"""BGP on this node: FRR, another daemon beside it, sessions. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from kube_router_py.doctor.findings import Finding, found
from kube_router_py.kernel.ports_frr import SessionState
from kube_router_py.options import Options

DAEMONS = ("bgpd", "bird", "bird6", "gobgpd", "exabgp", "openbgpd", "kube-router")
# Counters of TcpExt in /proc/net/netstat: a segment without the signature that is asked for, with
# one that is not, and with one that does not fit (RFC 2385).
MD5_COUNTERS = ("TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure")


class Process(Struct, frozen=True, order=True):
    """A process in this network namespace; ``port`` is one that it listens on, 0 if none was
    looked for, ``pid`` 0 where its owner cannot be seen."""

    pid: int
    name: str
    port: int = 0


def daemons(
    processes: Iterable[Process], own: Collection[int], options: Options, *, frr_is_up: bool
) -> Iterator[Finding]:
    """Whoever speaks BGP here and is none of ``own``. ``frr_is_up``: our FRR runs, so that a
    listener whose owner cannot be seen is it."""
    if not options.run_router or options.frr_mode == "external":
        return
    told: set[int] = set()
    for each in sorted(processes, reverse=True):  # listeners after names of the same process
        if each.pid in own or each.pid in told or (not each.pid and frr_is_up):
            continue
        told.add(each.pid)
        listens = f" and listens on port {each.port}" if each.port else ""
        yield found(
            "bgp-second-daemon",
            f"process {each.name or '?'} {each.pid or ''}".rstrip(),
            f"it speaks BGP on this node beside the agent's FRR{listens}",
            "end it (another kube-router, BIRD, GoBGP or FRR of this node), or give the agent "
            "another port, --bgp-port, or let it configure that FRR: --frr-mode=external",
        )


class Looked(Struct, frozen=True):
    """Sessions as they are, which neighbors have a password, what the kernel counted of TCP
    signatures while it was looked at, and why sessions ended last, in bgpd's words."""

    sessions: tuple[SessionState, ...]
    with_password: frozenset[str] = frozenset()
    md5: Mapping[str, int] = {}
    reasons: Mapping[str, str] = {}


def sessions(looked: Looked) -> Iterator[Finding]:
    """Those that are not established, and why as far as can be told."""
    down: dict[str, SessionState] = {}
    up = {each.neighbor for each in looked.sessions if each.state == "Established"}
    for each in looked.sessions:
        if each.neighbor not in up and not each.state.startswith("Idle (Admin"):
            down.setdefault(each.neighbor, each)
    for neighbor, each in sorted(down.items()):
        if why := _signature(neighbor, looked):
            yield found(
                "bgp-password-wrong",
                f"BGP neighbor {neighbor}",
                f"the session is not established ({each.state}): {why}",
                "give both sides the same password (--peer-router-passwords-file, or the Secret "
                "that the Node's annotation names)",
            )
            continue
        reason = looked.reasons.get(neighbor, "")
        yield found(
            "bgp-session-down",
            f"BGP neighbor {neighbor}",
            f"the session is not established: {each.state}{f' ({reason})' if reason else ''}",
            "look whether the neighbor runs, has this node as its neighbor with the right AS "
            f"number ({each.remote_as} is expected of it), and whether TCP port 179 passes in "
            "between",
        )


def _signature(neighbor: str, looked: Looked) -> str:
    """The counters do not say whose segments they were: of neighbors that are down, those with a
    password are meant, and where none has one those that send signatures all the same."""
    if neighbor in looked.with_password:
        if looked.md5.get("TCPMD5Failure") or looked.md5.get("TCPMD5NotFound"):
            return "the kernel drops segments whose signature is wrong or absent (TCP MD5)"
    elif looked.md5.get("TCPMD5Unexpected"):
        return "the neighbor signs its segments, but no password is set for it here (TCP MD5)"
    return ""


def frr(
    missing: Iterable[str], unsupported: str, *, is_up: bool, agent_runs: bool, options: Options
) -> Iterator[Finding]:
    """``missing`` programs of FRR's, and why its version is not ``unsupported``, if it is not."""
    if not options.run_router:
        return
    managed = options.frr_mode == "managed"
    lacking = tuple(missing)
    if managed and lacking:
        yield found(
            "frr-missing",
            "FRR",
            f"not there: {', '.join(lacking)}",
            "install the package frr, or let --frr-mode=external use daemons that run elsewhere",
        )
    if managed and unsupported:
        yield found("frr-unsupported", "FRR", unsupported, "use FRR 8.4, as in the agent's image")
    if not is_up and agent_runs and not lacking:
        who = "the agent's bgpd" if managed else "the bgpd of --frr-mode=external"
        yield found(
            "frr-not-running",
            "FRR",
            f"{who} does not answer in {options.frr_dir}",
            "read why in the agent's log (kube-router-py status tells it, too)"
            if managed
            else "start it, or correct --frr-dir",
        )
