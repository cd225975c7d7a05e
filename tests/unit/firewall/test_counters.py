"""Which rules of a pod's chain count what."""

import pytest

from kube_router_py.firewall.chains import pod_rules, policy_rules
from kube_router_py.firewall.counters import PodCounters, pod_counters
from kube_router_py.firewall.model import Direction, Policy, Rule
from kube_router_py.firewall.names import policy_chain

INGRESS = Direction.INGRESS
POLICIES = ["x/a", "x/b", "x/c"]


def rules(*policies: str, is_audited: bool = False, family: str = "inet") -> tuple[str, ...]:
    address = "10.244.1.10" if family == "inet" else "fd00::10"
    return pod_rules("x/p", INGRESS, family, [address], policies, is_audited=is_audited)


@pytest.mark.parametrize("family", ["inet", "inet6"])
@pytest.mark.parametrize("is_audited", [False, True])
@pytest.mark.parametrize("policies", [POLICIES, POLICIES[:1], []])
def test_the_rules_that_count(policies: list[str], is_audited: bool, family: str) -> None:
    found = rules(*policies, is_audited=is_audited, family=family)
    counters = pod_counters(found)
    assert counters is not None
    assert counters.is_audited is is_audited
    assert list(counters.policies) == [policy_chain(each, INGRESS) for each in policies]
    for name, index in counters.policies.items():
        assert found[index].endswith(f" -j {name}")
    last = found[counters.refused]
    assert ("REJECT" in last) is not is_audited
    # No limit: it counts all of them.
    assert "limit" not in last
    assert "-m mark ! --mark 0x10000/0x10000" in last


def test_a_policy_admits_what_does_not_get_to_the_next() -> None:
    counters = pod_counters(rules(*POLICIES))
    assert counters is not None
    a, b, c = (policy_chain(each, INGRESS) for each in POLICIES)
    # Reaches itself, mark; the policies; log, refuse, mark.
    assert counters == PodCounters(6, False, {a: 2, b: 3, c: 4})
    assert counters.admitted([9, 100, 100, 60, 55, 10, 15, 85]) == {a: 40, b: 5, c: 40}
    # Read while packets pass.
    assert counters.admitted([9, 100, 100, 101, 55, 10, 15, 85]) == {a: 0, b: 46, c: 40}


def test_other_chains_have_none() -> None:
    policy = Policy("x/a", None, {INGRESS: (Rule(0, None, None),)})
    assert pod_counters(policy_rules(policy, INGRESS, "inet")[0]) is None
    assert pod_counters(()) is None
    assert pod_counters(rules("x/a")[:-2]) is None


def test_prefixes_fit() -> None:
    for is_audited, why in ((False, "policy"), (True, "audit")):
        (log,) = (each for each in rules("x/a", is_audited=is_audited) if "NFLOG" in each)
        prefix = log.split('"')[1]
        assert prefix.startswith("KUBE-POD-FW-")
        assert prefix.endswith(f" ingress {why} ")
        assert len(prefix.encode()) <= 63
