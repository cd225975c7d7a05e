"""Rules against a packet: yes, no, or not to be told."""

import pytest
from msgspec import structs

from kube_router_py.flow.nft_text import parse_ruleset, refusing, rule_matches
from kube_router_py.flow.rule_match import Packet, contains, matches
from kube_router_py.flow.walk import walk
from kube_router_py.kernel.ports import IpsetSpec, SetState
from kube_router_py.kernel.ports_reading import Tables
from kube_router_py.kernel.rule_text import canonical

PACKET = Packet(
    *("inet", "tcp", "10.244.1.9", "10.244.2.3", 8080),
    in_link="kube-bridge",
    out_link="eth0",
    is_local_source=False,
    is_local_target=False,
)
SETS = {
    "ips": SetState(IpsetSpec("ips", "hash:ip", "inet"), 0, frozenset(("10.244.1.9",))),
    "ports": SetState(
        IpsetSpec("ports", "hash:ip,port", "inet"), 0, frozenset(("10.244.2.3,tcp:8080",))
    ),
    "nets": SetState(
        IpsetSpec("nets", "hash:net", "inet"),
        0,
        frozenset(("10.0.0.0/8", "10.244.0.0/16 nomatch", "10.244.2.0/24")),
    ),
    "list": SetState(IpsetSpec("list", "list:set", "inet"), 0, frozenset(("ips",))),
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-j DROP", True),
        ("-s 10.244.1.0/24 -j DROP", True),
        ("! -s 10.244.1.0/24 -j DROP", False),
        ("-s 10.244.2.0/24 -j DROP", False),
        ("-d 0.0.0.3/0.0.0.15 -j DROP", True),
        ("-d 0.0.0.4/0.0.0.15 -j DROP", False),
        ("-d fd00::/8 -j DROP", False),
        ("-p tcp -j DROP", True),
        ("-p udp -j DROP", False),
        ("! -p udp -j DROP", True),
        ("-p icmp -m icmp --icmp-type 8 -j DROP", False),
        ("-i kube-bridge -o eth+ -j DROP", True),
        ("-i eth0 -j DROP", False),
        ("! -o lo -j DROP", True),
        ("-p tcp -m tcp --dport 8080 -j DROP", True),
        ("-p tcp -m tcp ! --dport 8080 -j DROP", False),
        ("-p tcp -m tcp --dport 8000:9000 -j DROP", True),
        ("-p tcp -m tcp --dport 1:80 -j DROP", False),
        ("-p tcp -m multiport --dports 80,8080 -j DROP", True),
        ("-p tcp -m multiport --dports 80,443 -j DROP", False),
        ("-p tcp -m tcp --sport 1024:65535 -j DROP", None),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", True),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", False),
        ("-p tcp -m tcp --tcp-flags ALL NONE -j DROP", False),
        ("-p tcp -m tcp --tcp-flags SYN,RST SYN,RST -j DROP", False),
        ("-p gre -j DROP", False),
        ("-p 47 -j DROP", False),
        ("-m conntrack --ctstate NEW,INVALID -j DROP", True),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j DROP", False),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", True),
        ("-m state --state INVALID -j DROP", False),
        ('-m comment --comment "nobody gets in" -j DROP', True),
        ("-m mark --mark 0x10000/0x10000 -j DROP", False),
        ("-m mark ! --mark 0x10000/0x10000 -j DROP", True),
        ("-m mark --mark 0x1/0x3 -j DROP", True),
        ("-m set --match-set ips src -j DROP", True),
        ("-m set --match-set ips dst -j DROP", False),
        ("-m set ! --match-set ips dst -j DROP", True),
        ("-m set --match-set ports dst,dst -j DROP", True),
        ("-m set --match-set ports dst,src -j DROP", None),
        ("-m set --match-set nets dst -j DROP", True),
        ("-m set --match-set nets src -j DROP", False),
        ("-m set --match-set list src -j DROP", None),
        ("-m set --match-set nobody src -j DROP", None),
        ("-m addrtype --dst-type LOCAL -j DROP", False),
        ("-m addrtype ! --dst-type LOCAL -j DROP", True),
        ("-m iprange --src-range 10.244.1.1-10.244.1.20 -j DROP", True),
        ("-m iprange --dst-range 10.244.1.1-10.244.1.20 -j DROP", False),
        ("-m ipvs --vdir ORIGINAL --vmethod MASQ -j DROP", False),
        ("-m ipvs ! --ipvs -j DROP", True),
        ("-m limit --limit 1/sec -j DROP", None),
        ("-m statistic --mode random --probability 0.5 -j DROP", None),
        ("-m mac --mac-source 02:00:00:00:00:01 -j DROP", None),
        ("-s 192.0.2.1/32 -m limit --limit 1/sec -j DROP", False),
    ],
)
def test_rules_of_iptables(rule: str, expected: bool | None) -> None:
    assert matches(canonical(rule), PACKET, 0x1, SETS.get) is expected


