"""Opening all adapters of a real host."""

import pytest

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel import host

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("world", ["real"], indirect=True),
]


def test_opening_a_host_writes_nothing(world: str) -> None:
    ports = host.open_host(families=("inet", "inet6"))
    assert ports.ipvs.read() == {}
    assert ports.links.read_vips() == {}
    assert ports.ipsets.read("kube-router-local-cidrs") is None
    assert ports.sysctls.read("net/ipv4/ip_forward") in ("0", "1")
    assert ports.writes == 0
    ports.close()
    with pytest.raises(KernelError):
        ports.ipvs.read()


def test_a_missing_program_opens_nothing(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PreflightError, match="ipset"):
        host.open_host(iptables_variant="iptables-nft")
