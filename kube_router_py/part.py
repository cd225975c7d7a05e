"""What the agent asks of each of its parts (service proxy, firewall, route controller)."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from kube_router_py.cluster.reflector import Reflector
from kube_router_py.loop import Loop


class Part(Protocol):
    """A loop with what belongs to it.

    ``kinds``: what has to be known before the part can work; ``reads``: what it looks at besides.
    ``reflectors``: those of its own caches; the agent has those of the cache that all share.
    """

    loop: Loop

    @property
    def kinds(self) -> tuple[type, ...]: ...

    @property
    def reads(self) -> tuple[type, ...]: ...

    @property
    def reflectors(self) -> Sequence[Reflector[Any]]: ...

    def start(self) -> None:
        """Begin what runs beside the loop."""

    def before_loops_stop(self) -> None:
        """End what must not mark the loop any more."""

    def stop(self) -> None:
        """End what ran beside the loop, which has ended."""

    def numbers(self) -> dict[str, float]:
        """Values for the metrics, by name without the prefix."""

    def writes(self) -> dict[str, int]:
        """Changes sent to the kernel since the agent started, by adapter."""

    def status(self) -> dict[str, Any]:
        """What it has done, for ``kube-router-py status``. For any thread."""


def numbers(parts: Iterable[Part]) -> dict[str, float]:
    """The values of all parts; what several count is added up."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.numbers().items():
            total[name] = total.get(name, 0) + value
    return total
