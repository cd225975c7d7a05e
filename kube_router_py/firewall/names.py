"""Names of chains and sets, and the text that may stand in a rule. Pure.

As in kube-router a name is a prefix and 16 characters of BASE32(SHA256(...)), which fits the 28
characters of a chain and the 31 bytes of a set; but what is hashed says the same after every sync
and restart, and its parts are separated.
"""

import base64
import hashlib
import re

from kube_router_py.firewall.model import Block, Direction, PortName, Selection
from kube_router_py.kernel.ports import IpsetSpec

POD_CHAIN = "KUBE-POD-FW-"
POLICY_CHAIN = "KUBE-NWPLCY-"
SOURCE_SET = "KUBE-SRC-"
PORT_SET = "KUBE-DST-"

_COMMENT_MAX = 240  # of the 255 characters that xt_comment takes
_ODD = re.compile(r"[^A-Za-z0-9._/:=,!()\[\]-]+")
_SEPARATOR = "\0"


def pod_chain(key: str, direction: Direction) -> str:
    return POD_CHAIN + _hash("pod", key, direction)


def policy_chain(key: str, direction: Direction) -> str:
    return POLICY_CHAIN + _hash("policy", key, direction)


def selection_set(selection: Selection, family: str) -> IpsetSpec:
    """The addresses of the pods of a selection."""
    return _spec(SOURCE_SET + _hash("pods", *_parts(selection)), "hash:ip", family)


def block_set(block: Block) -> IpsetSpec:
    return _spec(SOURCE_SET + _hash("block", *block.networks), "hash:net", block.family)


def port_set(selection: Selection, port: PortName, family: str) -> IpsetSpec:
    """Address and number of a named port of the pods of a selection."""
    name = PORT_SET + _hash("port", *_parts(selection), port.protocol, port.name)
    return _spec(name, "hash:ip,port", family)


def beside_set(spec: IpsetSpec, what: str) -> IpsetSpec:
    """What ``comes`` or ``goes`` while a set of policies is being changed."""
    prefix = PORT_SET if spec.type == "hash:ip,port" else SOURCE_SET
    # Ends as no other name does (BASE32 has no 0 and no 1): it never is the one of another set.
    name = prefix + _hash(what, spec.name)[:-1] + ("0" if what == "comes" else "1")
    return _spec(name, spec.type, spec.family)


def family_set(name: str, set_type: str, family: str) -> IpsetSpec:
    """A set of which there is one in each family."""
    return _spec(name, set_type, family)


def comment(text: str) -> str:
    """A match that says what a rule stands for, whatever the text has in it."""
    return f'-m comment --comment "{_ODD.sub(" ", text)[:_COMMENT_MAX].strip()}"'


def _spec(name: str, set_type: str, family: str) -> IpsetSpec:
    return IpsetSpec(f"inet6:{name}" if family == "inet6" else name, set_type, family)


def _parts(selection: Selection) -> tuple[str, ...]:
    """Everything in a selection, unmistakably."""
    found = [selection.namespace]
    for selector in (selection.namespaces, selection.pods):
        found.append(str(len(selector.requirements)))
        for each in selector.requirements:
            found += (each.key, each.operator, str(len(each.values)), *each.values)
    return tuple(found)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256(_SEPARATOR.join(parts).encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest).decode()[:16]
