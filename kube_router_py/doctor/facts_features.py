"""Whether the kernel has a function, whatever module it is in, without changing anything.

The list of modules does not tell everything: a kernel may have all of it built in, and a container
see no /lib/modules, or may not load any. Where the kernel can be asked, its answer counts; being
asked it loads the module by itself, as it does when it is used.
"""

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_NLMSG_ERROR = 2
# linux/netfilter/nfnetlink.h, nf_tables_compat.h, ipset/ip_set.h, rtnetlink.h, if_link.h
_SUBSYS_CTNETLINK, _SUBSYS_IPSET, _SUBSYS_COMPAT = 1, 6, 11
_CT_GET_STATS = 5
_NETLINK_GENERIC, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 16, 3
_IPSET_CMD_TYPE, _COMPAT_GET = 13, 0
_IPSET_PROTOCOL = 6
_NO_SUCH_TYPE = 4098  # IPSET_ERR_FIND_TYPE
_RTM_NEWLINK = 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 3, 18, 1, 2
_IPTUN_PROTO = 9
_TIMEOUT_S = 10.0
_NESTED = 0x8000

MATCHES = {"xt_set": "set", "xt_conntrack": "conntrack", "xt_ipvs": "ipvs"}
SETS = {
    "ip_set_hash_ip": "hash:ip",
    "ip_set_hash_ipport": "hash:ip,port",
    "ip_set_hash_ipportip": "hash:ip,port,ip",
    "ip_set_hash_ipportnet": "hash:ip,port,net",
    "ip_set_hash_net": "hash:net",
    "ip_set_hash_netport": "hash:net,port",
}
_FILES = {
    "nf_conntrack": "/proc/sys/net/netfilter/nf_conntrack_max",
    "br_netfilter": "/proc/sys/net/bridge/bridge-nf-call-iptables",
}
# Families of generic netlink.
_FAMILIES = {"ip_vs": "IPVS", "fou": "fou"}
# Nothing asks the kernel for it: it has to be loaded by somebody.
_BY_HAND = frozenset(("br_netfilter",))
_MODULE = re.compile(r"(?m)^\S*?([^/\s]+)\.ko(?:\.\w+)?(?::|$)")
_LINKS = ("dummy", "ipip", "vxlan")


def missing(names: Iterable[str], root: str = "", release: str = "") -> tuple[str, ...]:
    """Those modules whose function this kernel has not, and would not have for the asking;
    ``root``: where /lib/modules lies.

    Nothing is loaded on purpose. A kernel whose list of what is built in cannot be seen is believed
    to have what it cannot be asked for.
    """
    listed = _listed(f"{root}/lib/modules/{release or os.uname().release}")
    found = []
    for name in names:
        has = has_function(name)
        if has is None and listed is not None and not Path("/sys/module", name).exists():
            # The kernel loads others by itself when they are used.
            has = name in listed.built_in or (name in listed.loadable and name not in _BY_HAND)
        if has is False:
            found.append(name)
    return tuple(found)


class _Listed(NamedTuple):
    built_in: frozenset[str]
    loadable: frozenset[str]


def _listed(directory: str) -> _Listed | None:
    """The modules of a kernel as depmod(8) lists them; None: that cannot be seen."""
    try:
        built_in = Path(directory, "modules.builtin").read_text()
    except OSError:
        return None
    try:
        loadable = Path(directory, "modules.dep").read_text()
    except OSError:
        loadable = ""
    return _Listed(*(frozenset(_MODULE.findall(text)) for text in (built_in, loadable)))


def has_function(name: str) -> bool | None:
    """Whether the kernel has what a module brings; None where it cannot be asked."""
    try:
        if name in MATCHES:
            return has_match(MATCHES[name])
        if name in SETS:
            return has_set_type(SETS[name])
        if name in _LINKS:
            return has_link_kind(name)
        if name in _FAMILIES:
            return has_netlink_family(_FAMILIES[name])
        if name == "nf_conntrack_netlink":
            return _has_conntrack_netlink()
    except OSError:
        return None
    if name in _FILES and os.path.exists(_FILES[name]):
        return True
    return None


