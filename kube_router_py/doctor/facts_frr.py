"""Asking FRR on its control sockets, and watching sessions that are not up for a moment."""

import re
import time
from collections.abc import Mapping

from msgspec import DecodeError, json

from kube_router_py.doctor.bgp import Looked
from kube_router_py.doctor.facts_host import md5_counters
from kube_router_py.kernel.frr_summary import BGP, sessions
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.ports_frr import SessionState

_TIMEOUT_S = 10.0
# One that has just begun needs a moment; signatures are counted meanwhile, and only what the
# neighbor sends is: it tries again every ten seconds, or later.
_WATCH_S, _PASSWORD_S, _PAUSE_S = 12.0, 30.0, 1.0
_PASSWORD = re.compile(r"^\s*neighbor (\S+) password\b", re.MULTILINE)


def is_up(run_dir: str) -> bool:
    """Whether a bgpd answers there."""
    client = VtyClient(f"{run_dir}/bgpd.vty", _TIMEOUT_S)
    try:
        return not client.show("show version").is_failed
    finally:
        client.close()


def look(run_dir: str, watch_s: float = _WATCH_S, password_s: float = _PASSWORD_S) -> Looked:
    """The sessions; where one is not established, after up to ``watch_s`` seconds, or
    ``password_s`` where it has a password."""
    client = VtyClient(f"{run_dir}/bgpd.vty", _TIMEOUT_S)
    try:
        before, begun = md5_counters(), time.monotonic()
        passwords = frozenset(_PASSWORD.findall(client.show("show running-config").text))
        while True:
            found, _ = sessions(client.show(BGP))
            grown = {name: n - before.get(name, 0) for name, n in md5_counters().items()}
            down = {each.neighbor for each in found if not _is_fine(each)}
            longest = password_s if down & passwords and not any(grown.values()) else watch_s
            if not down or time.monotonic() >= begun + longest:
                return Looked(found, passwords, grown, _reasons(client))
            time.sleep(_PAUSE_S)
    finally:
        client.close()


def _is_fine(session: SessionState) -> bool:
    return session.state == "Established" or session.state.startswith("Idle (Admin")


def _reasons(client: VtyClient) -> Mapping[str, str]:
    """Why sessions ended last, in bgpd's words."""
    try:
        listed = json.decode(client.show("show bgp neighbors json").text)
    except (DecodeError, ValueError):
        return {}
    found: dict[str, str] = {}
    for neighbor, told in (listed if isinstance(listed, dict) else {}).items():
        if isinstance(told, dict):
            reason = told.get("lastNotificationReason") or told.get("lastResetDueTo")
            if isinstance(reason, str) and reason:
                found[neighbor] = reason
    return found
