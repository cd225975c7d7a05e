"""Telling systemd how the agent is (sd_notify(3)): a datagram to the socket it names."""

import os
import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], *states: str) -> bool:
    """Send states such as ``READY=1``; False where nobody listens (not started by systemd)."""
    name = environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)
            channel.sendto("\n".join(states).encode(), os.fsencode(address))
    except OSError:
        return False  # the service goes on without; systemd reports its own time-outs
    return True
