"""What is said of a metric, once. Pure."""

import re
from collections.abc import Iterable

from msgspec import Struct

PREFIX = "kube_router_"
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


class Metric(Struct, frozen=True):
    """A metric under its whole name, as it is exposed.

    ``kind`` is ``counter``, ``gauge`` or ``histogram``. ``help`` is one sentence without a full
    stop, in Markdown; ``labels`` in the order in which they are written.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def plain_help(self) -> str:
        """For the exposition, whose help is one line of plain text."""
        text = _LINK.sub(r"\1", self.help.replace("`", ""))
        return text[:1].upper() + text[1:]


class Section(Struct, frozen=True):
    """A heading of docs/metrics.md with its metrics, after paragraphs in Markdown (``before``) and
    a table of what its ``labels`` mean.

    ``flag``: without it the agent has none of these; empty: every agent has them.
    """

    title: str
    metrics: tuple[Metric, ...]
    before: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    flag: str = ""


def counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, "counter", text, labels)


def gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, "gauge", text, labels)


def histogram(name: str, text: str, *labels: str) -> Metric:
    """In seconds."""
    return Metric(PREFIX + name, "histogram", text, labels)


def by_name(sections: Iterable[Section]) -> dict[str, Metric]:
    """Raises ValueError for a metric that is there twice."""
    found: dict[str, Metric] = {}
    for section in sections:
        for metric in section.metrics:
            if found.setdefault(metric.name, metric) is not metric:
                raise ValueError(f"{metric.name} is in the catalogue twice")
    return found
