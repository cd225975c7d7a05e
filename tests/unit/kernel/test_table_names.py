"""The names of routing tables: our own file, and nobody else's."""

from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.table_names import FILE, forget_tables, name_tables


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "rt_tables.d").mkdir()
    (tmp_path / "rt_tables").write_text("#\n255\tlocal\n254\tmain\n#77 not this\n")
    return tmp_path


def test_tables_are_named_once(etc: Path) -> None:
    assert name_tables(etc)
    assert (etc / FILE).read_text() == "77\tkube-router\n78\tkube-router-dsr\n"
    assert not name_tables(etc)
    assert forget_tables(etc)
    assert not (etc / FILE).exists()
    assert not forget_tables(etc)
    assert (etc / "rt_tables").read_text().startswith("#\n255")


def test_a_name_that_is_there_stays(etc: Path) -> None:
    """As kube-router appends it, or the administrator."""
    (etc / "rt_tables").write_text("254 main\n77\tkube-router\n")
    (etc / "rt_tables.d/other.conf").write_text("78 mine\n")
    assert not name_tables(etc)
    assert not (etc / FILE).exists()
    (etc / "rt_tables.d/other.conf").unlink()
    assert name_tables(etc)
    assert (etc / FILE).read_text() == "78\tkube-router-dsr\n"


def test_without_iproute2_there_is_nothing_to_name(tmp_path: Path) -> None:
    assert not name_tables(tmp_path)
    assert not name_tables(tmp_path / "missing")


def test_what_cannot_be_written_is_told(etc: Path) -> None:
    (etc / FILE).mkdir()
    for change in (name_tables, forget_tables):
        with pytest.raises(KernelError, match=r"kube-router-py\.conf"):
            change(etc)
