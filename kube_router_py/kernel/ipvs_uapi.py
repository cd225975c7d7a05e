"""The numbers and layouts of IPVS's generic netlink family (include/uapi/linux/ip_vs.h)."""

import sys
from struct import Struct
from typing import Final

from kube_router_py.kernel.netlink import attribute

GENL_VERSION: Final = 1

CMD_NEW_SERVICE: Final = 1
CMD_SET_SERVICE: Final = 2
CMD_DEL_SERVICE: Final = 3
CMD_GET_SERVICE: Final = 4
CMD_NEW_DEST: Final = 5
CMD_SET_DEST: Final = 6
CMD_DEL_DEST: Final = 7
CMD_GET_DEST: Final = 8
CMD_SET_CONFIG: Final = 12
CMD_GET_CONFIG: Final = 13
CMD_GET_INFO: Final = 15

# IPVS_CMD_ATTR_*
SERVICE: Final = 1
DEST: Final = 2
TIMEOUTS: Final = (4, 5, 6)  # TCP, TCP_FIN, UDP
# IPVS_SVC_ATTR_*
S_AF: Final = 1
S_PROTOCOL: Final = 2
S_ADDR: Final = 3
S_PORT: Final = 4
S_FWMARK: Final = 5
S_SCHED: Final = 6
S_FLAGS: Final = 7
S_TIMEOUT: Final = 8
S_NETMASK: Final = 9
S_STATS64: Final = 12
# IPVS_STATS_ATTR_*: connections, packets in and out, bytes in and out; then each a second
TRAFFIC: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
# IPVS_DEST_ATTR_*
D_ADDR: Final = 1
D_PORT: Final = 2
D_FWD: Final = 3
D_WEIGHT: Final = 4
D_UPPER: Final = 5
D_LOWER: Final = 6
D_ACTIVE: Final = 7
D_INACTIVE: Final = 8
D_PERSISTENT: Final = 9
D_FAMILY: Final = 11
D_TUN_TYPE: Final = 13
D_TUN_PORT: Final = 14
D_TUN_FLAGS: Final = 15
# IPVS_INFO_ATTR_*
I_VERSION: Final = 1
I_TABLE_SIZE: Final = 2

PERSISTENT: Final = 0x01
"""IP_VS_SVC_F_PERSISTENT"""
FORWARD_MASK: Final = 0x07
"""IP_VS_CONN_F_FWD_MASK"""


def u16(value: bytes) -> int:
    """A native 16-bit number."""
    return int.from_bytes(value[:2], sys.byteorder)


def u32(value: bytes) -> int:
    """A native 32-bit number."""
    return int.from_bytes(value[:4], sys.byteorder)


def u64(value: bytes) -> int:
    """A native 64-bit number."""
    return int.from_bytes(value[:8], sys.byteorder)


def layout(*members: tuple[int, str]) -> tuple[str, tuple[int, ...]]:
    """The struct format of attributes (type, format of the value), and their headers.

    A header counts as one native 32-bit number, so that all can be compared in one go.
    """
    codes = ""
    headers = []
    for kind, code in members:
        size = Struct("=" + code).size
        codes += f"I{code}{-size % 4}x"
        headers.append(u32(attribute(kind, bytes(size))))
    return codes, tuple(headers)


def command(number: int) -> bytes:
    """struct genlmsghdr: the payload that opens every request."""
    return bytes((number, GENL_VERSION, 0, 0))
