"""Paths in the file system of another process, seen below /proc/PID/root."""

import os
import stat

_MOST_LINKS = 40


def read_file(path: str, most_bytes: int) -> str:
    """What a file begins with. Raises OSError, also for what is none: of a pipe or a device the end
    may never come."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return file.read(most_bytes).decode(errors="replace")


def inside(root: str, path: str) -> str:
    """Where an absolute path of that file system is for us. Its absolute links (``/var/run`` to
    ``/run``) begin at ``root``, where the kernel would begin at our own."""
    if not root:
        return path
    parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    found: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part == "..":
            found = found[:-1]
            continue
        here = "/".join((root, *found, part))
        try:
            target = os.readlink(here)
        except OSError:  # no link, or nothing at all
            found.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(f"too many links in {path}")
        if target.startswith("/"):
            found = []
        parts += [each for each in reversed(target.split("/")) if each not in ("", ".")]
    return "/".join((root, *found))
