"""Kernel parameters through the files below /proc/sys.

The network parameters found there are those of the calling thread's network namespace.
"""

import errno
import os
from pathlib import Path

from kube_router_py.errors import KernelError

_REMEDIES = {
    errno.ENOENT: "this kernel has no such parameter; load the module that provides it",
    errno.EROFS: "/proc/sys is mounted read-only; run the agent in a privileged container, "
    "or set the parameter on the node (sysctl.d)",
    errno.EACCES: "not permitted; run the agent as root with CAP_NET_ADMIN",
    errno.EPERM: "not permitted; run the agent as root with CAP_NET_ADMIN",
    errno.EINVAL: "the kernel refuses this value",
}


def parameter_path(name: str) -> str:
    """The path below /proc/sys of a parameter.

    As for sysctl(8): a name with slashes is a path already (and may hold dots, as the names of
    VLAN devices do), in any other the dots separate. Raises ValueError for names that would lead
    elsewhere.
    """
    path = name if "/" in name else name.replace(".", "/")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"not the name of a kernel parameter: {name!r}")
    return path


def canonical_value(text: str) -> str:
    """A value with the white space between its fields reduced to single spaces."""
    return " ".join(text.split())


class ProcSysctls:
    """``ports.Sysctls`` on /proc/sys, or on the directory given as ``root``."""

    def __init__(self, root: str | os.PathLike[str] = "/proc/sys") -> None:
        self.writes = 0
        self._root = Path(root)

    def read(self, name: str) -> str | None:
        """The value, or None where the kernel has no such parameter. Raises KernelError."""
        path = parameter_path(name)
        try:
            return canonical_value((self._root / path).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failure("read", name, "", error) from error

    def write(self, name: str, value: str) -> None:
        """Set the value if it differs. Raises KernelError, naming the parameter and the remedy."""
        wanted = canonical_value(value)
        if self.read(name) == wanted:
            return
        try:
            # Not "w": with O_CREAT a missing parameter would be answered with EACCES.
            descriptor = os.open(self._root / parameter_path(name), os.O_WRONLY | os.O_TRUNC)
            self.writes += 1
            try:
                os.write(descriptor, f"{wanted}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _failure("set", name, f" to {wanted!r}", error) from error


def _failure(verb: str, name: str, value: str, error: OSError) -> KernelError:
    code = error.errno or 0
    remedy = _REMEDIES.get(code, error.strerror or str(error))
    return KernelError(f"cannot {verb} the kernel parameter {name}{value}: {remedy}", code)
