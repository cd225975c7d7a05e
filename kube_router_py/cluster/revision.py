"""resourceVersions: when one is older than another.

Two versions of objects of one kind are comparable if both are positive decimal integers without
leading zeros (KEP-5504, which makes a promise of what every API server on etcd does). Any other
pair is not comparable, and then the last write wins.
"""


def number(revision: str) -> int | None:
    """The revision as an integer, or None if it is not comparable."""
    if revision.isascii() and revision.isdigit() and revision[0] != "0":
        return int(revision)
    return None


def is_older(revision: str, than: str) -> bool:
    """Whether ``revision`` is certainly older."""
    left, right = number(revision), number(than)
    return left is not None and right is not None and left < right


def is_not_newer(revision: str, than: str) -> bool:
    """Whether ``revision`` is certainly older or the same."""
    left, right = number(revision), number(than)
    return left is not None and right is not None and left <= right
