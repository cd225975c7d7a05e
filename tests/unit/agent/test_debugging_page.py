"""docs/debugging.md names everything there is to look at."""

import re
from pathlib import Path

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.loop import Loop
from kube_router_py.loop_model import Controller, Outcome
from kube_router_py.observe.health import Health
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.sysctls import sysctls

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "debugging.md").read_text()


class Idle(Controller):
    name = "service-proxy"

    def open(self):
        pass

    def reconcile(self, dirty, full):
        return Outcome()

    def close(self):
        pass


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


def test_every_kernel_parameter_is_explained():
    wanted = sysctls(ProxyOptions(ipv4=True, ipv6=True), ["LINK"], (5, 4))
    for sysctl in wanted:
        name = sysctl.name.replace("/", ".")
        name = re.sub(r"conf\.(all|[\w-]+)\.(rp_filter|accept_ra)", r"conf.LINK.\2", name)
        assert f"| `{name}` | {sysctl.value}" in PAGE, name
