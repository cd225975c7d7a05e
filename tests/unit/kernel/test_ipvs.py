"""NetlinkIpvs where there is no IPVS, or where answers are lost; the rest is in the contract."""

import errno
import socket
from collections.abc import Iterable

import pytest

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.kernel import ipvs
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.proxy.model import IpvsOperation, Verb, VirtualServer, VirtualServerKey

KEY = VirtualServerKey(socket.AF_INET, 6, b"\x0a\x60\x00\x0a", 80)
VERSION = b"\x0e\1\0\0" + b"\x08\0\1\0\1\2\1\0" + b"\x08\0\2\0\0\x10\0\0"


class DeafNetlink:
    """A transport whose batches are sent and never answered."""

    def __init__(self, *_: object, **__: object) -> None:
        self.closed = False

    def request(self, *_: object) -> list[bytes]:
        return [VERSION]

    def reserve(self, _: int) -> int:
        return 1

    def batch(self, messages: Iterable[bytes]) -> dict[int, int]:
        assert len(list(messages)) == 2
        raise StateUnknownError("lost", errno.ENOBUFS)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOENT, "modprobe ip_vs"), (errno.EPERM, "CAP_NET_ADMIN")]
)
def test_what_the_node_lacks_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refuse(*_: object) -> int:
        raise KernelError("refused", code)

    monkeypatch.setattr(ipvs, "family_id", refuse)
    with pytest.raises(PreflightError, match=remedy):
        NetlinkIpvs()


def test_other_failures_keep_their_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise KernelError("refused", errno.ENOMEM)

    monkeypatch.setattr(ipvs, "family_id", refuse)
    with pytest.raises(KernelError) as caught:
        NetlinkIpvs()
    assert caught.value.errno == errno.ENOMEM


def test_lost_operations_count_as_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipvs, "family_id", lambda *_: 29)
    monkeypatch.setattr(ipvs, "NetlinkSocket", DeafNetlink)
    adapter = NetlinkIpvs()
    operation = IpvsOperation(Verb.ADD_VIRTUAL_SERVER, KEY, VirtualServer())
    with pytest.raises(StateUnknownError):
        adapter.apply([operation, operation])
    assert adapter.writes == 2
