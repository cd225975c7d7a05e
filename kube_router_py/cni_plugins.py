"""CNI plugins, programs that the container runtime runs, copied to where it looks for them.

A plugin that is there stays unless it is to be replaced: it may be the distribution's, and newer.
At no moment is there half a plugin: the runtime may start one while it is written.
"""

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Those that the agent's CNI file names, and the one that runtimes ask for by themselves.
USUAL = ("bridge", "host-local", "loopback", "portmap")

_UNFINISHED = ".kube-router-py."
_MODE = 0o755


@dataclass(frozen=True)
class Outcome:
    """What became of one plugin.

    ``action``: installed, replaced, kept or failed; ``reason`` says why, of the last two.
    """

    plugin: str
    action: str
    reason: str = ""


def install(
    source: Path, target: Path, plugins: Sequence[str] = USUAL, *, replace: bool = False
) -> list[Outcome]:
    """Copy those of ``plugins`` that directory ``target`` lacks from ``source``.

    A file there that cannot be run, an empty one above all, counts as lacking. ``replace``: copies
    those that differ, too. Raises OSError where ``target`` cannot be made or opened.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        # Of a run that was ended by force; nobody else is writing now.
        for left in target.glob(f"{_UNFINISHED}*"):
            left.unlink()
        return [_install(source / plugin, target / plugin, replace) for plugin in plugins]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time; the kernel frees the lock with the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _install(source: Path, target: Path, replace: bool) -> Outcome:
    name = target.name
    try:
        if not _is_program(source):
            return Outcome(name, "failed", f"{source} is no program")
        if target.is_dir():
            return Outcome(name, "failed", f"{target} is a directory")
        is_there = _is_program(target)
        if is_there and filecmp.cmp(source, target, shallow=False):
            return Outcome(name, "kept", "the same")
        if is_there and not replace:
            return Outcome(name, "kept", "another one is there")
        _write(source, target)
        return Outcome(name, "replaced" if is_there else "installed")
    except OSError as error:
        return Outcome(name, "failed", f"{error.filename or target}: {error.strerror}")


def _is_program(path: Path) -> bool:
    """Whether it is a file that can be run. One that only somebody else may run is one, too."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return path.is_file() and found.st_size > 0 and bool(found.st_mode & 0o111)


def _write(source: Path, target: Path) -> None:
    """A copy of ``source`` at ``target``, whole or not at all, also after a power failure."""
    unfinished = target.with_name(f"{_UNFINISHED}{target.name}")
    try:
        with source.open("rb") as given, unfinished.open("xb") as taken:
            shutil.copyfileobj(given, taken, 1 << 20)
            taken.flush()
            os.fchmod(taken.fileno(), _MODE)
            os.fsync(taken.fileno())
        os.replace(unfinished, target)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
