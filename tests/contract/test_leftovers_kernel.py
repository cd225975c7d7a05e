"""The agent's lock, and what kube-proxy and kube-router leave, in namespaces of a real kernel."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kube_router_py.errors import PreflightError
from kube_router_py.kernel import kube_router
from kube_router_py.kernel.agent_lock import AgentLock
from kube_router_py.kernel.kube_proxy import leftovers

pytestmark = pytest.mark.netfilter

_VARIANTS = ("iptables-nft", "iptables-legacy")
# As kube-proxy (mode iptables) and a kubelet write them, with a rule of somebody else's.
_NAT = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-3DU66DE6VORVEQVD - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:OTHER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -s 192.0.2.7/32 -j OTHER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-SEP-3DU66DE6VORVEQVD
-A KUBE-SEP-3DU66DE6VORVEQVD -s 192.168.1.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-3DU66DE6VORVEQVD -p tcp -m tcp -j DNAT --to-destination 192.168.1.1:6443
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
COMMIT
"""
_FILTER = """*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j REJECT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""
_FOREIGN = {
    "nat": {"KUBE-KUBELET-CANARY", "OTHER"},
    "filter": {"KUBE-FIREWALL"},
}


def sh(*words: str, stdin: str = "") -> str:
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.fixture
def namespace(new_namespace: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with new_namespace():
        yield


def chains(variant: str, table: str) -> set[str]:
    lines = sh(f"{variant}-save", "-t", table).splitlines()
    names = {line[1:].split()[0] for line in lines if line.startswith(":")}
    return {each for each in names if each.startswith(("KUBE", "OTHER"))}


def remove(*, everything: bool) -> list[str]:
    done = []
    for what, step in leftovers(everything=everything):
        step()
        done.append(what)
    return done


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("variant", _VARIANTS)
def test_the_rules_of_kube_proxy_go_and_no_others(variant: str) -> None:
    sh(f"{variant}-restore", stdin=_NAT)
    sh(f"{variant}-restore", stdin=_FILTER)
    assert len(remove(everything=False)) == 2
    assert chains(variant, "nat") == _FOREIGN["nat"]
    assert chains(variant, "filter") == _FOREIGN["filter"] | {"KUBE-FORWARD"}
    saved = sh(f"{variant}-save", "-t", "nat")
    assert "-A PREROUTING -s 192.0.2.7/32 -j OTHER" in saved
    assert "KUBE-SERVICES" not in saved
    assert len(remove(everything=True)) == 1
    assert chains(variant, "filter") == _FOREIGN["filter"]
    assert remove(everything=True) == []


@pytest.mark.usefixtures("namespace")
def test_its_sets_and_tables_go_and_no_others() -> None:
    for name in ("KUBE-CLUSTER-IP", "KUBE-6-LOOP-BACK", "kube-router-svip", "mine"):
        sh("ipset", "create", name, "hash:ip")
    for family, name in (("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("inet", "mine")):
        sh("nft", "add", "table", family, name)
    remove(everything=False)
    assert set(sh("ipset", "list", "-name").split()) == {"kube-router-svip", "mine"}
    assert sh("nft", "list", "tables").splitlines() == ["table inet mine"]


@pytest.mark.usefixtures("namespace")
def test_a_set_that_rules_refer_to_goes_with_them() -> None:
    sh("ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port")
    match = ["-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst"]
    sh("iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    sh("iptables-nft", "-t", "nat", "-A", "KUBE-SERVICES", *match, "-j", "ACCEPT")
    remove(everything=True)
    assert sh("ipset", "list", "-name") == ""


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("variant", _VARIANTS)
@pytest.mark.parametrize(
    ("family", "vip", "all_of_it"),
    [("-4", "10.96.0.9/32", "0.0.0.0/0"), ("-6", "fd00:96::9/128", "::/0")],
)
def test_direct_server_return_of_kube_router_goes_and_nothing_else(
    variant: str, family: str, vip: str, all_of_it: str
) -> None:
    program = variant.replace("iptables", "ip6tables") if family == "-6" else variant
    mark = ["-d", vip, "-p", "tcp", "--dport", "80", "-j", "MARK", "--set-mark"]
    clamp = ["-p", "tcp", "--sport", "80", "--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS"]
    mangle = (program, "-t", "mangle", "-A")
    for chain in ("PREROUTING", "OUTPUT"):
        sh(*mangle, chain, *mark, "0x2a7b")
    sh(*mangle, "PREROUTING", "-s", vip, "-i", "kube-bridge", *clamp, "--set-mss", "1440")
    sh(*mangle, "PREROUTING", *mark, "0x99")  # an administrator's
    ip = ("ip", family)
    for words in (
        "rule add fwmark 0x2a7b table 78 priority 32764",
        "rule add table 79 priority 32765",
        "route add local default dev lo table 78",
        "rule add fwmark 0x99 table 99 priority 32763",
        f"rule add from {vip} table 77 priority 32700",
        f"rule add fwmark 0x7d000000/0xff000000 to {all_of_it} table 78 priority 32764 protocol 75",
    ):
        sh(*ip, *words.split())
    done = []
    for what, step in kube_router.leftovers(variant):
        step()
        done.append(what)
    assert len(done) == 4
    saved = sh(f"{program}-save", "-t", "mangle")
    assert "0x2a7b" not in saved
    assert "TCPMSS" not in saved
    assert "0x99/0xffffffff" in saved
    rules = sh(*ip, "-N", "rule", "show")
    assert "0x2a7b" not in rules
    assert "lookup 79" not in rules
    assert all(each in rules for each in ("lookup 99", "lookup 77", "0x7d000000/0xff000000"))
    assert "default" not in sh(*ip, "route", "show", "table", "all", "type", "local")
    assert list(kube_router.leftovers(variant)) == []


@pytest.mark.usefixtures("namespace")
def test_routing_tables_in_use_by_others_stay() -> None:
    sh("ip", "rule", "add", "table", "79", "priority", "32765")
    sh("ip", "route", "add", "blackhole", "192.0.2.0/24", "table", "79")
    # Ours, and the agent's own rule with it.
    sh("ip", "route", "add", "local", "default", "dev", "lo", "table", "78", "proto", "75")
    assert list(kube_router.leftovers("iptables-nft")) == []


@pytest.mark.usefixtures("namespace")
def test_one_agent_holds_the_lock_of_a_namespace(
    new_namespace: Callable[[], AbstractContextManager[None]],
) -> None:
    first, second = AgentLock(), AgentLock()
    first.take(0.0)
    with pytest.raises(PreflightError, match="another kube-router-py agent"):
        second.take(0.0)
    with new_namespace():  # another node of a lab
        other = AgentLock()
        other.take(0.0)
        other.release()
    # One that is just ending is waited for.
    threading.Timer(0.5, first.release).start()
    second.take(60.0)
    second.release()
