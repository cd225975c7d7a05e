"""docs/debugging.md and docs/metrics.md name everything there is to look at."""

import re
from pathlib import Path

import pytest
from msgspec import structs

from kube_router_py.address_pool_config import pool_settings
from kube_router_py.allocation_part import AllocationPart
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Namespace, Node, Service
from kube_router_py.firewall.controller import KINDS, Firewall
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.ipvs_decode import Traffic
from kube_router_py.kernel.neighbor_ports import NUMBERS
from kube_router_py.kernel.ports_frr import BfdState, SessionState, Summary
from kube_router_py.layer2_part import Layer2Part
from kube_router_py.loadbalancer.decisions import Occupancy
from kube_router_py.loop import Loop
from kube_router_py.loop_model import Controller, Outcome, Turn
from kube_router_py.observe.bgp import BgpPage
from kube_router_py.observe.health import Health
from kube_router_py.observe.metrics import Metrics
from kube_router_py.observe.traffic import LABELS, TrafficPage
from kube_router_py.options import parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.proxy.model import VirtualServerKey
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.sysctls import sysctls
from kube_router_py.routing.controller import RouteController
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "debugging.md").read_text()
METRICS_PAGE = (DOCS / "metrics.md").read_text()


ONE_SESSION = Summary(
    (SessionState("192.0.2.1", 4, 65000, "Established", 1.0, 1, 1, 1, 0),),
    (BfdState("192.0.2.1", "up", 1.0),),
    {4: 2},
)


class OneServer:
    def read_traffic(self):
        return {VirtualServerKey(2, 6, bytes((10, 96, 0, 10)), 80): Traffic(1, 2, 3, 4, 5)}

    def close(self):
        pass


class Idle(Controller):
    name = "service-proxy"

    def open(self):
        pass

    def reconcile(self, dirty, full):
        return Outcome()

    def close(self):
        pass


def fail():
    raise AssertionError("nothing is opened here")


@pytest.fixture
def parts():
    cache = Cache((Service, Node))
    loop = Loop(Idle(), ready=lambda: True, resync_interval_s=300)
    assert loop.turn_if_due()
    cache.replace(Service, [], "10")
    cache.failed(Node, "refused", "HTTP 403")
    return cache, [loop]


def test_every_field_of_readyz_is_explained(parts):
    cache, loops = parts
    report = Health(node="node1", version="1", cache=cache, loops=loops).report()
    fields = {*report, *report["loops"]["service-proxy"], *report["caches"]["Service"]}
    table = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|"))
    explained = {word for name in re.findall(r"`([^`]+)`", table) for word in name.split(".")}
    assert fields - explained == set()


@pytest.fixture
def balancer():
    """The parts that allocate addresses (as if this agent led) and that announce them."""
    options = parse(["--run-loadbalancer", "--loadbalancer-ip-range=192.0.2.0/24"], {})
    cache = Cache((Service, Namespace, Node, EndpointSlice))
    book = PoolBook(pool_settings(options, "kube-system"))
    rest = (book, fail, fail)
    allocation = AllocationPart(options, cache, None, "node1", "kube-system", "", *rest)
    layer2 = Layer2Part(options, cache, None, "node1", "kube-system", book, None, *(fail,) * 3)
    allocation.controller.report = structs.replace(
        allocation.controller.report, occupancy=(Occupancy("default", 4, 256, 1, 255),)
    )
    return allocation, layer2


def test_every_metric_is_explained_and_exists(parts, balancer):
    cache, loops = parts
    metrics = Metrics(
        version="1",
        cache=cache,
        loops=loops,
        gauges=lambda: {
            "controller_ipvs_services": 1,
            "refused_addresses": 0,
            "events_dropped_total": 0,
            **Firewall(Cache(KINDS), FirewallOptions(), "node1", fail).numbers,
            **RouteController(
                *(cache, RoutingSettings(), "node1", fail, fail),
                PasswordSources(RoutingSettings(), "node1"),
            ).numbers,
            **balancer[0].numbers(),
            **balancer[1].numbers(),
            **{f"layer2_{each}_total": 0 for each in NUMBERS if each != "links"},
            "layer2_links": 0,
        },
        writes=lambda: {"ipvs": 0},
        traffic=TrafficPage(OneServer, lambda key: ("default/web", key)).text,
        more=lambda: BgpPage(lambda: ONE_SESSION, lambda: None).text() + balancer[0].page(),
    )
    metrics.on_turn(Turn("service-proxy", 1.0, False, 1, 0))
    page = metrics.page().body.decode()
    types = dict(re.findall(r"^# TYPE (kube_router_\w+) (\w+)$", page, re.MULTILINE))
    rows = re.findall(
        r"^\| `(kube_router_\w+?)(?:\{([\w,]+)\})?` \| (\w+) \|", METRICS_PAGE, re.MULTILINE
    )
    assert types == {name: kind for name, _, kind in rows}
    labels = {name: set(given.split(",")) - {""} for name, given, _ in rows}
    for name in labels:
        samples = re.findall(rf"^{name}(?:_count)?(?:\{{(.*)\}})? \S+$", page, re.MULTILINE)
        assert samples, f"{name} has no value"
        # Those of Services have the same labels all, which a sentence names.
        wanted = set(LABELS) if name.startswith("kube_router_service_") else labels[name]
        assert set(re.findall(r"(\w+)=\"", samples[0])) == wanted, name
    assert all(f"`{label}`" in METRICS_PAGE for label in LABELS)


def test_what_the_alerts_of_the_page_ask_for_exists():
    rules = METRICS_PAGE.split("```yaml")[1].split("```")[0]
    asked = {name.removesuffix("_bucket") for name in re.findall(r"kube_router_\w+", rules)}
    assert asked
    assert asked <= set(re.findall(r"^\| `(kube_router_\w+)", METRICS_PAGE, re.MULTILINE))


def test_every_kernel_parameter_is_explained():
    wanted = sysctls(ProxyOptions(ipv4=True, ipv6=True), ["LINK"], (5, 4))
    for sysctl in wanted:
        name = sysctl.name.replace("/", ".")
        name = re.sub(r"conf\.(all|[\w-]+)\.(rp_filter|accept_ra)", r"conf.LINK.\2", name)
        assert f"| `{name}` | {sysctl.value}" in PAGE, name
