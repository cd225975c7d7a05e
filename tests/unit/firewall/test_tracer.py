"""The tracer itself: it walks as the kernel does, and takes nothing that would be refused."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

SETS = [
    {"name": "pods", "type": "hash:ip", "family": "inet", "maxelem": 3, "entries": ["10.0.0.1"]},
    {
        "name": "ports",
        "type": "hash:ip,port",
        "family": "inet",
        "maxelem": 3,
        "entries": ["10.0.0.1,tcp:80"],
    },
    {
        "name": "nets",
        "type": "hash:net",
        "family": "inet",
        "maxelem": 3,
        "entries": ["10.1.0.0/16", "10.2.3.4/32"],
    },
    {
        "name": "halves",
        "type": "hash:net,port",
        "family": "inet",
        "maxelem": 3,
        "entries": ["0.0.0.0/1,tcp:80", "128.0.0.0/1,udp:81"],
    },
    {"name": "inet6:a", "type": "hash:ip", "family": "inet6", "maxelem": 3, "entries": []},
]


def text_of(*rules: str, chains: Sequence[str] = ("A", "B", "C")) -> str:
    return "\n".join(("*filter", *(f":{c} - [0:0]" for c in chains), *rules, "COMMIT", ""))


def firewall(tracer: Any, text: str, sets: Sequence[Any] = SETS) -> Any:
    return tracer.Firewall({"ipsets": sets, "iptables": {"ipv4": {"filter": text}}})


def walk(tracer: Any, text: str, **packet: Any) -> Any:
    values = {"hook": "FORWARD", "src": "10.0.0.1", "dst": "10.0.0.2", "protocol": 6, **packet}
    for end in ("src", "dst"):
        values[end] = ip_address(values[end])
    return firewall(tracer, text).walk(tracer.Packet(**values))


def test_goto_returns_to_where_the_last_jump_came_from(tracer: Any) -> None:
    text = text_of(
        "-I FORWARD 1 -j A",
        "-A FORWARD -j C",
        "-A A -g B",
        "-A A -j DROP",
        "-A B -j MARK --set-xmark 0x1/0x1",
        "-A C -m mark --mark 0x1/0x1 -j REJECT",
    )
    found = walk(tracer, text)
    assert found.verdict == "REJECT"
    assert [line.partition(":")[0] for line in found.path] == [
        "FORWARD 1",
        "A 1",
        "B 1",
        "FORWARD 2",
        "C 1",
    ]


def test_return_goes_up_one_chain_and_at_the_top_to_the_policy(tracer: Any) -> None:
    text = text_of(
        "-A FORWARD -j A",
        "-A FORWARD -g C",
        "-A FORWARD -j A",
        "-A A -j B",
        "-A A -m mark --mark 0x0/0x3 -j DROP",
        "-A B -j MARK --set-xmark 0x2/0x2",
        "-A B -j RETURN",
        "-A B -j DROP",
    )
    found = walk(tracer, text, mark=0x4000)
    assert (found.verdict, found.mark) == ("ACCEPT", 0x4002)
    assert found.path[-1].startswith("FORWARD 2")


def test_a_rule_inserted_stands_above_older_ones(tracer: Any) -> None:
    text = text_of("-A FORWARD -j A", "-I FORWARD 1 -j B", "-A A -j DROP", "-A B -j REJECT")
    assert walk(tracer, text).verdict == "REJECT"
    text = text_of("-A FORWARD -j A", "-I FORWARD 2 -j B", "-A A -j DROP", "-A B -j REJECT")
    assert walk(tracer, text).verdict == "DROP"


@pytest.mark.parametrize(
    ("match", "packet", "holds"),
    [
        ("-s 10.0.0.1", {}, True),
        ("-s 10.0.0.1/32 -d 10.0.0.0/24", {}, True),
        ("! -s 10.0.0.0/8", {}, False),
        ("-d 0.0.0.2/0.0.0.15", {}, True),
        ("-d 0.0.0.2/0.0.0.15", {"dst": "10.9.9.18"}, True),
        ("-d 0.0.0.2/0.0.0.15", {"dst": "10.0.0.3"}, False),
        ("-p tcp -m tcp --dport 80", {"dport": 80}, True),
        ("-p tcp -m tcp --dport 80", {"dport": 80, "protocol": 17}, False),
        ("-p udp --dport 80:90", {"dport": 90, "protocol": 17}, True),
        ("-p 132 -m sctp ! --dport 80:90", {"dport": 91, "protocol": 132}, True),
        ("! -p tcp", {}, False),
        ("-p tcp", {}, True),
        ("-m set --match-set pods src", {}, True),
        ("-m set --match-set pods dst", {}, False),
        ("-m set ! --match-set pods dst", {}, True),
        ("-m set --match-set ports dst,dst", {"dst": "10.0.0.1", "dport": 80}, True),
        ("-m set --match-set ports dst,dst", {"dst": "10.0.0.1", "dport": 81}, False),
        (
            "-m set --match-set ports dst,dst",
            {"dst": "10.0.0.1", "dport": 80, "protocol": 17},
            False,
        ),
        ("-m set --match-set ports src,src", {"sport": 80}, True),
        ("-m set --match-set nets dst", {"dst": "10.1.255.1"}, True),
        ("-m set --match-set nets dst", {"dst": "10.2.3.4"}, True),
        ("-m set --match-set nets dst", {"dst": "10.2.3.5"}, False),
        ("-m set --match-set halves dst,dst", {"dport": 80}, True),
        ("-m set --match-set halves dst,dst", {"dport": 81}, False),
        ("-m set --match-set halves dst,dst", {"dport": 80, "dst": "192.0.2.1"}, False),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", {}, False),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", {"state": "ESTABLISHED"}, True),
        ("-m conntrack ! --ctstate INVALID", {}, True),
        ("-m mark ! --mark 0x10000/0x10000", {"mark": 0x30000}, False),
        ("-m mark --mark 0x10000/0x10000", {"mark": 0x30000}, True),
        ("-m addrtype --src-type LOCAL", {"src_local": True}, True),
        ("-m addrtype ! --src-type LOCAL", {"src_local": True}, False),
        ("-m addrtype --dst-type LOCAL", {"dst_local": True}, True),
        ("-m physdev --physdev-is-bridged", {"bridged": True}, True),
        ("-m physdev --physdev-is-bridged", {}, False),
        ("-p icmp -m icmp --icmp-type 8", {"protocol": 1, "icmp": (8, 0)}, True),
        ("-p icmp -m icmp --icmp-type 3/4", {"protocol": 1, "icmp": (3, 1)}, False),
        ('-m comment --comment "a b"', {}, True),
    ],
)
def test_matches(tracer: Any, match: str, packet: dict[str, Any], holds: bool) -> None:
    text = text_of("-A FORWARD -j A", f"-A A {match} -j DROP")
    assert walk(tracer, text, **packet).verdict == ("DROP" if holds else "ACCEPT")


@pytest.mark.parametrize(
    "rule",
    [
        "-A X -j DROP",  # not declared
        "-A A -j X",
        "-A A -j FORWARD",
        "-A A -j A",
        "-A FORWARD -j DROP",
        "-A A -g DROP",
        "-A A -j REJECT x",
        "-A A --dport 80 -j DROP",
        "-A A -m tcp --dport 80 -j DROP",
        "-A A -p tcp --dport 90:80 -j DROP",
        "-A A -p tcp --dport 65536 -j DROP",
        "-A A -p ipv6-icmp -j DROP",
        "-A A -d fd00::1 -j DROP",
        "-A A -m set --match-set none dst -j DROP",
        "-A A -m set --match-set inet6:a dst -j DROP",
        "-A A -m set --match-set pods dst,dst -j DROP",
        "-A A -m set --match-set ports dst -j DROP",
        "-A A --match-set pods dst -j DROP",
        "-A A -m limit --limit 10/min -j DROP",
        "-A A -m recent --set",
        "-A A -j REJECT --reject-with icmp6-port-unreachable",
        f"-A A -j NFLOG --nflog-group 100 --nflog-prefix {'x' * 64}",
        "-A A -j NFLOG --nflog-group 100",
        "-A A -j MARK",
        "-A A -j LOG",
        f"-A A -m comment --comment {'x' * 256}",
        "-A A ! -j DROP",
        "-A A -j",
        "-D A -j DROP",
        "-I A 3 -j DROP",
        ":A - [0:0]",
        ":FORWARD ACCEPT [0:0]",
        f":{'x' * 29} - [0:0]",
        "*nat",
    ],
)
def test_what_would_be_refused_is_an_error(tracer: Any, rule: str) -> None:
    with pytest.raises(tracer.TracerError):
        firewall(tracer, text_of(rule))


def test_a_loop_over_two_chains_is_an_error(tracer: Any) -> None:
    with pytest.raises(tracer.TracerError, match="loop"):
        firewall(tracer, text_of("-A A -j B", "-A B -g A"))


def test_text_without_commit_is_an_error(tracer: Any) -> None:
    with pytest.raises(tracer.TracerError, match="COMMIT"):
        firewall(tracer, "*filter\n:A - [0:0]\n")


@pytest.mark.parametrize(
    ("kind", "family", "entries"),
    [
        ("hash:ip", "inet", ["10.0.0.1", "10.0.0.1"]),
        ("hash:ip", "inet", ["fd00::1"]),
        ("hash:ip", "inet", ["0.0.0.0"]),
        ("hash:ip", "inet", ["10.0.0.0/24"]),
        ("hash:ip", "inet", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("hash:net", "inet", ["0.0.0.0/0"]),
        ("hash:net", "inet6", ["::/0"]),
        ("hash:net,port", "inet", ["0.0.0.0/0,tcp:80"]),
        ("hash:net", "inet", ["10.0.0.1/24"]),
        ("hash:net", "inet", ["10.0.0.0/24 timeout 5"]),
        ("hash:ip,port", "inet", ["10.0.0.1,80"]),
        ("hash:ip,port", "inet", ["10.0.0.1,tcp:65536"]),
        ("list:set", "inet", []),
        ("hash:ip", "inet4", []),
    ],
)
def test_sets_that_would_be_refused_are_errors(
    tracer: Any, kind: str, family: str, entries: list[str]
) -> None:
    found = {"name": "s", "type": kind, "family": family, "maxelem": 2, "entries": entries}
    with pytest.raises(tracer.TracerError):
        firewall(tracer, text_of(), [found])


def test_the_hooks_of_flows(tracer: Any) -> None:
    pod, other, node = "10.244.1.10", "10.244.2.10", "192.168.1.1"

    def ways(**flow: Any) -> list[tuple[str, str]]:
        return [(name, each.hook) for name, each in tracer.hops(tracer.Flow(**flow))]

    same = {"src": pod, "dst": pod, "src_node": "node1", "dst_node": "node1"}
    assert ways(**same) == [("node1", "FORWARD")]
    away = {"src": pod, "dst": other, "src_node": "node1", "dst_node": "node2"}
    assert ways(**away) == [("node1", "FORWARD"), ("node2", "FORWARD")]
    dialled = [("node1", "INPUT"), ("node1", "OUTPUT")]
    assert ways(**same, service=("10.96.0.1", 80)) == dialled
    assert ways(**away, service=("10.96.0.1", 80)) == [*dialled, ("node2", "FORWARD")]
    process = {"src": node, "src_node": "node1", "src_process": True}
    assert ways(**process, dst=pod, dst_node="node1") == [("node1", "OUTPUT")]
    assert ways(**process, dst=other, dst_node="node2") == [
        ("node1", "OUTPUT"),
        ("node2", "FORWARD"),
    ]
    assert ways(src="1.1.1.1", dst=pod, dst_node="node1") == [("node1", "FORWARD")]
    assert ways(src=pod, src_node="node1", dst="1.1.1.1") == [("node1", "FORWARD")]
    to_node = {"src": pod, "src_node": "node1", "dst": node, "dst_process": True}
    assert ways(**to_node, dst_node="node1") == [("node1", "INPUT")]
    assert ways(**to_node, dst_node="node2") == [("node1", "FORWARD"), ("node2", "INPUT")]
