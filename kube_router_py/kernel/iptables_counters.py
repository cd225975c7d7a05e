"""Counters of the rules of named chains.

The legacy variant keeps a table in one piece; python-iptables (libiptc) fetches it and reads just
the chains asked for. The nft variant, and whoever lacks the library, prints the whole table.
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import Counters


def parse_counters(text: str, table: str, chains: Iterable[str]) -> dict[str, Counters]:
    """Counters in the output of ``iptables-save --counters``, by chain."""
    found: dict[str, list[tuple[int, int]]] = {}
    wanted = frozenset(chains)
    inside = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line[1:].strip() == table
        elif inside and line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if name in wanted:
                found.setdefault(name, [])
        elif inside and line.startswith("["):
            counted, _, name, *_ = line.split(" ", 3)
            if name in found:
                packets, _, size = counted[1:-1].partition(":")
                found[name].append((int(packets), int(size)))
    return {name: tuple(counters) for name, counters in found.items()}


@lru_cache(maxsize=1)
def library() -> Any | None:
    """python-iptables, or None where it cannot be loaded.

    To find its shared libraries it needs a directory for temporary files, and the tools of a
    linker or ldconfig; a container may have none of these.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import iptc
    except Exception:  # noqa: BLE001 - it raises its own, Exception itself among them
        return None
    return iptc


def read_counters(iptc: Any, family: str, table: str, chains: Iterable[str]) -> dict[str, Counters]:
    """Counters of a legacy table, by libiptc. Raises KernelError."""
    kind = iptc.Table if family == "inet" else iptc.Table6
    try:
        # One object per table and process, with the rules as they were when it was made: those
        # are thrown away, for they may be of another time or network namespace.
        opened = kind(table, autocommit=False)
        opened.refresh()
        try:
            return {
                name: tuple(_counters(opened, name)) for name in chains if opened.is_chain(name)
            }
        finally:
            opened.close()
    except iptc.IPTCError as error:
        raise KernelError(f"reading the counters of table {table}: {error}") from error


def _counters(table: Any, chain: str) -> Iterator[tuple[int, int]]:
    entry = table.first_rule(chain)
    while entry:
        yield entry.counters.pcnt, entry.counters.bcnt
        entry = table.next_rule(entry)