def has_match(name: str) -> bool | None:
    """As iptables-nft asks which revision of a match there is (nft_compat)."""
    attributes = (
        _attribute(1, name.encode() + b"\0")
        + _attribute(2, struct.pack(">I", 0))
        + _attribute(3, struct.pack(">I", 0))
    )
    body = struct.pack("BBH", socket.AF_INET, 0, 0) + attributes
    code = _ask(_NETLINK_NETFILTER, _SUBSYS_COMPAT << 8 | _COMPAT_GET, 0, body)
    # EINVAL: no nft_compat here, the legacy variant may have it all the same. Of a match that is
    # there, other revisions than 0 make it an EPROTONOSUPPORT.
    return {0: True, errno.ENOENT: False, errno.EPROTONOSUPPORT: True}.get(code)


def has_set_type(name: str) -> bool | None:
    """As ``ipset create`` asks for the revisions of a type."""
    attributes = (
        _attribute(1, bytes([_IPSET_PROTOCOL]))
        + _attribute(3, name.encode() + b"\0")
        + _attribute(5, bytes([socket.AF_INET]))
    )
    body = struct.pack("BBH", socket.AF_INET, 0, 0) + attributes
    code = _ask(_NETLINK_NETFILTER, _SUBSYS_IPSET << 8 | _IPSET_CMD_TYPE, 0, body)
    # EINVAL: no ipset here at all.
    return {0: True, _NO_SUCH_TYPE: False, errno.EINVAL: False}.get(code)


def has_link_kind(kind: str) -> bool | None:
    """Ask for a link of the kind with something wrong in it: the kernel refuses to make it, but
    says whether it knows the kind."""
    wrong = b""
    if kind == "ipip":  # any protocol but IPv4 and MPLS is refused
        wrong = _attribute(_IFLA_INFO_DATA | _NESTED, _attribute(_IPTUN_PROTO, bytes([255])))
    information = _attribute(_IFLA_INFO_KIND, kind.encode() + b"\0") + wrong
    attributes = _attribute(_IFLA_LINKINFO | _NESTED, information)
    if kind != "ipip":  # an Ethernet address has six bytes
        attributes += _attribute(_IFLA_ADDRESS, bytes(3))
    attributes += _attribute(_IFLA_IFNAME, b"kube-doctor\0")
    body = struct.pack("BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + attributes
    code = _ask(socket.NETLINK_ROUTE, _RTM_NEWLINK, _NLM_F_CREATE, body)
    known = {errno.EINVAL: True, errno.EADDRNOTAVAIL: True, errno.EOPNOTSUPP: False}
    return known.get(code)


def has_netlink_family(name: str) -> bool | None:
    """Ask the controller of generic netlink, as everyone does who is to talk to the family."""
    body = struct.pack("BBH", _CTRL_CMD_GETFAMILY, 1, 0) + _attribute(2, name.encode() + b"\0")
    code = _ask(_NETLINK_GENERIC, _GENL_ID_CTRL, 0, body)
    return {0: True, errno.ENOENT: False}.get(code)


def _has_conntrack_netlink() -> bool | None:
    """Ask how many connections there are."""
    body = struct.pack("BBH", socket.AF_UNSPEC, 0, 0)
    code = _ask(_NETLINK_NETFILTER, _SUBSYS_CTNETLINK << 8 | _CT_GET_STATS, 0, body)
    return {0: True, errno.EINVAL: False}.get(code)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("HH", length, kind) + payload + bytes(-length % 4)


def _ask(protocol: int, kind: int, flags: int, body: bytes) -> int:
    """Send one netlink message; the error number of the answer, 0 for any other answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(_TIMEOUT_S)
        asking.bind((0, 0))
        length = 16 + len(body)
        head = struct.pack("IHHII", length, kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
        asking.sendto(head + body, (0, 0))
        answer = asking.recv(65536)
        if struct.unpack_from("H", answer, 4)[0] != _NLMSG_ERROR:
            return 0
        return -int(struct.unpack_from("i", answer, 16)[0])