def test_a_link_that_is_not_known_is_not_told() -> None:
    packet = Packet(*("inet", "tcp", "10.0.0.1", "10.0.0.2", 80), is_in_known=False)
    assert matches(canonical("-i eth0 -j DROP"), packet, 0, SETS.get) is None
    assert matches(canonical("-o eth0 -j DROP"), packet, 0, SETS.get) is False


def test_what_ipvs_sends_on_is_known_as_such() -> None:
    packet = structs.replace(PACKET, by_ipvs=True)
    assert matches(canonical("-m ipvs --ipvs -j DROP"), packet, 0, SETS.get) is True
    assert matches(canonical("-m ipvs ! --ipvs -j DROP"), packet, 0, SETS.get) is False


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gre", True), ("47", True), ("tcp", False), ("esp", False), ("50", False), ("leaf-1", None)],
)
def test_protocols_without_ports_have_names_and_numbers(name: str, expected: bool | None) -> None:
    packet = structs.replace(PACKET, protocol="47")
    assert matches(canonical(f"-p {name} -j DROP"), packet, 0, SETS.get) is expected
    assert rule_matches(f"meta l4proto {name} drop", packet) is expected


def test_sets_of_three_dimensions() -> None:
    state = SetState(
        IpsetSpec("allowed", "hash:ip,port,net", "inet"),
        0,
        frozenset(("10.96.0.1,tcp:80,192.0.2.0/24",)),
    )
    assert contains(state, ("10.96.0.1", "tcp:80", "192.0.2.7")) is True
    assert contains(state, ("10.96.0.1", "tcp:80", "192.0.3.7")) is False
    assert contains(state, ("10.96.0.1", "udp:80", "192.0.2.7")) is False


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("drop", True),
        ("tcp dport 8080 drop", True),
        ("tcp dport { 80, 8000-9000 } counter packets 3 bytes 180 drop", True),
        ("tcp dport { 80, 443 } drop", False),
        ("tcp dport != 8080 drop", False),
        ("tcp dport @many drop", None),
        ("udp dport 8080 drop", False),
        ("th dport 8080 drop", True),
        ("ip saddr 10.244.1.0/24 ip daddr != 10.244.1.0/24 reject", True),
        ("ip saddr @blocked drop", None),
        ("ip6 saddr fd00::/8 drop", False),
        ("meta l4proto tcp drop", True),
        ("meta l4proto { icmp, udp } drop", False),
        ('iifname "kube-*" oifname "eth0" drop', True),
        ('iifname != "kube-bridge" drop', False),
        ("ct state new drop", True),
        ("ct state established,related drop", False),
        ("ct state vmap { invalid : drop, new : jump more }", None),
        ("ct state vmap { invalid : drop, established : accept, related : accept }", False),
        ('iifname vmap { "eth0" : jump a, "kube-bridge" : drop }', None),
        ("ip saddr vmap { 10.244.1.9 : drop }", None),
        ('iifname . ip saddr { "kube-bridge" . 10.244.1.9 } drop', None),
        ("meta l4proto . th dport { tcp . 8080 } drop", None),
        ("meta nfproto ipv6 fib saddr . mark . iif oif missing drop", False),
        ("meta nfproto ipv4 fib saddr . mark . iif oif missing drop", None),
        ("meta nfproto ipv6 drop", False),
        ("icmp type echo-request drop", False),
        ("reject with icmp type port-unreachable", True),
        ("reject with icmpx admin-prohibited", True),
        ("limit rate 1/second drop", None),
        ("meta mark 0x00000007 drop", None),
        ("log level info drop", True),
    ],
)
def test_rules_of_nft(rule: str, expected: bool | None) -> None:
    assert rule_matches(rule, PACKET) is expected


