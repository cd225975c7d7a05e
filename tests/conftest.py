"""For all tests: where capabilities are required, a skip fails; no example has a deadline."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine's other work than about the code. The same
# examples each time: what a test says depends on the code alone. KRP_EXPLORE=1 looks for others.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("KRP_EXPLORE"),
)
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """CI sets KRP_REQUIRE_CAPABILITIES: there, what a test needs has to be installed."""
    report = yield
    if report.skipped and os.environ.get("KRP_REQUIRE_CAPABILITIES"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped here. {reason}"
    return report


@pytest.fixture(scope="session")
def recent_kubectl() -> str:
    """The path of a kubectl that speaks OpenAPI v3 and today's kustomize (1.27 or newer)."""
    path = shutil.which("kubectl")
    if path is None:
        pytest.skip("missing capability: kubectl 1.27 or newer (none is installed)")
    done = subprocess.run(
        [path, "version", "--client", "-o", "json"], capture_output=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)["clientVersion"]
    if (int(found["major"]), int(found["minor"].rstrip("+"))) < (1, 27):
        pytest.skip(f"missing capability: kubectl 1.27 or newer (found {found['gitVersion']})")
    return path


def _beside(name: str) -> ModuleType:
    """The module ``tests/NAME.py``: importlib mode lets tests import no such thing."""
    module = name.rpartition("/")[2]
    if module not in sys.modules:
        spec = spec_from_file_location(module, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules[module]


@pytest.fixture(scope="session")
def beside() -> Callable[[str], ModuleType]:
    """Loads a module that several tests share, by its path below ``tests``."""
    return _beside


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port that nobody has nor gets, each once (module free_ports)."""
    found: Callable[[], int] = _beside("free_ports").free_port
    return found


@pytest.fixture(scope="session")
def tracer() -> Any:
    """Walks packets through the firewall that ``render`` prints (module firewall_tracer)."""
    return _beside("firewall_tracer")


@pytest.fixture(scope="session")
def clusters(tracer: Any) -> Any:
    """Small clusters for the firewall (module firewall_cluster)."""
    return _beside("firewall_cluster")


@pytest.fixture(scope="session")
def random_clusters(clusters: Any) -> Any:
    """Strategies for such clusters and flows through them (module firewall_strategies)."""
    return _beside("firewall_strategies")
