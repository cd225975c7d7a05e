"""The CNI file on disk: replaced in one step, with owner and mode, or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.cni_file import CniFile


def test_it_is_made_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "cni/net.d/10-kuberouter.conflist"
    file = CniFile(str(path))
    assert file.read() is None
    file.write("{}\n")
    assert file.read() == "{}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [path.name]
    assert file.writes == 1


def test_mode_and_owner_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65533)
    before = path.stat()
    CniFile(str(path)).write("new")
    after = path.stat()
    assert path.read_text() == "new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    texts = ["a" * 200_000, "b" * 100_000]
    file = CniFile(str(path))
    file.write(texts[0])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            file.write(texts[number % 2])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(200):
            assert path.read_text() in texts
    finally:
        stop.set()
        thread.join(60)


def test_what_a_crash_left_beside_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    (tmp_path / ".a.conf.kube-router-py").write_text("half")
    CniFile(str(path)).write("whole")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.conf"]


def test_a_failure_leaves_the_file_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.conf"
    path.write_text("old")

    def refuse(*arguments: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(KernelError, match="mount its directory") as caught:
        CniFile(str(path)).write("new")
    assert caught.value.errno == 16
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.conf"]


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    target = tmp_path / "agent/10.conf"
    target.parent.mkdir()
    target.write_text("old")
    link = tmp_path / "10.conf"
    link.symlink_to(target)
    file = CniFile(str(link))
    file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert file.path == str(target)


@pytest.mark.parametrize(("given", "there"), [("conf", "conflist"), ("conflist", "conf")])
def test_the_other_suffix_is_meant_where_it_alone_is_there(
    tmp_path: Path, given: str, there: str
) -> None:
    """A 10-kuberouter.conf beside the 10-kuberouter.conflist would come before it."""
    other = tmp_path / f"10-kuberouter.{there}"
    other.write_text("there")
    file = CniFile(str(tmp_path / f"10-kuberouter.{given}"))
    assert file.path == str(other)
    assert file.read() == "there"
    file.write("new")
    assert os.listdir(tmp_path) == [other.name]
    (tmp_path / f"10-kuberouter.{given}").write_text("given")
    assert file.read() == "given"


def test_what_comes_before(tmp_path: Path) -> None:
    for name in ("05-other.conflist", "05-notes.txt", "10-kuberouter.conf", "99-last.conf"):
        (tmp_path / name).write_text("{}")
    file = CniFile(str(tmp_path / "10-kuberouter.conf"))
    assert file.comes_before() == ("05-other.conflist",)
    assert CniFile(str(tmp_path / "none/10.conf")).comes_before() == ()


@pytest.mark.parametrize(
    ("text", "is_theirs"),
    [
        ('{"name": "multus-cni-network", "type": "multus", "delegates": []}', True),
        ('{"name": "multus-cni-network", "type": "multus-shim"}', True),
        ('{"name": "all", "plugins": [{"type": "multus-shim"}]}', True),
        ('{"name": "multus", "type": "bridge"}', False),
        ('{"plugins": "multus"}', False),
        ('["multus"]', False),
        ("{", False),
        ("", False),
    ],
)
def test_multus_has_the_next_configuration_used(tmp_path: Path, text: str, is_theirs: bool) -> None:
    (tmp_path / "00-multus.conf").write_text(text)
    file = CniFile(str(tmp_path / "10-kuberouter.conf"))
    assert file.comes_before() == (() if is_theirs else ("00-multus.conf",))
    (tmp_path / "05-other.conf").write_text("{}")
    assert "05-other.conf" in file.comes_before(), "Multus would take that one"


def test_what_is_no_text_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KernelError, match="no UTF-8"):
        CniFile(str(path)).read()
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(KernelError, match="too large"):
        CniFile(str(path)).read()
    path.unlink()
    path.mkdir()
    with pytest.raises(KernelError, match="cannot read"):
        CniFile(str(path)).read()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(KernelError, match="no regular file"):
        CniFile(str(path)).read()
