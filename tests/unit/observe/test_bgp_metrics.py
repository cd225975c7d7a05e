"""Sessions of BGP and BFD as metrics: names, labels, and what happens without FRR."""

import re
import threading
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kube_router_py.errors import KernelError
from kube_router_py.kernel.frr_vty import VtyUnavailableError
from kube_router_py.kernel.ports_frr import BfdState, SessionState, Summary
from kube_router_py.observe.bgp import BgpPage
from kube_router_py.routing.annotations import Member
from kube_router_py.routing.compile import Neighborhood
from kube_router_py.routing.model import ListenRange, Neighbor, Role, Session

NODE, ROUTER, DYNAMIC, UPLINK = "10.0.0.2", "2001:db8::1", "198.51.100.7", "eth1"
SUMMARY = Summary(
    (
        SessionState(NODE, 4, 64512, "Established", 12.5, 3, 7, 2, 1),
        SessionState(ROUTER, 4, 65000, "Idle (Admin)", 0.0, 0, 0, 0, 0),
        SessionState(ROUTER, 6, 65000, "Idle (Admin)", 0.0, 0, 0, 0, 0),
        SessionState(DYNAMIC, 4, 65001, "Established", 1.0, 1, 1, 1, 0),
        SessionState(UPLINK, 6, 0, "Active", 0.0, 0, 0, 0, 0),
        SessionState("203.0.113.9", 4, 65009, "Active", 0.0, 0, 0, 0, 0),
    ),
    (
        BfdState(NODE, "up", 9.0),
        BfdState(ROUTER, "up", 9.0),
        BfdState(ROUTER, "down", 0.0),
    ),
    {4: 12, 6: 3},
)


def neighbor(key: str, role: Role) -> Neighbor:
    session = Session(role=role, remote_as="external", versions=(4,), password="k8s!md5")
    if key == UPLINK:
        return Neighbor(interface=key, session=session)
    return Neighbor(address=ip_address(key), session=session)


AROUND = Neighborhood(
    own=Member(name="node1"),
    neighbors=(
        neighbor(NODE, Role.NODE),
        neighbor(ROUTER, Role.EXTERNAL),
        neighbor(UPLINK, Role.EXTERNAL),
    ),
    listen_ranges=(
        ListenRange(
            network=ip_network("198.51.100.0/24"), session=neighbor(ROUTER, Role.EXTERNAL).session
        ),
    ),
)


def page(read: Callable[[], Summary], clock: Callable[[], float] = lambda: 0.0) -> BgpPage:
    return BgpPage(read, lambda: AROUND, clock)


def samples(text: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found, f"{name} is there twice"
            found[name.removeprefix("kube_router_")] = float(value)
    return found


def test_sessions_have_the_names_and_labels_of_kube_router() -> None:
    text = page(lambda: SUMMARY).text()
    found = samples(text)
    infos = {name for name in found if name.startswith("bgp_peer_info")}
    assert infos == {
        f'bgp_peer_info{{address="{address}",type="{kind}",asn="{asn}",state="{state}"}}'
        for address, kind, asn, state in (
            (NODE, "internal", 64512, "Established"),
            (ROUTER, "external", 65000, "Idle (Admin)"),
            (DYNAMIC, "external", 65001, "Established"),
            (UPLINK, "external", 0, "Active"),
            # Somebody else's, or one that is about to go.
            ("203.0.113.9", "", 65009, "Active"),
        )
    }
    of_node = {
        match[1]: value
        for name, value in found.items()
        if (
            match := re.fullmatch(rf'(\w+){{address="{NODE}",type="internal",family="ipv4"}}', name)
        )
    }
    assert of_node == {
        "bgp_peer_established": 1,
        "bgp_peer_uptime_seconds": 12.5,
        "bgp_peer_prefixes_received": 3,
        "bgp_peer_prefixes_sent": 7,
        "bgp_peer_connections_established_total": 2,
        "bgp_peer_connections_dropped_total": 1,
    }
    for family in ("ipv4", "ipv6"):
        labels = f'{{address="{ROUTER}",type="external",family="{family}"}}'
        assert found[f"bgp_peer_established{labels}"] == 0
    assert found["frr_up"] == 1
    # Of two sessions with one neighbor the one that is down counts.
    ups = {name: value for name, value in found.items() if name.startswith("bfd_session_up{")}
    assert ups == {
        f'bfd_session_up{{address="{NODE}"}}': 1,
        f'bfd_session_up{{address="{ROUTER}"}}': 0,
    }
    assert b"md5" not in text


def test_without_frr_a_scrape_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [KernelError("no FRR"), VtyUnavailableError("no FRR"), SUMMARY]

    def read() -> Summary:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: Summary = answer
        return found

    now_s = [0.0]
    there = page(read, lambda: now_s[0])
    with caplog.at_level("INFO"):
        for _ in range(2):
            text = there.text()
            # What was counted stays: nothing so far.
            assert samples(text) == {"frr_up": 0, "controller_bgp_advertisements_received": 0}
            assert b"# TYPE kube_router_bgp_peer_established gauge\n" in text
            now_s[0] += 10
        assert caplog.text.count("no metrics of BGP sessions for now reason='no FRR'") == 1
        assert samples(there.text())["frr_up"] == 1
    assert caplog.text.count("metrics of BGP sessions are back") == 1


def test_scrapes_that_follow_each_other_closely_cost_one_look() -> None:
    reads: list[float] = []
    now_s = [0.0]

    def read() -> Summary:
        reads.append(now_s[0])
        return SUMMARY

    there = page(read, lambda: now_s[0])
    threads = [threading.Thread(target=there.text) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0.0]
    now_s[0] = 2.0
    there.text()
    assert reads == [0.0, 2.0]


def test_messages_of_all_neighbors_are_added_up_whatever_becomes_of_bgpd() -> None:
    now_s = [0.0]
    updates: list[dict[str, int]] = [
        {NODE: 5, ROUTER: 7},
        {NODE: 6, ROUTER: 9, UPLINK: 4},
        {NODE: 2},  # bgpd was started anew
        {NODE: 2},
    ]
    there = page(lambda: Summary((), (), {}, updates.pop(0)), lambda: now_s[0])
    found = []
    while updates:
        found.append(samples(there.text())["controller_bgp_advertisements_received"])
        now_s[0] += 10
    assert found == [12, 12 + 1 + 2 + 4, 19 + 2, 21]


def test_what_frr_shows_cannot_break_out_of_a_label() -> None:
    strange = 'x"} 1\nkube_router_frr_up 7\\'
    summary = Summary((SessionState(strange, 4, 1, "Active", 0.0, 0, 0, 0, 0),), (), {})
    text = page(lambda: summary).text().decode()
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert [each.value for each in families["kube_router_frr_up"].samples] == [1]
    (info,) = families["kube_router_bgp_peer_info"].samples
    assert info.labels["address"] == strange


def test_a_thousand_neighbors_are_read_and_counted() -> None:
    many = tuple(
        SessionState(f"10.1.{n // 250}.{n % 250}", 4, 64512, "Established", 1.0, n, n, 1, 0)
        for n in range(1000)
    )
    found = samples(page(lambda: Summary(many, (), {4: 1})).text())
    assert len(found) == 1000 * 7 + 2
    assert found['bgp_peer_prefixes_sent{address="10.1.3.249",type="",family="ipv4"}'] == 999
