"""Texts from outside: how booleans are read, and how a Problem quotes and names them. Pure."""

# As Go's strconv.ParseBool, which kube-router reads annotations with.
_BOOLEANS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)


def parse_boolean(text: str) -> bool | None:
    """What Go's ParseBool understands; None: it understands nothing."""
    return _BOOLEANS.get(text)


def shown(text: str) -> str:
    """A text as a Problem quotes it: on one line, and not at any length."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def annotation_field(name: str) -> str:
    """The field of an annotation, as a Problem names it."""
    return f"metadata.annotations[{name}]"
