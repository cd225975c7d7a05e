"""Cleanup: what fails is told, stops nothing else, and is tried again by the next one."""

import errno
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
from msgspec import json

from kube_router_py import cli
from kube_router_py.cleanup import Done, clean_up
from kube_router_py.errors import KernelError
from kube_router_py.firewall.frame import ACCEPT, isolated_pods
from kube_router_py.firewall.model import Direction
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
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
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import HostPorts, IpsetSpec, TableRules
from kube_router_py.options import Options
from kube_router_py.proxy.dsr import CHAIN as DSR
from kube_router_py.proxy.masquerade import CHAIN as MASQUERADE
from kube_router_py.proxy.masquerade import HAIRPIN
from kube_router_py.proxy.model import VirtualServer, VirtualServerKey, VirtualServerState
from kube_router_py.proxy.packet_sets import SETS
from kube_router_py.proxy.service_rules import GUARD, SERVICES
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing.egress import CHAIN as POD_EGRESS


class FakeHost:
    """A fake kernel, and adapters for each cleanup."""

    def __init__(self) -> None:
        self.links, self.sets = FakeLinkKernel(), FakeIpsetKernel()
        self.rules, self.ipvs = FakeIptablesKernel(), FakeIpvs()

    def open(self) -> HostPorts:
        return HostPorts(
            self.ipvs,
            FakeLinks(kernel=self.links),
            FakeIpsets(self.sets),
            FakeIptables(self.rules),
            FakeSysctls({}),
        )


def none(*_: Any) -> Any:
    raise KernelError("there is none here")


def nothing_else(*_: Any) -> tuple[str, ...]:
    return ()


def cleaned(
    host: FakeHost,
    mode: str | None = None,
    other_variant: Callable[..., tuple[str, ...]] = nothing_else,
    open_routing: Callable[..., Any] = none,
) -> dict[str, Done]:
    """``mode``: of the kube-proxy that runs."""
    said: list[Done] = []
    clean_up(
        Options(),
        host.open(),
        none,
        open_routing,
        said.append,
        running_mode=lambda: mode,
        other_variant=other_variant,
    )
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
    assert not clean_up(
        Options(),
        host.open(),
        breaks,
        breaks,
        said.append,
        running_mode=lambda: None,
        other_variant=nothing_else,
    )
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


SERVERS = "IPVS virtual servers"


def served(*, by_agent: bool) -> FakeHost:
    """A node with a virtual server; whether the agent's service proxy was there."""
    host = FakeHost()
    key = VirtualServerKey(
        int(socket.AF_INET), socket.IPPROTO_TCP, socket.inet_aton("10.96.0.1"), 443
    )
    host.ipvs.put(key, VirtualServerState(VirtualServer(), {}))
    sets = host.open().ipsets
    # kube-router has the former two, its firewall the next.
    names = SETS[int(socket.AF_INET)]
    for spec in (names.svip, names.svip_port, names.local_ips):
        sets.ensure(spec, frozenset())
    if by_agent:
        for spec in names.all():
            sets.ensure(spec, frozenset())
    return host


@pytest.mark.parametrize("mode", [None, "ipvs", "unknown"])
def test_virtual_servers_stay_where_the_service_proxy_never_was(mode: str | None) -> None:
    """kube-proxy may be restarting, or be one that cannot be seen from here."""
    host = served(by_agent=False)
    told = cleaned(host, mode)[SERVERS]
    assert (told.result, told.failed) == ("none of this agent's", False)
    assert len(host.ipvs.read()) == 1


def chains_of(host: FakeHost) -> set[str]:
    every = (host.rules.chains("inet", table) for table in ("filter", "nat", "mangle"))
    return {name for chains in every for name in chains if name.startswith("KUBE-")}


def test_the_service_proxy_of_kube_router_stays_beside_the_firewall() -> None:
    """Chains, sets and the link have names that this agent's service proxy has, too."""
    host = served(by_agent=False)
    host.links.set_up()
    host.links.has_keeper = False
    before = set(host.sets.sets)
    rules = host.open().iptables
    rules.ensure("inet", "filter", TableRules({SERVICES: (), ACCEPT: ()}))
    rules.ensure("inet", "nat", TableRules({HAIRPIN: ()}))
    told = cleaned(host)
    assert not any(each.failed for each in told.values() if each.what == "ipsets")
    assert chains_of(host) == {SERVICES, HAIRPIN}
    assert set(host.sets.sets) == before
    assert host.links.link == "up"


