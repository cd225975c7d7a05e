"""Kernel parameters under a directory of the test's own."""

from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.sysctl import ProcSysctls


def test_the_names_of_vlan_devices_hold_dots(tmp_path: Path) -> None:
    (tmp_path / "net/conf/eth0.100").mkdir(parents=True)
    parameter = tmp_path / "net/conf/eth0.100/rp_filter"
    parameter.write_text("1\n")
    sysctls = ProcSysctls(tmp_path)
    sysctls.write("net/conf/eth0.100/rp_filter", "2")
    assert parameter.read_text() == "2\n"
    assert sysctls.read("net.conf.eth0.100.rp_filter") is None


def test_a_read_only_file_system_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forward").write_text("0\n")

    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    sysctls = ProcSysctls(tmp_path)
    with pytest.raises(KernelError, match=r"forward to '1'.*privileged container") as caught:
        sysctls.write("forward", "1")
    assert caught.value.errno == 30
    sysctls.write("forward", "0")


def test_a_missing_parameter_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no such parameter"):
        ProcSysctls(tmp_path).write("forward", "1")
    assert list(tmp_path.iterdir()) == []
