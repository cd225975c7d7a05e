"""Hiding secrets in text that leaves the node. Pure.

Nothing that holds a secret is collected on purpose; this is for those that people have put where
they do not belong, and for FRR's configuration, which has its neighbors' passwords in it.
"""

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"

_PATTERNS = (
    # FRR: neighbor X password Y; the key chains of other protocols.
    (re.compile(r"(?im)(\bpassword[ \t]+(?:\d[ \t]+)?)\S.*$"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"(?im)(\bkey-string[ \t]+)\S.*$"), rf"\g<1>{HIDDEN}"),
    # JSON Web Tokens, as ServiceAccounts have them.
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), HIDDEN),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}"), rf"\g<1>{HIDDEN}"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
        ),
        HIDDEN,
    ),
    # name=value and "name": "value" where the name says that it is one.
    (
        re.compile(
            r"""(?ix)(["']?[\w.-]*(?:passw(?:or)?d|passwd|secret|token|api[_-]?key|private[_-]?key
            |credential|client-key|key-data)[\w.-]*["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}'"]+)"""
        ),
        rf"\g<1>{HIDDEN}",
    ),
    # User and password in a URL.
    (re.compile(r"(\w+://[^/\s:@]*:)[^@\s/]+@"), rf"\g<1>{HIDDEN}@"),
)
_SHORTEST = 4


def masked(text: str, known: Iterable[str] = ()) -> str:
    """``text`` without what looks like a secret, and without those that are ``known``."""
    for secret in sorted({each for each in known if len(each) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def environment(environ: Mapping[str, str], shown: Iterable[str]) -> str:
    """The names of all variables, with the values of those that are ``shown`` only."""
    keep = set(shown)
    return "".join(
        f"{name}={value if name in keep else HIDDEN}\n" for name, value in sorted(environ.items())
    )
