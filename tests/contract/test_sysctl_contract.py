"""Contract of ports.Sysctls, on the fake and on /proc/sys of a fresh network namespace."""

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake import FakeSysctls
from kube_router_py.kernel.ports import Sysctls
from kube_router_py.kernel.sysctl import ProcSysctls

pytestmark = pytest.mark.parametrize(
    "world", ["fake", pytest.param("real", marks=pytest.mark.netfilter)], indirect=True
)

FORWARD = "net/ipv4/ip_forward"


@pytest.fixture
def sysctls(world: str) -> Sysctls:
    if world == "real":
        return ProcSysctls()
    return FakeSysctls(
        {FORWARD: "1", "net.ipv4.ip_local_port_range": "32768\t60999", "kernel.ostype": "Linux"},
        read_only=["kernel.ostype"],
    )


def test_a_value_is_read_by_either_spelling(sysctls: Sysctls) -> None:
    assert sysctls.read(FORWARD) in ("0", "1")
    assert sysctls.read("net.ipv4.ip_forward") == sysctls.read(FORWARD)


def test_fields_are_separated_by_single_spaces(sysctls: Sysctls) -> None:
    assert sysctls.read("net.ipv4.ip_local_port_range") == "32768 60999"


def test_a_missing_parameter_reads_as_none(sysctls: Sysctls) -> None:
    assert sysctls.read("net/ipv4/no_such_parameter") is None
    assert sysctls.read("net/ipv4/no_such_directory/parameter") is None


def test_a_value_is_written_once(sysctls: Sysctls) -> None:
    for value in ("0", "1", "0"):
        sysctls.write(FORWARD, value)
        assert sysctls.read(FORWARD) == value
    before = sysctls.writes
    sysctls.write(FORWARD, "0")
    sysctls.write("net.ipv4.ip_forward", " 0 ")
    sysctls.write("net.ipv4.ip_local_port_range", "32768 60999")
    assert sysctls.writes == before > 0


def test_writing_a_missing_parameter_names_it(sysctls: Sysctls) -> None:
    with pytest.raises(KernelError, match="net/ipv4/no_such_parameter"):
        sysctls.write("net/ipv4/no_such_parameter", "1")


def test_writing_a_read_only_parameter_names_it(sysctls: Sysctls) -> None:
    with pytest.raises(KernelError, match="kernel/ostype"):
        sysctls.write("kernel/ostype", "Hurd")
    assert sysctls.writes == 0  # it could not even be opened
    assert sysctls.read("kernel.ostype") == "Linux"


@pytest.mark.parametrize("name", ["../etc/passwd", "net//ipv4", "/etc/passwd", "net/./ipv4", ""])
def test_names_that_lead_elsewhere_are_refused(sysctls: Sysctls, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        sysctls.read(name)
