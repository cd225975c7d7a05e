"""Rows of values as text for people: aligned columns, a heading, nothing where nothing is. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a table: a heading of all the columns that any row has, then the rows.

    A column whose name ends in ``_s`` is in seconds. A single column without a name has no heading.
    """
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[words(column).upper() for column in columns]] if columns != [""] else []
    cells += [[shown(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def words(name: str) -> str:
    """``last_turn_s`` as people write it: ``last turn (s)``."""
    return name.removesuffix("_s").replace("_", " ") + (" (s)" if name.endswith("_s") else "")


def shown(value: Any) -> str:
    """One cell: ``-`` for nothing, ``yes`` and ``no``, the items of a list with commas."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return str(value)
