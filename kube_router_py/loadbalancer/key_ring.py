"""The keys that sign heartbeats while a new one is spread. Pure: time is an argument.

Nodes read the Secret at different moments of a period. Whoever finds a new key accepts it at once,
and goes on signing with the old one until all others have found it, too; the old one is accepted
for as long again. So it is where there is no key any more, and Leases are to count.
"""

from kube_router_py.loadbalancer.heartbeat import KEY_MIN_BYTES

READ_S = 60.0
"""How often nodes read the Secret."""
_MARGIN_S = 10.0
SPREAD_S = READ_S + _MARGIN_S
"""After that all nodes have found a key, or that there is none."""


def key_mistake(key: bytes) -> str:
    """What is wrong with a key, or ``""``."""
    if len(key) < KEY_MIN_BYTES:
        return f"it has {len(key)} bytes; at least {KEY_MIN_BYTES} random ones are needed"
    return ""


class KeyRing:
    """Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._key = self._old = b""
        self._changed_at = 0.0

    def put(self, key: bytes, now: float) -> None:
        """The Secret holds this key; ``b""``: none any more."""
        if key == self._key:
            return
        self._old = self.signing(now)
        self._key, self._changed_at = key, now

    def signing(self, now: float) -> bytes:
        """The key to sign with; ``b""``: there is none."""
        return self._old if self._old and now - self._changed_at < SPREAD_S else self._key

    def accepted(self, now: float) -> tuple[bytes, ...]:
        """The keys that packets may be signed with."""
        if self._old and now - self._changed_at >= 2 * SPREAD_S:
            self._old = b""
        return tuple(each for each in (self._key, self._old) if each)
