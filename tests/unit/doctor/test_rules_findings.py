"""Rules of others and of ours, as iptables-save prints them."""

import pytest

from kube_router_py.doctor import leftovers, rules
from kube_router_py.options import Options

FIREWALL = Options(run_service_proxy=False, run_firewall=True, run_router=False)

HEALTHY = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-ROUTER-ACCEPT-FWD - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-OUTPUT - [0:0]
:KUBE-POD-FW-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-FIREWALL - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:FOREIGN - [0:0]
-A INPUT -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j KUBE-ROUTER-FORWARD
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -j KUBE-ROUTER-ACCEPT-FWD
-A FORWARD -s 10.0.0.0/8 -j DROP
-A OUTPUT -j KUBE-ROUTER-OUTPUT
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-POD-FW-ABCDEFGHIJKLMNOP -j REJECT
-A DOCKER-ISOLATION-STAGE-1 -j DROP
-A FOREIGN -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
"""


def parsed(text):
    return rules.parse_saved(text, "inet")


def changed(old, new):
    assert HEALTHY.count(old) == 1
    return parsed(HEALTHY.replace(old, new))


def told(findings):
    return [(each.code, each.object) for each in findings]


def everything(tables, options=FIREWALL):
    return [
        *rules.foreign_drops(tables),
        *rules.policies(tables),
        *rules.own_jumps(tables, options, ["inet"]),
    ]


def test_healthy_rules_yield_nothing():
    assert everything(parsed(HEALTHY)) == []


FIRST = "-A FORWARD -j KUBE-ROUTER-FORWARD\n"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("-d 10.1.2.3/32 -j DROP", "foreign-drop"),
        ("-p tcp -j REJECT --reject-with tcp-reset", "foreign-drop"),
        ("-j FOREIGN", "foreign-drop"),
        ("! -i docker0 -j DROP", "foreign-drop"),
        ("-s 100.64.0.0/10 ! -i tailscale0 -j DROP", "foreign-drop"),
        ("-i eth0 -j DROP", "foreign-drop"),
        ("-s 10.1.2.3/32 -j ACCEPT", "own-jump-not-first"),
    ],
)
def test_what_decides_before_ours_is_told(rule, code):
    (only,) = everything(changed(FIRST, f"-A FORWARD {rule}\n{FIRST}"))
    assert only.code == code
    assert only.object.startswith("iptables filter/")


@pytest.mark.parametrize(
    "rule",
    [
        "-j LOG",
        "-j KUBE-FIREWALL",
        "-m conntrack --ctstate INVALID -j DROP",
        "-d 127.0.0.0/8 -j DROP",
        "-j DOCKER-ISOLATION-STAGE-1",
        "-o virbr0 -j REJECT --reject-with icmp-port-unreachable",
        "-s 100.64.0.0/10 -o tailscale0 -j DROP",
        "-d 172.17.0.2/32 ! -i docker0 -j DROP",
    ],
)
def test_what_harms_nobody_may_come_first(rule):
    assert everything(changed(FIRST, f"-A FORWARD {rule}\n{FIRST}")) == []


def test_a_drop_between_our_first_and_our_last_rule_is_told():
    last = "-A FORWARD -j KUBE-ROUTER-ACCEPT-FWD\n"
    found = everything(changed(last, f"-A FORWARD -j DROP\n{last}"))
    assert told(found) == [("foreign-drop", "iptables filter/FORWARD")]


def test_a_drop_in_a_table_that_comes_before_is_told_wherever_it_stands():
    text = ":PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    found = everything(changed(text, f"{text[:-7]}-A PREROUTING -s 1.2.3.4/32 -j DROP\nCOMMIT\n"))
    assert told(found) == [("foreign-drop", "iptables mangle/PREROUTING")]


CALICO = """\
*raw
:PREROUTING ACCEPT [0:0]
:cali-PREROUTING - [0:0]
:cali-rpf-skip - [0:0]
-A PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -j cali-rpf-skip
-A cali-PREROUTING -m rpfilter --validmark --invert -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-ROUTER-ACCEPT - [0:0]
:cali-INPUT - [0:0]
:cali-fw-cali0123456789a - [0:0]
:cali-wl-to-host - [0:0]
-A INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
-A INPUT -j KUBE-ROUTER-ACCEPT
-A cali-INPUT -i cali+ -g cali-wl-to-host
-A cali-wl-to-host -j cali-fw-cali0123456789a
-A cali-fw-cali0123456789a -m comment --comment "Drop if no profiles matched" -j DROP
COMMIT
"""


def test_the_drops_of_a_policy_engine_are_no_findings_of_their_own():
    assert list(rules.foreign_drops(parsed(CALICO))) == []
    text = CALICO.replace("cali-INPUT", "CILIUM_INPUT").replace("cali-", "OLD_CILIUM_")
    assert list(rules.foreign_drops(parsed(text))) == []
    text = CALICO.replace("cali-", "mine-")
    assert told(rules.foreign_drops(parsed(text))) == [
        ("foreign-drop", "iptables raw/mine-PREROUTING"),
        ("foreign-drop", "iptables filter/mine-fw-cali0123456789a"),
    ]


@pytest.mark.parametrize(("parts", "code"), [("firewall", "policy-engine"), ("router", "cni")])
def test_but_that_it_is_here_is_told_where_two_are_too_many(parts, code):
    options = Options(
        run_service_proxy=False, run_firewall=parts == "firewall", run_router=parts == "router"
    )
    chains = [chain for table in parsed(CALICO) for chain in table.chains]
    assert [each.code for each in leftovers.other_cni((), chains, options)] == [f"other-{code}"]


def test_a_chain_with_many_drops_is_one_finding():
    bans = "".join(f"-A FOREIGN -s 192.0.2.{n}/32 -j REJECT\n" for n in range(50))
    text = HEALTHY.replace("-A FOREIGN -j DROP\n", bans)
    lead = "-A FORWARD -p tcp -m multiport --dports 22 -j FOREIGN\n"
    text = text.replace(FIRST, f"{lead}-A FORWARD -j FOREIGN\n{FIRST}")
    (only,) = rules.foreign_drops(parsed(text))
    assert (only.code, only.object) == ("foreign-drop", "iptables filter/FOREIGN")
    assert only.what.endswith("-s 192.0.2.0/32 -j REJECT (and 49 more in this chain)")
    assert "(iptables -t filter -D FOREIGN -s 192.0.2.0/32 -j REJECT)" in only.remedy


def test_rules_that_lead_in_a_circle_end():
    text = HEALTHY.replace("-A FOREIGN -j DROP", "-A FOREIGN -j FOREIGN").replace(
        FIRST, f"-A FORWARD -j FOREIGN\n{FIRST}"
    )
    assert list(rules.foreign_drops(parsed(text))) == []


@pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
def test_a_policy_of_drop_without_accepting_rules_is_told(chain):
    text = HEALTHY.replace(f":{chain} ACCEPT", f":{chain} DROP", 1)
    assert told(everything(parsed(text))) == [("policy-drop", f"iptables filter/{chain}")]


def test_a_policy_of_drop_of_a_forwarding_node_needs_our_accepting_rule():
    text = HEALTHY.replace("-A FORWARD -j KUBE-ROUTER-ACCEPT-FWD\n", "")
    assert told(rules.policies(parsed(text))) == [("policy-drop", "iptables filter/FORWARD")]


def test_the_accepting_rule_may_be_that_of_the_pod_network():
    ours, theirs = "-A FORWARD -j KUBE-ROUTER-ACCEPT-FWD\n", "-A FORWARD -j FLANNEL-FWD\n"
    assert list(rules.policies(changed(ours, theirs))) == []


@pytest.mark.parametrize("parent", ["INPUT", "FORWARD", "OUTPUT"])
def test_a_jump_that_is_gone_is_told(parent):
    found = everything(changed(f"-A {parent} -j KUBE-ROUTER-{parent}\n", ""))
    assert ("own-jump-missing", f"iptables filter/{parent}") in told(found)


def test_the_proxys_jumps_are_expected_where_it_runs():
    proxy = Options(run_service_proxy=True, run_firewall=False, run_router=False)
    found = list(rules.own_jumps(parsed(HEALTHY), proxy, ["inet"]))
    assert told(found) == [
        ("own-jump-missing", "iptables filter/INPUT"),
        ("own-jump-missing", "iptables mangle/OUTPUT"),
    ]


def test_sets_that_are_gone_are_told():
    every = rules.expected_sets(FIREWALL)
    assert "kube-router-local-pods" in every
    (only,) = rules.own_sets(set(every) - {"kube-router-local-pods"}, FIREWALL)
    assert (only.code, only.object) == ("own-set-missing", "ipset kube-router-local-pods")


@pytest.mark.parametrize(
    ("own", "kubelet", "in_use", "code"),
    [
        ({"nft": 5, "legacy": 0}, {"nft": 1, "legacy": 0}, "nft", None),
        ({"nft": 5, "legacy": 0}, {"nft": 0, "legacy": 0}, "nft", None),
        ({"nft": 5, "legacy": 0}, {"nft": 1, "legacy": 1}, "nft", None),
        ({"nft": 5, "legacy": 0}, {"nft": 0, "legacy": 2}, "nft", "iptables-variant-mismatch"),
        ({"nft": 0, "legacy": 3}, {"nft": 2, "legacy": 0}, "legacy", "iptables-variant-mismatch"),
        ({"nft": 5, "legacy": 3}, {"nft": 2, "legacy": 0}, "nft", "own-chains-in-both-variants"),
    ],
)
def test_variants(own, kubelet, in_use, code):
    assert [each.code for each in rules.variants(own, kubelet, in_use)] == [code] * bool(code)
