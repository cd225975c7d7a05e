"""Looking at iptables' variants and nft(8)'s tables: each by itself."""

import errno

import pytest

from kube_router_py.doctor import host_rules, nft
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.place import Place
from kube_router_py.doctor.rules import parse_saved
from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.options import Options

FIREWALL = Options(run_service_proxy=False, run_firewall=True, run_router=False)
SAVED = """\
*filter
:FORWARD ACCEPT [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A FORWARD -d 10.1.2.3/32 -j DROP
-A FORWARD -j KUBE-ROUTER-FORWARD
COMMIT
"""


@pytest.fixture
def host(monkeypatch):
    """A node that uses iptables-legacy; set what each variant says, or raises."""
    says = {"iptables-legacy": parse_saved(SAVED, "inet"), "iptables-nft": ()}

    def tables(variant, families):
        if isinstance(says[variant], Exception):
            raise says[variant]
        return says[variant]

    monkeypatch.setattr(host_rules.facts_host, "tables", tables)
    monkeypatch.setattr(host_rules.facts_host, "foreign_nft", lambda: ())
    monkeypatch.setattr(host_rules.facts_host, "lacks_own_lock", lambda pid, environ: False)
    monkeypatch.setattr(host_rules, "variant_of", lambda backend: "iptables-legacy")
    monkeypatch.setattr(host_rules, "is_legacy", lambda variant: True)
    monkeypatch.setattr(host_rules, "legacy_tables", lambda family: frozenset(("filter",)))
    monkeypatch.setattr(host_rules, "check_masks", lambda variant: None)
    monkeypatch.setattr(host_rules.kube_proxy, "running_mode", lambda: None)
    return says


def told(options=FIREWALL, *, is_preflight=True):
    look = Look()
    host_rules.look_at_rules(look, Place(options, {}), (), is_preflight=is_preflight)
    return [(each.code, each.object, each.severity) for each in look.findings]


DROP = ("foreign-drop", "iptables filter/FORWARD", "warning")


def test_rules_are_judged_whatever_the_variant_says_that_is_not_used(host):
    assert told() == [DROP]
    host["iptables-nft"] = KernelError("iptables-nft-save: what is this?")
    assert told() == [("could-not-look", "iptables-nft", "warning"), DROP]


def test_a_kernel_without_nf_tables_is_healthy(host):
    why = "Failed to initialize nft: Protocol not supported"
    host["iptables-nft"] = KernelError(f"iptables-nft-save: iptables-nft-save/1.8.9 {why}")
    assert told() == [DROP]


def test_the_variant_that_is_used_has_to_be_seen(host):
    host["iptables-legacy"] = KernelError("no permission")
    assert told() == [("could-not-look", "iptables-legacy", "warning")]


@pytest.mark.parametrize(
    ("error", "is_preflight", "severity"),
    [
        (KernelError("iptables took more than 30 s", errno.ETIMEDOUT), True, "warning"),
        (KernelError("iptables took more than 30 s", errno.ETIMEDOUT), False, "error"),
        (PreflightError("1.8.7 cannot; install another"), True, "error"),
    ],
)
@pytest.mark.usefixtures("host")
def test_iptables_that_is_only_slow_keeps_no_agent_from_starting(
    monkeypatch, error, is_preflight, severity
):
    def fail(variant):
        raise error

    monkeypatch.setattr(host_rules, "is_legacy", fail)
    found = told(Options(run_router=False), is_preflight=is_preflight)
    assert found == [("iptables-unusable", "program iptables", severity)]


def chain(*expressions):
    where = {"family": "inet", "table": "theirs"}
    base = {**where, "name": "forward", "type": "filter", "hook": "forward", "policy": "accept"}
    rule = {**where, "chain": "forward", "expr": [*expressions, {"drop": None}]}
    return {"nftables": [{"chain": base}, {"rule": rule}]}


def match(left, right, op="=="):
    return {"match": {"op": op, "left": left, "right": right}}


@pytest.mark.parametrize(
    ("expression", "is_told"),
    [
        (match({"ct": {"key": "state"}}, "invalid", "in"), False),
        (match({"ct": {"key": "state"}}, ["invalid", "new"], "in"), True),
        (match({"meta": {"key": "oifname"}}, "virbr0"), False),
        (match({"meta": {"key": "iifname"}}, "podman0"), False),
        (match({"meta": {"key": "iifname"}}, "podman0", "!="), True),
        (match({"meta": {"key": "iifname"}}, "eth0"), True),
        (match({"meta": {"key": "iifname"}}, {"set": ["podman0", "eth0"]}), True),
    ],
)
def test_what_an_nft_rule_drops(expression, is_told):
    assert [each.code for each in nft.drops(chain(expression))] == ["foreign-drop"] * is_told
