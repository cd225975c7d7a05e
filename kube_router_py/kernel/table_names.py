"""The names that ip(8) shows for our routing tables: a file of our own, which is all ours.

    77 kube-router        what pods send to nodes beyond a tunnel
    78 kube-router-dsr    direct server return

iproute2 reads every ``rt_tables.d/*.conf`` (ip-route(8)). Names are for people only: where there is
no such directory, as in a container without iproute2 or a host whose /etc is not mounted, nothing
is missing but the name. Tables that have a name already, from kube-router or the administrator,
keep it.
"""

import os
import re
from pathlib import Path
from typing import Final

from kube_router_py.errors import KernelError
from kube_router_py.kernel.overlay_ports import TABLE, TABLE_NAME

DIRECTORY: Final = "/etc/iproute2"
FILE: Final = "rt_tables.d/kube-router-py.conf"
NAMES: Final = {TABLE: TABLE_NAME, 78: "kube-router-dsr"}

_LINE = re.compile(r"\s*(\d+)\s+(\S+)")


def name_tables(directory: str | os.PathLike[str] = DIRECTORY) -> bool:
    """Write the file where it is missing or differs; whether anything was written.

    Raises KernelError where it cannot be written.
    """
    root = Path(directory)
    path = root / FILE
    if not path.parent.is_dir():
        return False
    taken = set(_names(root / "rt_tables"))
    for other in sorted(path.parent.glob("*.conf")):
        if other != path:
            taken |= set(_names(other))
    wanted = "".join(f"{number}\t{name}\n" for number, name in NAMES.items() if number not in taken)
    try:
        if (path.read_text() if path.exists() else "") == wanted:
            return False
        path.write_text(wanted)
    except OSError as error:
        raise KernelError(f"cannot write {path}: {error.strerror}", error.errno or 0) from error
    return True


def forget_tables(directory: str | os.PathLike[str] = DIRECTORY) -> bool:
    """Remove the file (cleanup); returns whether there was one.

    Raises KernelError where it cannot be removed.
    """
    path = Path(directory) / FILE
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise KernelError(f"cannot remove {path}: {error.strerror}", error.errno or 0) from error
    return True


def _names(path: Path) -> dict[int, str]:
    """What a file names, by number; nothing where it cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = (_LINE.match(line) for line in lines)
    return {int(each[1]): each[2] for each in found if each}
