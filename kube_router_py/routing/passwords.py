"""Passwords of BGP sessions (TCP MD5, RFC 2385), from flags, annotations, a file or a Secret. Pure.

FRR reads a password as one word of at most 80 bytes. No text in here names a password: Problems
are logged and shown to whoever may read the Node's Events.
"""

import base64

from msgspec import Struct

from kube_router_py.routing.model import PASSWORD_MAX

# A file with one password for each router; nobody has so many.
_LONGEST_LIST = 1 << 16


class SecretRef(Struct, frozen=True, order=True):
    """An entry of a Secret in the agent's own namespace."""

    name: str
    key: str

    def __str__(self) -> str:
        return f"{self.name}/{self.key}"


def decode_password(text: str) -> str:
    """A password given in base64. Raises ValueError: "is not base64; ..."."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(
            "is not base64; encode the password: printf %s PASSWORD | base64"
        ) from None
    return checked_password(content)


def secret_password(content: bytes) -> str:
    """A password as a Secret holds it."""
    password = checked_password(content)
    if not password:
        raise ValueError("is empty; write the password there")
    return password


def checked_password(content: bytes) -> str:
    """The password, if FRR takes it; the empty one stands for none.

    A line break at the end is no part of it: ``echo`` leaves one there, in files and in base64.
    (kube-router would use it; hardly any other router can.)
    """
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    if len(content) > PASSWORD_MAX:
        raise ValueError(f"is longer than {PASSWORD_MAX} bytes; choose a shorter password")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8; choose a password of ordinary characters") from None
    # Spaces other than the plain one are not printable to Python.
    if not text.isprintable() or " " in text:
        raise ValueError(
            "has a space or an unprintable character in it; choose a password without any"
        )
    return text


def split_list(text: str) -> tuple[str, ...]:
    """The items of a list of passwords in base64, commas between; blank ones stand for none.

    Raises ValueError for what is too long to be such a list.
    """
    if len(text) > _LONGEST_LIST:
        raise ValueError("is too long; give one password for each router, with commas between")
    return tuple(item.strip() for item in text.strip().split(",")) if text.strip() else ()
