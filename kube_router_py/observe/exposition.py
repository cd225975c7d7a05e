"""Samples in Prometheus' text format, with help and type from the catalogue.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format. Written here where
there are many, or where names of counters do not end in ``_total`` as kube-router's do not: the
library would append that, and take ten times as long.
"""

from collections.abc import Iterable, Iterator, Mapping

from kube_router_py.observe.catalogue import METRICS, PREFIX

# Whoever scrapes knows this version; that which the library names now not all of them (expfmt of
# Go refuses it), and names here have no character that would need it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[tuple[object, ...], float]
"""Values of the labels, in the order of the catalogue, and the value."""

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def head(name: str) -> str:
    """Help and type of a metric, by its name without the prefix."""
    metric = METRICS[PREFIX + name]
    return f"# HELP {metric.name} {metric.plain_help}\n# TYPE {metric.name} {metric.kind}\n"


def family(name: str, samples: Iterable[Sample]) -> Iterator[str]:
    """All samples of a metric, by its name without the prefix. Raises KeyError for one that the
    catalogue does not have, ValueError for other labels than it says."""
    metric = METRICS[PREFIX + name]
    yield head(name)
    for labels, value in samples:
        pairs = (
            f'{label}="{str(text).translate(_ESCAPED)}"'
            for label, text in zip(metric.labels, labels, strict=True)
        )
        inside = f"{{{','.join(pairs)}}}" if labels else ""
        yield f"{metric.name}{inside} {_number(value)}\n"


def single(name: str, value: float) -> str:
    """A metric without labels."""
    return "".join(family(name, [((), value)]))


def _number(value: float) -> str:
    """Whole numbers without a fraction as far as they are exact; a /64 has more addresses."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1 << 53 else repr(number)


def by_label(name: str, values: Mapping[str, float]) -> Iterator[str]:
    """A metric with one label, sorted by it."""
    return family(name, [((label,), value) for label, value in sorted(values.items())])
