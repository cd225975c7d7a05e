"""Problem: something wrong with one object, told to the operator, that stops nothing else."""

from msgspec import Struct


class Problem(Struct, frozen=True, order=True):
    """One thing wrong with one object.

    ``object`` is ``"Kind namespace/name"`` (``"Kind name"`` for cluster-scoped objects), ``field``
    a dotted path as in a manifest (``"spec.ports[0].port"``, empty where no field is to blame),
    ``reason`` one sentence that says what is wrong and what to do about it.
    """

    object: str
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.object} {self.field}" if self.field else self.object
        return f"{where}: {self.reason}"
