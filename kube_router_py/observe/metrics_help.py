"""docs/metrics.md, made from the catalogue. Pure."""

import textwrap
from collections.abc import Iterator

from kube_router_py.observe.catalogue import SECTIONS, Metric, Section

_WIDTH = 104

_BEGINNING = """\
# Metrics

<!-- Made by: python -m kube_router_py.observe.metrics_help > docs/metrics.md -->

`--metrics-port 20245` serves Prometheus metrics at `--metrics-path` (`/metrics`): those below, and
the usual ones of the process (`process_*`, `python_info`). Those that kube-router has, too, keep
its names and labels, so that its dashboards go on working; where they count something else than
there, their lines say so. Histograms are in seconds. A Grafana dashboard and alerts are in
[manifests/monitoring](../manifests/monitoring/): see the end of this page.
"""

_END = """
## Dashboard and alerts

`manifests/monitoring/` has

- `dashboard.json` for Grafana: *Dashboards, New, Import*; it asks which Prometheus to use;
- `rules.yaml` for Prometheus: name it under `rule_files`. Each alert says what to look at;
- `prometheus-operator/`: the same rules as a PrometheusRule, and a PodMonitor that finds agents:
  `kubectl apply -k manifests/monitoring/prometheus-operator`.

The DaemonSets serve no metrics as they are: add the component `manifests/components/metrics`
([install.md](install.md#metrics)). It gives agents `--metrics-port=20245` and a port by the name
that the PodMonitor looks for. Without the operator, agents are found like this:

```yaml
scrape_configs:
  - job_name: kube-router-py # an alert looks for it
    honor_labels: true # metrics of policies have a namespace and a pod of their own
    kubernetes_sd_configs:
      - role: pod
        namespaces: { names: [kube-system] }
    relabel_configs:
      - source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_name]
        regex: kube-router-py
        action: keep
      - source_labels: [__meta_kubernetes_pod_ip]
        regex: ([^:]+) # of IPv6: (.+:.+), replacement: "[$1]:20245"
        replacement: $1:20245
        target_label: __address__
      - source_labels: [__meta_kubernetes_pod_node_name]
        target_label: instance
```

## Profiling

`--enable-pprof` has the agent answer on `127.0.0.1:6060` (`--pprof-port`), on the node alone. It is
off by default. One question is answered at a time.

- `/debug/pprof/profile?seconds=10`: what all threads were doing, looked at 100 times a second:
  stacks, with how often each was seen, as `flamegraph.pl` and speedscope.app read them; at most
  60 s;
- `/debug/pprof/threads`: where each thread is now;
- `/debug/pprof/heap?seconds=10`: which lines of code took memory meanwhile and still have it. Every
  allocation is followed while it runs: the agent is up to four times as slow.

```
curl -s localhost:6060/debug/pprof/profile?seconds=10 > agent.stacks
```
"""


def page() -> str:
    """The whole page."""
    return _BEGINNING + "".join(_section(each) for each in SECTIONS) + _END


def _section(section: Section) -> str:
    return "\n" + "\n".join((f"## {section.title}", *_body(section))) + "\n"


def _body(section: Section) -> Iterator[str]:
    before = (*_needs(section.flag), *section.before)
    for text in before:
        yield ""
        yield from textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    if section.labels:
        yield from ("", "| label | meaning |", "|---|---|")
        yield from (f"| `{name}` | {text} |" for name, text in section.labels.items())
    yield from ("", "| metric and labels | type | meaning |", "|---|---|---|")
    yield from map(_row, section.metrics)


def _needs(flag: str) -> Iterator[str]:
    if flag:
        yield f"With `{flag}`."


def _row(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    return f"| `{metric.name}{labels}` | {metric.kind} | {metric.help} |"


if __name__ == "__main__":
    print(page(), end="")
