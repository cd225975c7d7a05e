"""Hiding secrets in text that leaves the node. Pure.

Nothing that holds a secret is collected on purpose; this is for those that people have put where
they do not belong, and for FRR's configuration, which has its neighbors' passwords in it.
"""

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"

# Strangers write some of the text, and each pattern takes time in proportion to it: none begins
# with a repetition, and what repeats does not go back.
_PATTERNS = (
    # FRR: neighbor X password Y; the key chains of other protocols.
    (re.compile(r"(?im)(\bpassword[ \t]+(?:\d[ \t]+)?)\S.*$"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"(?im)(\bkey-string[ \t]+)\S.*$"), rf"\g<1>{HIDDEN}"),
    # JSON Web Tokens, as ServiceAccounts have them.
    (re.compile(r"(?<![\w-])eyJ[\w-]{5,}+\.[\w-]++(?:\.[\w-]*+)?"), HIDDEN),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}+"), rf"\g<1>{HIDDEN}"),
    (
        re.compile(r"""(?i)(\bauthorization["']?[ \t]*[=:][ \t]*["']?\w++[ \t]+)[^\s"',;]+"""),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
        ),
        HIDDEN,
    ),
    # name=value and "name": "value" where the name says that it is one; of a list, all of it.
    (
        re.compile(
            r"""(?ix)((?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|private[_-]?key
            |access[_-]?key|credential|client-key|key-data|dockercfg|dockerconfigjson)
            [\w.-]{0,64}+["']?\s*+[=:]\s*+)
            (\[(?:"(?:[^"\\\n]|\\.)*+"|[^\]"])*+\]?|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?
            |[^\s;}'"\[]++)"""
        ),
        rf"\g<1>{HIDDEN}",
    ),
    # User and password in a URL.
    (re.compile(r"(://[^/\s:@]*+:)[^\s/]+@"), rf"\g<1>{HIDDEN}@"),
)
# What strangers wrote must not move the cursor of a terminal that shows the file.
_HARMLESS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_SHORTEST = 4


def masked(text: str, known: Iterable[str] = ()) -> str:
    """``text`` without what looks like a secret, without those that are ``known``, and harmless to
    terminals."""
    for secret in sorted({each for each in known if len(each) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text.translate(_HARMLESS)


def environment(environ: Mapping[str, str], shown: Iterable[str]) -> str:
    """The names of all variables, with the values of those that are ``shown`` only."""
    keep = set(shown)
    return "".join(
        f"{name}={value if name in keep else HIDDEN}\n" for name, value in sorted(environ.items())
    )
