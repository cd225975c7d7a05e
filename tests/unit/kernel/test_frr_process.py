"""What is said of a daemon of FRR that has ended."""

import os
import subprocess
import sys

import pytest

from kube_router_py.kernel.frr_process import DaemonProcess


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("sys.exit(0)", "exited with 0"),
        ("sys.exit(7)", "exited with 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "was ended by signal 35"),
    ],
)
def test_how_a_daemon_ended(end: str, said: str) -> None:
    command = (sys.executable, "-c", f"import os, signal, sys; {end}")
    child = subprocess.Popen(command)
    process = DaemonProcess("bgpd", child.pid, os.pidfd_open(child.pid), command, child)
    try:
        child.wait(60)
        assert process.how_it_ended() == said
    finally:
        process.close()