def test_chains_of_nft_are_followed() -> None:
    text = """\
table inet firewalld {
\tset blocked {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1,
\t\t\t     10.0.0.2 }
\t}

\tchain filter_FORWARD {
\t\ttype filter hook forward priority filter + 10; policy drop;
\t\tct state { established, related } accept
\t\tip saddr 10.244.0.0/16 jump pods comment "drop nobody"
\t\tip daddr 10.1.0.0/16 goto pods
\t\treject with icmpx admin-prohibited
\t}

\tchain pods {
\t\ttcp dport 80 drop
\t\ttcp dport 8080 limit rate 5/second drop
\t\tip daddr 10.244.2.3 return
\t\tdrop
\t}

\tchain other {
\t\tdrop
\t}
}
table ip6 six {
\tchain all {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table ip early {
\tchain all {
\t\ttype filter hook forward priority raw; policy drop;
\t\tip daddr 10.244.0.0/16 accept
\t}
}
"""
    chains = parse_ruleset(text)
    found = list(refusing(chains, "forward", PACKET, frozenset()))
    assert [(each.where, each.is_sure) for each in found] == [
        (
            "rule 2 of chain pods in nft table inet firewalld: tcp dport 8080 limit rate 5/second "
            "drop",
            False,
        ),
        (
            "rule 4 of chain filter_FORWARD in nft table inet firewalld: reject with icmpx "
            "admin-prohibited",
            True,
        ),
        ("the policy of chain filter_FORWARD in nft table inet firewalld is drop", True),
    ]
    assert list(refusing(chains, "input", PACKET, frozenset())) == []
    skipped = frozenset((("inet", "firewalld"),))
    assert list(refusing(chains, "forward", PACKET, skipped)) == []


def refused(*rules: str, family: str = "inet", policy: str = "accept") -> list[tuple[str, bool]]:
    body = "\n".join(f"\t\t{each}" for each in rules)
    head = f"\t\ttype filter hook forward priority 0; policy {policy};"
    more = '\tchain more {\n\t\tcomment "not a rule"\n\t\ttcp dport 8080 drop\n\t}'
    text = f"table {family} t {{\n\tchain c {{\n{head}\n{body}\n\t}}\n{more}\n}}\n"
    found = refusing(parse_ruleset(text), "forward", PACKET, frozenset())
    return [(each.where.replace(f" in nft table {family} t", ""), each.is_sure) for each in found]


def test_what_a_map_leads_to_may_take_it() -> None:
    leads = 'iifname vmap { "eth0" : accept, "kube-bridge" : jump more }'
    assert refused(leads) == [("rule 1 of chain more: tcp dport 8080 drop", False)]


@pytest.mark.parametrize("unsure", ["ct status dnat accept", "ct mark 0x7 return"])
def test_behind_what_may_let_it_pass_nft_is_not_sure(unsure: str) -> None:
    assert refused(unsure, "drop") == [("rule 2 of chain c: drop", False)]
    ((_, is_sure),) = refused(unsure, policy="drop")
    assert is_sure is (unsure.endswith("return"))


def test_frames_are_no_packets() -> None:
    assert refused("drop", family="arp") == []
    assert refused("drop", family="netdev") == []
    assert refused("drop", family="bridge") == [("rule 1 of chain c: drop", False)]


