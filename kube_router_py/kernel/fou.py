"""Receiving foo-over-UDP, as GUE: the kernel's generic netlink family ``fou``.

What comes to such a port is unwrapped and handed on to the tunnel that it is for. Layout:
linux/fou.h; ip-fou(8).
"""

import errno
import socket
from struct import Struct as Layout

from kube_router_py.errors import KernelError
from kube_router_py.kernel.netlink import (
    NETLINK_GENERIC,
    NetlinkSocket,
    attribute,
    attributes,
    family_id,
)

_CMD_ADD, _CMD_DEL, _CMD_GET = 1, 2, 3
_PORT, _AF, _TYPE = 1, 2, 4
_GUE = 2
_HEADER = Layout("=BBH")
_VERSION = 1

Port = tuple[int, int]
"""IP version and UDP port."""

_FAMILY = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
_IP_VERSION = {family: version for version, family in _FAMILY.items()}


class FouPorts:
    """Opened when first used: a node without such tunnels need not have the module."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None
        self._id = 0

    def read(self) -> frozenset[Port]:
        """The ports at which GUE is received; none where the kernel has no such family."""
        try:
            sock, number = self._open()
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return frozenset()
            raise
        found: set[Port] = set()
        for reply in sock.dump(number, _HEADER.pack(_CMD_GET, _VERSION, 0)):
            values = dict(attributes(reply, _HEADER.size))
            version = _IP_VERSION.get(values.get(_AF, b"\0")[0])
            if version is not None and values.get(_TYPE) == bytes((_GUE,)):
                found.add((version, int.from_bytes(values.get(_PORT, b""), "big")))
        return frozenset(found)

    def add(self, port: Port) -> None:
        """Receive at a port. Raises KernelError, with the remedy."""
        try:
            sock, number = self._open()
            sock.request(number, _payload(_CMD_ADD, port))
        except KernelError as error:
            remedy = ""
            if error.errno == errno.ENOENT:
                remedy = ": load the kernel's modules (modprobe -a fou fou6)"
            elif error.errno == errno.EADDRINUSE:
                remedy = ": another program has it, see --overlay-encap-port"
            raise KernelError(
                f"cannot receive foo-over-UDP at port {port[1]}: {error}{remedy}", error.errno
            ) from error

    def remove(self, port: Port) -> None:
        """Do not receive there any more; that nothing does so is no error."""
        try:
            sock, number = self._open()
            sock.request(number, _payload(_CMD_DEL, port))
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _open(self) -> tuple[NetlinkSocket, int]:
        if self._socket is None:
            self._socket = NetlinkSocket(NETLINK_GENERIC)
        if not self._id:
            self._id = family_id(self._socket, "fou")
        return self._socket, self._id


def _payload(command: int, port: Port) -> bytes:
    version, number = port
    found = (
        _HEADER.pack(command, _VERSION, 0)
        + attribute(_PORT, number.to_bytes(2, "big"))
        + attribute(_AF, bytes((_FAMILY[version],)))
    )
    return found + attribute(_TYPE, bytes((_GUE,))) if command == _CMD_ADD else found
