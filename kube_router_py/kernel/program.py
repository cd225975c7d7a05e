"""Running the programs that come with the kernel's packet filter, each within a time limit."""

import errno
import os
import subprocess
from collections.abc import Sequence

from msgspec import Struct

from kube_router_py.errors import KernelError, StateUnknownError


class Finished(Struct, frozen=True):
    """How a program ended: exit code and its two outputs."""

    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """What it said on stderr, on one line."""
        lines = (line.strip() for line in self.stderr.splitlines())
        return "; ".join(line for line in lines if line and not line.startswith("#"))


def run(
    command: Sequence[str], stdin: str = "", *, timeout_s: float, writes: bool = False
) -> Finished:
    """Run a program to its end and return how it ended, whatever its exit code.

    Raises KernelError if it cannot be started or exceeds ``timeout_s`` (it is then killed);
    StateUnknownError instead of the latter where it was to change something (``writes``).
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        kind = StateUnknownError if writes else KernelError
        raise kind(f"{command[0]} took more than {timeout_s:g} s", errno.ETIMEDOUT) from error
    except OSError as error:
        reason = "is not installed" if isinstance(error, FileNotFoundError) else str(error)
        raise KernelError(f"{command[0]} {reason}", error.errno or 0) from error
    return Finished(done.returncode, done.stdout, done.stderr)
