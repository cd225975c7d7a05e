"""The CNI configuration file: read as it is, and replaced in one step.

A runtime may read the directory at any moment, so that the new content is written beside, under a
name that no runtime takes for a configuration, made durable, and renamed. Owner and mode stay. A
symbolic link stays, too: what it leads to is replaced.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from msgspec import DecodeError, json

from kube_router_py.errors import KernelError

_SUFFIXES = (".conf", ".conflist", ".json")
_MODE = 0o644
# More than any configuration; a mistaken path may name anything.
_MOST_BYTES = 1 << 20
# The plugin itself, and the one that asks its daemon.
_MULTUS = ("multus", "multus-shim")


class CniFile:
    """The file at ``path``.

    Where there is none, but one of the same name with the other of the suffixes ``.conf`` and
    ``.conflist``, that one is meant: a second file would come before it, or never be read.
    Errors are KernelErrors that name the file.
    """

    def __init__(self, path: str) -> None:
        self._given = Path(path)
        self.writes = 0

    @property
    def path(self) -> str:
        """The file that is meant, symbolic links followed."""
        return os.path.realpath(self._meant())

    def _meant(self) -> Path:
        if not self._given.exists():
            for suffix in _SUFFIXES[:2]:
                other = self._given.with_suffix(suffix)
                if self._given.suffix in _SUFFIXES[:2] and other.exists():
                    return other
        return self._given

    def read(self) -> str | None:
        """What it holds, None if there is no file."""
        path = self.path
        try:
            # A pipe must not make us wait for who writes into it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise KernelError(f"{path} is no regular file")
                data = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", path, error) from error
        if len(data) > _MOST_BYTES:
            raise KernelError(f"{path} is too large for a CNI configuration")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise KernelError(f"{path} is no UTF-8: {error.reason}") from error

    def write(self, text: str) -> None:
        """Replace what it holds, or make it, with its directory."""
        path = Path(self.path)
        beside = path.with_name(f".{path.name}.kube-router-py")
        self.writes += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                beside.unlink()  # left by a crash
            self._write_beside(beside, path, text)
            os.replace(beside, path)
            self._make_durable(path.parent)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise _failed("write", str(path), error) from error

    def comes_before(self) -> tuple[str, ...]:
        """Configurations in the same directory that runtimes find before this one, and use instead.

        Not Multus's, which comes first and has the next one make a pod's first network.
        """
        meant = self._meant()
        try:
            names = sorted(os.listdir(meant.parent))
        except OSError:
            return ()
        earlier = (it for it in names if it < meant.name and it.endswith(_SUFFIXES))
        return tuple(it for it in earlier if not is_multus(meant.with_name(it)))

    @staticmethod
    def _write_beside(beside: Path, path: Path, text: str) -> None:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            try:
                before = os.stat(path)
            except FileNotFoundError:
                os.fchmod(descriptor, _MODE)
            else:
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            os.fsync(descriptor)

    @staticmethod
    def _make_durable(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_multus(path: Path) -> bool:
    """Whether this file is a configuration of Multus's."""
    try:
        found = json.decode(CniFile(str(path)).read() or "null")
    except (KernelError, DecodeError):
        return False
    if not isinstance(found, dict):
        return False
    plugins = found.get("plugins", [found])
    return isinstance(plugins, list) and any(
        isinstance(each, dict) and each.get("type") in _MULTUS for each in plugins
    )


def _failed(verb: str, path: str, error: OSError) -> KernelError:
    # A file that is mounted by itself cannot be replaced.
    advice = ": mount its directory, not the file" if error.errno == errno.EBUSY else ""
    return KernelError(f"cannot {verb} {path}: {error.strerror}{advice}", error.errno or 0)
