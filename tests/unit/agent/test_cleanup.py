"""Cleanup: what fails is told, stops nothing else, and is tried again by the next one."""

from typing import Any

import pytest
from msgspec import json

from kube_router_py import cli
from kube_router_py.cleanup import Done, clean_up
from kube_router_py.errors import KernelError
from kube_router_py.firewall.frame import isolated_pods
from kube_router_py.firewall.model import Direction
from kube_router_py.kernel.fake_host import (
    FakeIpsetKernel,
    FakeIpsets,
    FakeIptables,
    FakeIptablesKernel,
    FakeLinkKernel,
    FakeLinks,
    FakeSysctls,
)
from kube_router_py.kernel.fake_ipvs import FakeIpvs
from kube_router_py.kernel.ports import HostPorts, IpsetSpec
from kube_router_py.options import Options


class FakeHost:
    """A fake kernel, and adapters for each cleanup."""

    def __init__(self) -> None:
        self.links, self.sets = FakeLinkKernel(), FakeIpsetKernel()
        self.rules = FakeIptablesKernel()

    def open(self) -> HostPorts:
        return HostPorts(
            FakeIpvs(),
            FakeLinks(kernel=self.links),
            FakeIpsets(self.sets),
            FakeIptables(self.rules),
            FakeSysctls({}),
        )


def none(*_: Any) -> Any:
    raise KernelError("there is none here")


def cleaned(host: FakeHost) -> dict[str, Done]:
    said: list[Done] = []
    clean_up(Options(), host.open(), none, none, said.append)
    return {each.what: each for each in said}


@pytest.mark.parametrize("held", ["KUBE-SRC-AAAAAAAAAAAAAAAA", "inet6:KUBE-DST-AAAAAAAAAAAAAAAA"])
def test_a_set_that_was_held_goes_the_next_time(held: str) -> None:
    """Its name alone does not say whose it is: what says so goes last."""
    host = FakeHost()
    family = "inet6" if held.startswith("inet6") else "inet"
    sets = host.open().ipsets
    for spec in (
        *(isolated_pods(direction, "inet") for direction in Direction),
        IpsetSpec(held, "hash:ip", family),
        IpsetSpec("KUBE-SRC-BBBBBBBBBBBBBBBB", "hash:ip", "inet"),
    ):
        sets.ensure(spec, frozenset())
    host.sets.in_use.add(held)
    first = cleaned(host)["ipsets of policies"]
    assert first.failed
    assert held in first.result
    assert "KUBE-SRC-BBBBBBBBBBBBBBBB" not in host.sets.sets
    host.sets.in_use.clear()
    assert not cleaned(host)["ipsets of policies"].failed
    assert host.sets.sets == {}
    assert cleaned(host)["ipsets of policies"].result == "none of this agent's"


def test_a_step_that_breaks_does_not_stop_the_others() -> None:
    host = FakeHost()
    host.links.set_up()

    def breaks(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    said: list[Done] = []
    assert not clean_up(Options(), host.open(), breaks, breaks, said.append)
    assert host.links.link is None
    assert [each.what for each in said if each.failed] == [
        "route controller",
        "policy routing of direct server return",
    ]
    assert "No space left on device" in said[0].result


def test_what_was_done_before_a_failure_is_an_array_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: Options, say: Any, own: Any) -> bool:
        say(Done("one", "removed"))
        raise KernelError("netlink is out of order")

    monkeypatch.setattr("kube_router_py.commands.cleanup._clean_up", fails)
    assert cli.main(["cleanup", "--output", "json"]) == 1
    told = capsys.readouterr()
    assert json.decode(told.out) == [{"what": "one", "result": "removed", "failed": False}]
    assert "netlink is out of order" in told.err