def test_chains_of_the_service_proxy_go_table_by_table() -> None:
    """Those of direct server return are made apart from the others of their table."""
    host = served(by_agent=True)
    rules = host.open().iptables
    rules.ensure("inet", "filter", TableRules({GUARD: (), SERVICES: ()}))
    rules.ensure("inet", "nat", TableRules({HAIRPIN: (), MASQUERADE: ()}))
    rules.ensure("inet", "mangle", TableRules({DSR: ()}))
    cleaned(host)
    assert chains_of(host) == set()


def test_the_link_tells_of_the_service_proxy_whose_sets_are_gone() -> None:
    host = served(by_agent=False)
    host.links.set_up()
    told = cleaned(host, "unknown")
    assert told[SERVERS].failed
    assert host.links.link == "up", "nothing else tells the next cleanup"
    assert cleaned(host)[SERVERS].result == "1 removed"
    assert host.sets.sets == {}
    assert host.links.link is None


def test_sets_of_the_service_proxy_that_were_held_go_the_next_time() -> None:
    host = served(by_agent=True)
    host.links.set_up()
    held = SETS[int(socket.AF_INET)].svip.name
    host.sets.in_use.add(held)
    assert cleaned(host)["ipsets"].failed
    assert held in host.sets.sets
    assert host.links.link is None
    host.sets.in_use.clear()
    assert not cleaned(host)["ipsets"].failed
    assert host.sets.sets == {}


@pytest.mark.parametrize("mode", [None, "iptables", "nftables", "userspace"])
def test_virtual_servers_of_the_service_proxy_go(mode: str | None) -> None:
    host = served(by_agent=True)
    assert cleaned(host, mode)[SERVERS].result == "1 removed"
    assert not host.ipvs.read()
    assert host.sets.sets == {}


def test_virtual_servers_stay_where_kube_proxy_has_them_by_now() -> None:
    host = served(by_agent=True)
    told = cleaned(host, "ipvs")[SERVERS]
    assert told.result.startswith("left to kube-proxy")
    assert not told.failed
    assert len(host.ipvs.read()) == 1
    assert host.sets.sets == {}


def test_virtual_servers_that_may_be_kube_proxys_go_once_it_has_gone() -> None:
    host = served(by_agent=True)
    told = cleaned(host, "unknown")[SERVERS]
    assert told.failed
    assert "kube-proxy" in told.result
    assert len(host.ipvs.read()) == 1
    assert cleaned(host)[SERVERS].result == "1 removed"
    assert host.sets.sets == {}


def test_virtual_servers_that_could_not_be_removed_go_the_next_time() -> None:
    host = served(by_agent=True)
    host.ipvs.inject(errno.EBUSY, lambda operation: True)
    assert cleaned(host)[SERVERS].failed
    host.ipvs.heal()
    assert cleaned(host)[SERVERS].result == "1 removed"
    assert not host.ipvs.read()
    assert host.sets.sets == {}


def test_chains_of_the_other_variant_go_before_the_sets_that_they_hold() -> None:
    host = served(by_agent=True)
    sets = host.open().ipsets
    for direction in Direction:
        sets.ensure(isolated_pods(direction, "inet"), frozenset())
    host.sets.in_use.update(host.sets.sets)
    asked: list[tuple[list[str], tuple[str, ...]]] = []
    known = (ACCEPT, GUARD, SERVICES, HAIRPIN, POD_EGRESS, "KUBE-POD-FW-X", "FOREIGN")

    def other_variant(
        variant: str,
        families: Iterable[str],
        is_own: Callable[[str], bool],
        markers: Collection[str],
    ) -> tuple[str, ...]:
        assert (variant, tuple(families)) == ("iptables", ("inet", "inet6"))
        asked.append(([name for name in known if is_own(name)], tuple(markers)))
        if len(asked) == 3:
            host.sets.in_use.clear()
        return ("one", "two")

    def open_routing(down: Callable[[], None]) -> RoutingPorts:
        ports = FakeHost().open()
        return RoutingPorts(ports, fake_overlay(), FakeFrr(FakeDaemons()), None)  # type: ignore[arg-type]

    told = cleaned(host, None, other_variant, open_routing)
    own = [names for names, _ in asked]
    assert own == [[POD_EGRESS], [GUARD, SERVICES, HAIRPIN], [ACCEPT, "KUBE-POD-FW-X"]]
    markers = [names for _, names in asked]
    # kube-router has the others' names, too.
    assert markers[0] == ()
    assert GUARD in markers[1]
    assert not {SERVICES, HAIRPIN} & {*markers[1]}
    assert markers[2] == (ACCEPT,)
    assert told["iptables of the other variant, policies"].result == "2 chains removed"
    assert host.sets.sets == {}
