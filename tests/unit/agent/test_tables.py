"""Text for people: tables and colour."""

import io

import pytest

from kube_router_py.colours import Painter
from kube_router_py.tables import table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_and_empty_cells_are_seen() -> None:
    rows = [{"name": "a", "age_s": 1.5}, {"name": "longer", "is_ready": False, "items": ["x", "y"]}]
    assert [*table(rows)] == [
        "NAME    AGE (S)  IS READY  ITEMS",
        "a       1.5      -         -",
        "longer  -        no        x,y",
    ]
    assert [*table([])] == []
    assert [*table([{"": "alone"}])] == ["alone"]


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals(
    stream: io.StringIO, environ: dict[str, str], coloured: bool
) -> None:
    painter = Painter(stream, environ)
    assert painter.red("no") == ("\x1b[31mno\x1b[0m" if coloured else "no")
    assert painter.red("") == ""
