"""What a loop is told that has changed: an object, by its kind and key. Pure."""

from msgspec import Struct


class Key(Struct, frozen=True, order=True):
    """An object that changed; or, without a name, something else that did."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()