def test_source_nat_of_others_may_take_it() -> None:
    assert refused('oifname "eth0" masquerade') == [
        ('rule 1 of chain c: oifname "eth0" masquerade', False)
    ]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # What may accept leaves nothing sure behind it, wherever it stands.
        ({"FORWARD": ["-m limit --limit 1/sec -j ACCEPT", "-j DROP"]}, {"-j DROP": False}),
        (
            {"FORWARD": ["-j A", "-j DROP"], "A": ["-m recent --rcheck -j ACCEPT"]},
            {"-j DROP": False},
        ),
        (
            {"FORWARD": ["-m recent --rcheck -j A", "-j DROP"], "A": ["-j ACCEPT", "-j REJECT"]},
            {"-j DROP": False},
        ),
        # What may return leaves the rest of its own chain in doubt only.
        (
            {"FORWARD": ["-j A", "-j DROP"], "A": ["-m recent --rcheck -j RETURN", "-j REJECT"]},
            {"-j REJECT": False, "-j DROP": True},
        ),
        (
            {"FORWARD": ["-m recent --rcheck -g A", "-j DROP"], "A": ["-j LOG"]},
            {"-j DROP": False},
        ),
        # What surely returns does so in a chain that the packet may not get to.
        (
            {"FORWARD": ["-m recent --rcheck -j A", "-j DROP"], "A": ["-j RETURN", "-j REJECT"]},
            {"-j DROP": True},
        ),
        (
            {
                "FORWARD": ["-j A", "-j DROP"],
                "A": ["-m recent --rcheck -j RETURN", "-j ACCEPT", "-j REJECT"],
            },
            {"-j DROP": False},
        ),
        ({"FORWARD": ["-j SYNPROXY"]}, {"-j SYNPROXY": True}),
    ],
)
def test_how_sure_it_is(rules: dict[str, list[str]], expected: dict[str, bool]) -> None:
    fate = walk(Tables({"filter": rules}), "filter", "FORWARD", PACKET, SETS.get)
    assert {each.place.rule: each.is_sure for each in fate.foreign} == expected


def test_a_policy_behind_what_may_accept_is_not_sure() -> None:
    tables = Tables({"filter": {"FORWARD": ["-m limit --limit 1/sec -j ACCEPT"]}})
    tables = Tables(tables.chains, {("filter", "FORWARD"): "DROP"})
    (found,) = walk(tables, "filter", "FORWARD", PACKET, SETS.get).foreign
    assert not found.is_sure


def walked(rules: dict[str, list[str]], chain: str = "FORWARD") -> tuple[str, list[str]]:
    fate = walk(Tables({"filter": rules}), "filter", chain, PACKET, SETS.get)
    own = f" by {fate.own.rule}" if fate.own else ""
    return f"{fate.ending}{own}", [each.place.rule for each in fate.foreign]


def test_a_walk_through_own_and_foreign_rules() -> None:
    rules = {
        "FORWARD": ["-j KUBE-ROUTER-FORWARD", "-j GUEST", "-p udp -j DROP", "-j REJECT"],
        "GUEST": ["-p tcp -g MORE", "-j DROP"],
        "MORE": ["-m limit --limit 1/sec -j DROP", "-j RETURN", "-j DROP"],
        "KUBE-ROUTER-FORWARD": ["-j KUBE-POD-FW-X"],
        "KUBE-POD-FW-X": [
            "-j KUBE-NWPLCY-X",
            "-m mark ! --mark 0x10000/0x10000 -j REJECT",
            "-j MARK --set-xmark 0x0/0x10000",
        ],
        "KUBE-NWPLCY-X": ["-m set --match-set ips src -g KUBE-NWPLCY-ALLOW", "-j DROP"],
        "KUBE-NWPLCY-ALLOW": ["-j MARK --set-xmark 0x10000/0x10000"],
    }
    assert walked(rules) == ("end", ["-m limit --limit 1/sec -j DROP", "-j REJECT"])
    rules["KUBE-NWPLCY-X"] = []
    ending, foreign = walked(rules)
    assert ending == "drop by -m mark ! --mark 0x10000/0x10000 -j REJECT"
    assert foreign == []
    rules["FORWARD"].insert(0, "-i kube-bridge -j ACCEPT")
    assert walked(rules) == ("accept", [])


def test_a_maze_has_an_end() -> None:
    rules = {"FORWARD": ["-j A", "-j A"], "A": ["-j A", "-j A"]}
    fate = walk(Tables({"filter": rules}), "filter", "FORWARD", PACKET, SETS.get)
    assert not fate.is_complete
