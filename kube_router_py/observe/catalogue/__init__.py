"""The catalogue of all metrics, from which their help and docs/metrics.md are made. Pure."""

from kube_router_py.observe.catalogue import agent, network, policies, services
from kube_router_py.observe.catalogue.model import PREFIX, Metric, Section, by_name

__all__ = ["METRICS", "PREFIX", "SECTIONS", "Metric", "Section"]

SECTIONS = (
    *services.SECTIONS,
    *policies.SECTIONS,
    *network.SECTIONS,
    *agent.SECTIONS,
)
METRICS = by_name(SECTIONS)
