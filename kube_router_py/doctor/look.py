"""Looking at what may fail: then that is a finding, and what depends on it is left out."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from kube_router_py.doctor.findings import Finding, found

T = TypeVar("T")


class Look:
    """``findings`` in the order in which they came."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self.findings: list[Finding] = list(findings)

    def at(self, what: str, reader: Callable[[], T]) -> T | None:
        """What the reader says, or None where it fails, for whatever reason."""
        try:
            return reader()
        except Exception as error:  # noqa: BLE001 - one look that fails must not end the others
            told = " ".join(str(error).split()) or type(error).__name__
            remedy = "run doctor as root, in the agent's pod or on the node, with its programs"
            self.findings.append(found("could-not-look", what, told, remedy))
            return None

    def tell(self, findings: Iterable[Finding]) -> None:
        self.findings += findings

    @property
    def codes(self) -> set[str]:
        return {each.code for each in self.findings}
