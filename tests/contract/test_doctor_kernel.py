"""Doctor's readers, in namespaces of a real kernel: what is there is seen, and nothing changes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kube_router_py.doctor import facts_features, facts_host, network, nft, rules
from kube_router_py.doctor.bgp import MD5_COUNTERS
from kube_router_py.options import Options

pytestmark = pytest.mark.netfilter

_HOOK_RULES = """*filter
:FOREIGN - [0:0]
-A FORWARD -d 192.0.2.7/32 -j FOREIGN
-A FORWARD -j KUBE-ROUTER-FORWARD
-A FOREIGN -p tcp -m tcp --dport 80 -j DROP
-A KUBE-ROUTER-FORWARD -j RETURN
COMMIT
"""
_LISTENER = """
import socket, sys
listening = socket.socket()
listening.bind(("127.0.0.1", int(sys.argv[1])))
listening.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _namespace(new_namespace: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with new_namespace():
        yield


def _sh(*words: str, stdin: str = "") -> str:
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_rules_are_read_as_the_kernel_has_them() -> None:
    text = _HOOK_RULES.replace(":FOREIGN", ":KUBE-ROUTER-FORWARD - [0:0]\n:FOREIGN")
    _sh("iptables-nft-restore", "--noflush", stdin=text)
    _sh("iptables-nft", "-P", "OUTPUT", "DROP")
    tables = facts_host.tables("iptables-nft", ["inet", "inet6"])
    (drop,) = rules.foreign_drops(tables)
    assert drop.object == "iptables filter/FOREIGN"
    (policy,) = rules.policies(tables)
    assert policy.object == "iptables filter/OUTPUT"
    firewall = Options(run_service_proxy=False, run_router=False)
    missing = {each.object for each in rules.own_jumps(tables, firewall, ["inet"])}
    assert missing == {f"iptables filter/{name}" for name in ("INPUT", "OUTPUT", "FORWARD")}


def test_to_look_at_legacy_tables_creates_none() -> None:
    assert facts_host.tables("iptables-legacy", ["inet"]) == ()
    with open("/proc/thread-self/net/ip_tables_names") as names:
        assert names.read() == ""


def test_sets_and_links_are_seen() -> None:
    assert facts_host.set_names() == frozenset()
    _sh("ipset", "create", "some-set", "hash:ip")
    assert facts_host.set_names() == {"some-set"}
    _sh("ip", "link", "add", "veth1", "mtu", "1400", "type", "veth", "peer", "name", "veth2")
    _sh("ip", "link", "add", "kube-bridge", "type", "bridge")
    _sh("ip", "link", "set", "veth2", "master", "kube-bridge")
    _sh("ip", "addr", "add", "192.0.2.11/24", "dev", "veth1")
    found = {each.name: each for each in facts_host.links()}
    assert found["veth1"] == network.Link(
        "veth1", 1400, "veth", "", ("192.0.2.11",), ("192.0.2.11/24",)
    )
    assert found["veth2"].master == "kube-bridge"
    assert found["kube-bridge"].kind == "bridge"


def test_parameters_and_counters_are_read() -> None:
    with open("/proc/thread-self/net/netstat") as file:
        assert "TCPMD5NotFound" in file.read()
    assert set(facts_host.md5_counters()) == set(MD5_COUNTERS)
    name, absent = "net/ipv4/ip_forward", "net/ipv4/no_such_parameter"
    assert facts_host.parameters([name, absent]) == {name: "0", absent: None}
    assert facts_host.memory() > 1 << 20
    assert facts_host.cached_paths(["inet", "inet6"]) == {}


def test_who_listens_on_the_port_of_bgp_is_found() -> None:
    assert facts_host.bgp_processes(1790) == ()
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENER, "1790"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        found = [(each.pid, each.port) for each in facts_host.bgp_processes(1790)]
        assert found == [(listener.pid, 1790)]
        assert facts_host.bgp_processes(1791) == ()
        assert listener.pid in facts_host.processes_of("1790")
        listener.communicate("")


def test_the_process_behind_a_socket_is_found(tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        assert facts_host.listening_process(path) == os.getpid()
    used, limit = facts_host.open_files(os.getpid())
    assert used is not None
    assert limit is not None
    assert 0 < used <= limit


def _is_there(kind: str) -> bool:
    """Whether a link of a kind can be made; it is removed again."""
    done = subprocess.run(
        [
            "ip",
            "link",
            "add",
            "probe0",
            "type",
            kind,
            *(["id", "7", "dstport", "0"] * (kind == "vxlan")),
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 0:
        _sh("ip", "link", "del", "probe0")
    return done.returncode == 0


@pytest.mark.parametrize("kind", ["dummy", "vxlan", "ipip"])
def test_kinds_of_links_are_known_or_not_as_making_one_shows(kind: str) -> None:
    asked = facts_features.has_function(kind)
    # Links that a module makes by itself when it is loaded (tunl0) may be there now.
    assert "kube-doctor" not in _sh("ip", "-o", "link")
    assert asked is _is_there(kind)


@pytest.mark.parametrize("name", sorted(facts_features.SETS))
def test_types_of_sets_are_known_or_not_as_making_one_shows(name: str) -> None:
    asked = facts_features.has_function(name)
    assert facts_host.set_names() == frozenset()
    made = subprocess.run(
        ["ipset", "create", "probe", facts_features.SETS[name]],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert asked is (made.returncode == 0)


def test_what_no_kernel_has_is_not_found() -> None:
    assert facts_features.has_match("nosuchmatch") is False
    assert facts_features.has_set_type("hash:nosuch") is False
    assert facts_features.has_link_kind("nosuchkind") is False
    assert facts_features.has_netlink_family("nosuchfamily") is False


def test_families_of_netlink_are_known_or_not() -> None:
    assert facts_features.has_netlink_family("nlctrl") is True
    has_ipvs = facts_features.has_function("ip_vs")
    assert has_ipvs is os.path.exists("/proc/thread-self/net/ip_vs")
    assert facts_features.has_function("nf_conntrack_netlink") is True


def test_tables_of_nft_are_judged_and_those_of_iptables_are_not() -> None:
    _sh("iptables-nft", "-A", "FORWARD", "-j", "DROP")
    assert facts_host.foreign_nft() == ()
    text = """
        table inet mine {
            chain inner { tcp dport 80 reject; }
            chain first { type filter hook forward priority -10; policy drop; accept; }
            chain second { type filter hook input priority 0; ip saddr 192.0.2.1 jump inner; }
            chain third { type filter hook output priority 0; ct state invalid drop; }
            chain fourth { type nat hook prerouting priority 0; }
        }
    """
    _sh("nft", "-f", "-", stdin=text)
    (listed,) = facts_host.foreign_nft()
    assert {(each.code, each.object) for each in nft.drops(listed)} == {
        ("policy-drop", "nft inet mine/first"),
        ("foreign-drop", "nft inet mine/second"),
    }


@pytest.mark.parametrize("name", sorted(facts_features.MATCHES))
def test_matches_are_known_or_not_as_a_rule_with_one_shows(name: str) -> None:
    rule = {
        "xt_set": ["-m", "set", "--match-set", "probe", "src"],
        "xt_conntrack": ["-m", "conntrack", "--ctstate", "NEW"],
        "xt_ipvs": ["-m", "ipvs", "--ipvs"],
    }[name]
    asked = facts_features.has_function(name)
    _sh("ipset", "create", "probe", "hash:ip")
    made = subprocess.run(
        ["iptables-nft", "-A", "INPUT", *rule], capture_output=True, check=False, timeout=60
    )
    assert asked is (made.returncode == 0)


@pytest.fixture
def modules(tmp_path: Path) -> Callable[[str, str], str]:
    """Lists of modules for this kernel, (built in, loadable); returns the root they are below."""

    def write(built_in: str, loadable: str) -> str:
        directory = tmp_path / "lib/modules" / os.uname().release
        directory.mkdir(parents=True)
        (directory / "modules.builtin").write_text(built_in)
        (directory / "modules.dep").write_text(loadable)
        return str(tmp_path)

    return write


def test_a_list_of_modules_does_not_overrule_what_the_kernel_says(
    modules: Callable[[str, str], str],
) -> None:
    """A container may see the list of another kernel, or an empty one."""
    root = modules("kernel/fs/ext4/ext4.ko\n", "")
    assert facts_features.missing(["xt_set", "ip_set_hash_net", "nf_conntrack"], root) == ()


def test_what_the_kernel_loads_by_itself_is_there_and_what_is_in_no_list_is_not(
    modules: Callable[[str, str], str],
) -> None:
    """As in a container that may load none."""
    loadable = "kernel/net/ip_vs_zz.ko.xz: kernel/net/ip_vs.ko.xz\nkernel/a.ko:\n"
    root = modules("kernel/net/zz_built_in.ko\n", loadable)
    names = ["ip_vs_zz", "a", "zz_built_in", "no_such_module", "vs_zz"]
    assert facts_features.missing(names, root) == ("no_such_module", "vs_zz")


def test_a_kernel_that_tells_nothing_is_believed(tmp_path: Path) -> None:
    assert facts_features.missing(["no_such_module"], str(tmp_path)) == ()
