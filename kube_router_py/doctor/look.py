"""Looking at what may fail: then that is a finding, and what depends on it is left out."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from kube_router_py.doctor.findings import Finding, found
from kube_router_py.observe.log import origin

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
        """Take findings as they are made; one that cannot be made does not end the look."""
        try:
            for each in findings:
                self.findings.append(each)
        except Exception as error:  # noqa: BLE001 - as above
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            remedy = "this is a fault of doctor's: report it with a bundle (doctor --bundle FILE)"
            where = origin(error).partition(" ")[2].partition(" <")[0]
            self.findings.append(found("could-not-look", f"doctor at {where}", what, remedy))

    @property
    def codes(self) -> set[str]:
        return {each.code for each in self.findings}
