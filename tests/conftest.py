"""For all tests: where capabilities are required, a skip is a failure."""

import os
from collections.abc import Generator

import pytest


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
