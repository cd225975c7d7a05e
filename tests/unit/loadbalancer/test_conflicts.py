"""Claims of other hosts: what is remembered of them is bounded."""

from ipaddress import ip_address

from kube_router_py.loadbalancer.conflicts import Claim, Conflicts

VIP = ip_address("192.0.2.1")


def test_a_flood_of_claims_is_remembered_in_part_and_answered_once_per_second() -> None:
    conflicts = Conflicts("a", 20246)
    now = answers = 0
    for now in range(30):
        for number in range(1000):
            conflicts.note(Claim(VIP, "eth0", f"02:00:{now:02x}::{number:04x}"), float(now))
            answers += conflicts.answer(float(now))[0]
    assert answers == 30
    conflicts.note(Claim(VIP, "eth0", "02:00:00::0001"), 31.0)
    assert len(conflicts._seen) <= 256
    # Whoever is one host is told once the flood is over.
    for second in range(100, 120):
        conflicts.note(Claim(VIP, "eth0", "02::1"), float(second))
        conflicts.answer(float(second))
    (problem,) = conflicts.problems(lambda address: ("default/web",))
    assert "02::1" in problem.reason


def test_a_conflict_that_lasts_makes_no_other_address_wait() -> None:
    conflicts = Conflicts("a", 20246)
    for second in range(30):
        conflicts.note(Claim(VIP, "eth0", "02::1"), float(second))
        conflicts.answer(float(second))
    assert not conflicts.answer(30.5)[0]
    conflicts.note(Claim(ip_address("192.0.2.2"), "eth0", "02::2"), 31.0)
    assert conflicts.answer(31.0)[0]
