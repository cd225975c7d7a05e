"""The firewall's controller on fakes: what it adopts, repairs, leaves alone, does in trouble."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kube_router_py.cluster.objects import NetworkPolicy, ObjectMeta, Pod
from kube_router_py.errors import KernelError
from kube_router_py.firewall.controller import Firewall
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import policy_chain
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.ports import BridgePort, IpsetSpec
from kube_router_py.object_key import Key

IPV4 = FirewallOptions()
BOTH = FirewallOptions(families=("inet", "inet6"))
DENY = FirewallOptions(families=("inet", "inet6"), default_deny=True)

FROM_X = "a/n: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}"
FROM_Y = FROM_X.replace("app: x", "app: y")
NOTHING_OUT = "a/out: {podSelector: {matchLabels: {app: x}}, policyTypes: [Egress]}"
SCTP = (
    "a/n: {podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 7, protocol: SCTP}]}]}"
)


class Here:
    """A node with pods a/p (app x), a/q (app y) and, elsewhere, a/r (app x); ``put`` and ``turn``
    as those of its agent."""

    def __init__(self, node: Any, clusters: Any) -> None:
        self.node, self.clusters = node, clusters
        node.change(clusters.namespace("a"))
        for name, where, number, app in (("p", 1, 1, "x"), ("q", 1, 2, "y"), ("r", 2, 1, "x")):
            self.put_pod(f"a/{name}", number, app, f"node{where}")

    def put_pod(self, key: str, number: int, app: str, where: str = "node1") -> None:
        ips = self.clusters.addresses(where, number)
        self.node.change(self.clusters.pod(key, where, ips, {"app": app}))

    def put(self, policies: str) -> None:
        self.node.change(*self.clusters.policies(policies))

    def turn(self, *, full: bool = False) -> Any:
        """One after which nothing is left to be done."""
        outcome = self.node.turn(full=full)
        assert not outcome.failed, outcome.problems
        assert not self.node.differences()
        return outcome

    @property
    def drift(self) -> float:
        found: float = self.node.firewall.numbers["controller_policy_drift_total"]
        return found

    def set_of(self, policy: str, direction: Direction = Direction.INGRESS) -> str:
        """The name of a set that the (only) rule of a policy looks into."""
        (rule,) = self.node.chains()[policy_chain(policy, direction)]
        name: str = rule.split("--match-set ")[1].split()[0]
        return name


@pytest.fixture
def here(firewall_node: Any, clusters: Any) -> Callable[..., Here]:
    return lambda *options: Here(firewall_node(*options), clusters)


def reasons(outcome: Any) -> str:
    return "\n".join(map(str, outcome.problems))


# --- start, stop, restart ---


def test_another_agent_adopts_all_and_writes_nothing(here: Any) -> None:
    world = here(DENY)
    world.put(f"{FROM_X}\n{NOTHING_OUT}")
    world.turn()
    before = (world.node.chains(), world.node.chains("inet6"), world.node.own_sets())
    commits = len(world.node.rules.commits)
    world.node.restart()
    world.turn()
    assert world.node.writes == 0
    assert len(world.node.rules.commits) == commits
    assert (world.node.chains(), world.node.chains("inet6"), world.node.own_sets()) == before
    assert world.drift == 0


def test_what_was_deleted_while_no_agent_was_there_goes(here: Any) -> None:
    world = here()
    world.put(f"{FROM_X}\n{NOTHING_OUT}")
    world.turn()
    stood = world.set_of("a/n")
    world.node.remove(("NetworkPolicy", "a", "n"), ("Pod", "a", "q"))
    world.node.restart()
    world.turn()
    assert stood not in world.node.own_sets()
    assert policy_chain("a/n", Direction.INGRESS) not in world.node.chains()
    assert world.drift == 0


def test_sets_and_chains_that_a_kube_router_left_go(here: Any) -> None:
    world = here(IPV4)
    spec = IpsetSpec("KUBE-SRC-AAAAAAAAAAAAAAAA", "hash:ip", "inet")
    world.node.sets.sets[spec.name] = (spec, frozenset({"10.0.0.1"}))
    chains = world.node.rules.chains("inet", "filter")
    chains["KUBE-POD-FW-AAAAAAAAAAAAAAAA"] = [f"-m set --match-set {spec.name} src -j ACCEPT"]
    chains["FORWARD"].append("-d 10.244.1.1/32 -j KUBE-POD-FW-AAAAAAAAAAAAAAAA")
    world.turn()
    assert not any("AAAAAA" in rule for rules in chains.values() for rule in rules[1:])
    assert spec.name not in world.node.sets.sets


def test_after_a_crash_nothing_is_trusted(here: Any) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()
    world.node.rules.chains("inet", "filter")["KUBE-ROUTER-INGRESS"] = []
    world.node.firewall.open()
    world.node.turn(full=True)
    assert not world.node.differences()
    assert [each.ipsets.closed for each in world.node.opened] == [True, False]
    world.node.firewall.close()
    assert world.node.opened[-1].iptables.closed


def test_there_is_no_turn_before_the_start(here: Any) -> None:
    world = here(IPV4)
    world.node.firewall.close()
    with pytest.raises(RuntimeError):
        world.node.firewall.reconcile(frozenset(), False)


# --- what is not ours ---

FOREIGN_CHAINS = {"OTHERS": ["-p tcp -j ACCEPT"], "KUBE-FORWARD": ["-m set --match-set theirs src"]}
FOREIGN_RULES = {
    "INPUT": ["-i lo -j ACCEPT", "-j OTHERS"],
    "FORWARD": ["-j KUBE-FORWARD", "-j DROP"],
    "OUTPUT": ["-o lo -j ACCEPT"],
}


def test_what_is_not_ours_stays_as_it_is_at_every_step(here: Any) -> None:
    world = here(DENY)
    node = world.node
    for name in ("theirs", "KUBE-LOOP-BACK", "kube-router-svip"):
        spec = IpsetSpec(name, "hash:ip", "inet")
        node.sets.sets[name] = (spec, frozenset({"10.9.9.9"}))
    for family in BOTH.families:
        chains = node.rules.chains(family, "filter")
        chains.update({name: list(rules) for name, rules in FOREIGN_CHAINS.items()})
        for name, rules in FOREIGN_RULES.items():
            chains[name] += rules
    steps: list[int] = []

    def look() -> None:
        steps.append(1)
        for family in BOTH.families:
            chains = node.rules.chains(family, "filter")
            assert {name: chains[name] for name in FOREIGN_CHAINS} == FOREIGN_CHAINS
            for name, rules in FOREIGN_RULES.items():
                assert [rule for rule in chains[name] if "KUBE-ROUTER-" not in rule] == rules
        for name in ("theirs", "KUBE-LOOP-BACK", "kube-router-svip"):
            assert node.sets.sets[name][1] == {"10.9.9.9"}

    node.each_step(look)
    world.put(f"{FROM_X}\n{NOTHING_OUT}")
    world.turn()
    # Ours are before theirs, and the last one behind them.
    forward = node.rules.chains("inet", "filter")["FORWARD"]
    assert [rule.split()[-1] for rule in (forward[0], forward[-1])] == [
        "KUBE-ROUTER-FORWARD",
        "KUBE-ROUTER-ACCEPT-FWD",
    ]
    world.put(FROM_Y)
    world.put_pod("a/p", 1, "y")
    world.turn()
    node.remove(("NetworkPolicy", "a", "n"), ("NetworkPolicy", "a", "out"), ("Pod", "a", "p"))
    node.restart()
    world.turn()
    assert len(steps) > 30


# --- drift ---


def _chain_is_changed(node: Any) -> None:
    node.rules.chains("inet", "filter")["KUBE-ROUTER-INGRESS"].insert(0, "-j ACCEPT")


def _chain_is_emptied(node: Any) -> None:
    node.rules.chains("inet", "filter")[policy_chain("a/n", Direction.INGRESS)].clear()


def _jump_is_gone(node: Any) -> None:
    del node.rules.chains("inet", "filter")["INPUT"][0]


def _chain_is_strange(node: Any) -> None:
    node.rules.chains("inet", "filter")["KUBE-POD-FW-AAAAAAAAAAAAAAAA"] = []


def _set(change: Callable[[frozenset[str]], frozenset[str]]) -> Callable[[Any], None]:
    def drift(node: Any) -> None:
        spec, entries = node.sets.sets["kube-router-pods-in"]
        node.sets.sets["kube-router-pods-in"] = (spec, change(entries))

    return drift


def _set_is_gone(node: Any) -> None:
    del node.sets.sets["kube-router-pods-in"]


def _set_is_of_another_type(node: Any) -> None:
    name = "kube-router-pods-in"
    node.sets.sets[name] = (IpsetSpec(name, "hash:net", "inet"), frozenset())
    # The kernel would not let go of one that rules look into.
    for rules in node.rules.chains("inet", "filter").values():
        rules[:] = [rule for rule in rules if name not in rule]


def _entry_of_a_policy_is_gone(node: Any) -> None:
    name = next(name for name in node.sets.sets if name.startswith("KUBE-SRC-"))
    node.sets.sets[name] = (node.sets.sets[name][0], frozenset())


DRIFT: dict[str, tuple[Callable[[Any], None], int]] = {
    "a chain is changed": (_chain_is_changed, 1),
    "a chain is emptied": (_chain_is_emptied, 1),
    "a chain of our name is not ours": (_chain_is_strange, 1),
    "a jump is gone": (_jump_is_gone, 1),
    "an entry is gone": (_set(lambda entries: entries - {"10.244.1.1"}), 1),
    "an entry is too many": (_set(lambda entries: entries | {"10.9.9.9"}), 1),
    "an entry of a policy is gone": (_entry_of_a_policy_is_gone, 1),
    "a set is empty": (_set(lambda _: frozenset()), 1),
    "a set is gone": (_set_is_gone, 1),
    "a set is of another type": (_set_is_of_another_type, 4),  # three chains look into it
}


@pytest.mark.parametrize("what", DRIFT)
def test_drift_is_put_right_and_counted_on_a_full_turn(here: Any, what: str) -> None:
    world = here(BOTH)
    world.put(FROM_X)
    world.turn()
    change, count = DRIFT[what]
    change(world.node)
    assert world.node.differences() or what == "a set is of another type"
    world.turn(full=True)
    assert world.drift == count
    writes = world.node.writes
    world.turn(full=True)
    assert (world.node.writes, world.drift) == (writes, count)


# --- what the kernel refuses ---


def test_a_set_that_cannot_be_made_stops_only_the_rules_that_look_into_it(here: Any) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()
    name = world.set_of("a/n")
    world.node.remove(("NetworkPolicy", "a", "n"))
    world.turn()
    world.node.sets.refused.add(name)
    world.put(f"{FROM_X}\n{NOTHING_OUT}")
    outcome = world.node.turn()
    assert outcome.failed == {Key("Node", "node1")}
    assert name in reasons(outcome)
    chains = world.node.chains()
    # It isolates, and admits nobody; the other policy stands.
    assert chains[policy_chain("a/n", Direction.INGRESS)] == ()
    assert "10.244.1.1" in world.node.own_sets()["kube-router-pods-in"]
    assert policy_chain("a/out", Direction.EGRESS) in chains
    for _ in range(2):
        assert name in reasons(world.node.turn())
    world.node.sets.refused.clear()
    assert not world.turn().problems
    assert world.drift == 0


def test_an_entry_that_is_refused_stops_no_other(here: Any) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()
    world.node.sets.refused_entries.add("10.244.2.9")
    world.put_pod("a/bad", 9, "x", "node2")
    world.put_pod("a/good", 8, "x", "node2")
    outcome = world.node.turn()
    assert outcome.failed
    assert "10.244.2.9" in reasons(outcome)
    assert "10.244.2.8" in world.node.own_sets()[world.set_of("a/n")]
    world.node.sets.refused_entries.clear()
    world.turn()


@pytest.mark.parametrize("full", [False, True])
def test_a_commit_that_fails_leaves_rules_and_sets_and_is_tried_again(
    here: Any, full: bool
) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()
    chains, name = world.node.chains(), world.set_of("a/n")
    world.node.rules.refused.add("KUBE-ROUTER-INGRESS")
    world.node.rules.refused.add(policy_chain("a/n", Direction.INGRESS))
    world.put(FROM_Y)
    for _ in range(2):
        outcome = world.node.turn(full=full)
        assert outcome.failed == {Key("Node", "node1")}
        assert "refused by the test" in reasons(outcome)
        assert world.node.chains() == chains
        assert world.node.own_sets()[name] == {"10.244.1.1", "10.244.2.1"}
    world.node.rules.refused.clear()
    world.turn()
    assert name not in world.node.own_sets()
    assert world.drift == 0


def test_a_commit_of_one_family_that_fails_does_not_stop_the_other(
    here: Any, clusters: Any
) -> None:
    world = here(BOTH)
    world.turn()
    world.node.sets.refused.add("inet6:kube-router-pods-in")
    world.node.change(*clusters.policies(FROM_X))
    assert world.node.turn().failed
    assert "10.244.1.1" in world.node.own_sets()["kube-router-pods-in"]
    assert policy_chain("a/n", Direction.INGRESS) in world.node.chains()
    world.node.sets.refused.clear()
    world.turn()


def test_an_overlay_that_fails_half_way_is_taken_up_again(here: Any, clusters: Any) -> None:
    """Everything refused at once, then one by one: sets beside, the set itself, the commits."""
    world = here(IPV4)
    world.put_pod("a/s", 3, "x")
    world.put(
        "a/x: {podSelector: {matchLabels: {app: x}}, policyTypes: [Ingress, Egress],"
        " egress: [{to: [{podSelector: {matchLabels: {app: y}}}]}]}\n"
        "a/y: {podSelector: {matchLabels: {app: y}}, policyTypes: [Ingress, Egress],"
        " ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}"
    )
    world.turn()
    name = world.set_of("a/x", Direction.EGRESS)
    world.put_pod("a/p", 1, "y")
    world.node.sets.refused.add(name)
    outcome = world.node.turn()
    assert outcome.failed
    assert name in reasons(outcome)
    # The rules see already what the set will hold.
    (first, second) = world.node.chains()[policy_chain("a/x", Direction.EGRESS)]
    assert f"--match-set {name} dst -m comment" in first
    assert name not in second
    world.node.sets.refused.clear()
    world.turn()
    world.put_pod("a/p", 1, "x")
    world.node.rules.refused.add(policy_chain("a/x", Direction.EGRESS))
    assert world.node.turn().failed
    assert "10.244.1.1" in world.node.own_sets()[name]
    world.node.rules.refused.clear()
    world.turn()


def test_rules_that_are_refused_stop_only_themselves(here: Any) -> None:
    world = here(BOTH)
    world.node.rules.refused_texts.add("-p sctp")
    world.put(f"{SCTP}\n{NOTHING_OUT}")
    outcome = world.node.turn()
    assert not outcome.failed
    assert reasons(outcome).count("-p sctp") == 2  # of each family one
    assert "admits nobody" in reasons(outcome)
    (rule,) = world.node.chains()[policy_chain("a/n", Direction.INGRESS)]
    assert "--dport 80 " in rule
    assert policy_chain("a/out", Direction.EGRESS) in world.node.chains()
    assert "KUBE-NWPLCY-TRIAL" not in world.node.chains()
    # It is not tried at every change, and tells of itself all the time.
    world.put_pod("a/q", 2, "x")
    outcome = world.node.turn()
    assert not outcome.failed
    assert "-p sctp" in reasons(outcome)
    assert "-p sctp" in reasons(world.node.turn(full=True))
    world.node.rules.refused_texts.clear()
    assert not world.turn(full=True).problems


def test_rules_refused_under_an_overlay_are_told_as_they_are(here: Any) -> None:
    world = here(IPV4)
    policy = (
        "a/n: {podSelector: {matchLabels: {app: y}}, policyTypes: [Ingress, Egress], ingress: "
        "[{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 7, protocol: PROTO}]}]}\n"
        "a/m: {podSelector: {matchLabels: {app: x}}, policyTypes: [Ingress, Egress]}"
    )
    world.put(policy.replace("PROTO", "UDP"))
    world.turn()
    world.node.rules.refused_texts.add("-p sctp")
    world.put(policy.replace("PROTO", "SCTP"))
    world.put_pod("a/r", 1, "z", "node2")
    for _ in range(2):
        (problem,) = world.node.turn().problems
        assert "a/n ingress rule 0" in problem.reason
        assert "more like it" not in problem.reason
        assert problem.reason.count("--match-set") == 1
    assert not world.node.turn().failed
    world.node.rules.refused_texts.clear()
    world.turn(full=True)


@pytest.mark.parametrize("call", ["read_all", "change_all"])
def test_a_kernel_that_cannot_be_asked_is_asked_again(
    here: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()

    def fail(*_: object) -> Any:
        raise KernelError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.node.opened[-1].ipsets, call, fail)
        world.put_pod("a/r", 1, "z", "node2")
        outcome = world.node.turn(full=call == "read_all")
    assert Key("Node", "node1") in outcome.failed
    assert "no answer" in reasons(outcome)
    world.turn()


# --- objects nobody can read ---

NONSENSE: tuple[dict[str, Any], ...] = (
    {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
    {"podSelector": {}, "policyTypes": ["Sideways"], "ingress": [{"from": [{}]}]},
    {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "::/200"}}]}]},
    {"podSelector": {}, "ingress": [{"ports": [{"port": -1}, {"port": 5, "endPort": 4}]}]},
    {"podSelector": {}, "egress": [{"ports": [{"port": "x" * 300}], "to": None}]},
    {"podSelector": {}, "ingress": [{"ports": [{"protocol": "QUIC\n-j ACCEPT", "port": 1}]}]},
    {
        "podSelector": {"matchLabels": {'a"b': "\n:KUBE - [0:0]"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"k\0": 'v" -j ACCEPT'}}}]}],
    },
)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_a_policy_of_nonsense_stops_no_other(
    here: Any, clusters: Any, nonsense: dict[str, Any]
) -> None:
    world = here(BOTH)
    world.node.change(clusters.policy("a/bad", nonsense))
    world.put(FROM_X)
    world.turn()
    assert policy_chain("a/n", Direction.INGRESS) in world.node.chains()


def test_an_object_that_cannot_be_compiled_is_as_it_was_and_tried_again(here: Any) -> None:
    world = here(IPV4)
    world.put(FROM_X)
    world.turn()
    chain = world.node.chains()[policy_chain("a/n", Direction.INGRESS)]
    broken: Any = None
    meta = ObjectMeta(name="n", namespace="a")
    world.node.cache.put(NetworkPolicy, NetworkPolicy(metadata=meta, spec=broken))
    world.put(NOTHING_OUT)
    for _ in range(2):
        outcome = world.node.turn(full=True)
        assert outcome.failed == {Key("NetworkPolicy", "a/n")}
        assert "NetworkPolicy a/n" in reasons(outcome)
        assert world.node.chains()[policy_chain("a/n", Direction.INGRESS)] == chain
        assert policy_chain("a/out", Direction.EGRESS) in world.node.chains()
    world.put(FROM_Y)
    assert not world.turn().problems


# --- what the node lacks ---


@pytest.mark.parametrize("cidrs", [[], ["10.244.1.0/24"]])
def test_default_deny_tells_of_families_without_pod_networks(
    here: Any, clusters: Any, cidrs: list[str]
) -> None:
    world = here(DENY)
    document = clusters.node("node1")
    document["spec"]["podCIDRs"] = cidrs
    world.node.change(document)
    outcome = world.turn()
    told = [each for each in outcome.problems if each.field == "spec.podCIDRs"]
    assert len(told) == 2 - len(cidrs)
    world.node.change(clusters.node("node1"))
    assert not world.turn().problems


def test_with_default_deny_a_pod_is_not_let_through_while_its_isolation_fails(here: Any) -> None:
    world = here(DENY)
    world.put("a/n: {podSelector: {}, policyTypes: [Egress]}")
    world.turn()
    world.node.sets.refused.add("kube-router-pods-out")
    world.put_pod("a/new", 9, "x")
    for full in (False, True):
        assert world.node.turn(full=full).failed
        assert "10.244.1.9" not in world.node.own_sets()["kube-router-local-pods"]
    world.node.sets.refused.clear()
    world.turn()


def test_a_bridge_without_its_module_is_told(here: Any) -> None:
    world = here(BOTH)
    world.node.sysctls.clear()
    world.turn()
    world.node.links.bridge_ports.append(BridgePort("veth1", "cni0", True))
    outcome = world.node.turn(full=True)
    assert reasons(outcome).count("br_netfilter") == 2
    assert outcome.failed
    assert not world.node.differences()
    world.node.sysctls.update(
        {
            "net/bridge/bridge-nf-call-iptables": "0",
            "net/bridge/bridge-nf-call-ip6tables": "0",
        }
    )
    assert not world.turn(full=True).problems
    assert set(world.node.sysctls.values()) == {"1"}


# --- jumps ---


def test_jumps_are_fought_for_within_bounds(here: Any) -> None:
    world = here(IPV4)
    world.turn()
    told: list[Any] = []

    def shove() -> bool:
        """Somebody wants to be first; whether our jump is, after a full turn."""
        chains = world.node.rules.chains("inet", "filter")
        chains["FORWARD"][:] = [rule for rule in chains["FORWARD"] if "OTHERS" not in rule]
        chains["FORWARD"].insert(0, "-m comment --comment OTHERS -j ACCEPT")
        told.append(world.node.turn(full=True).problems)
        first: str = world.node.rules.chains("inet", "filter")["FORWARD"][0]
        return first == "-j KUBE-ROUTER-FORWARD"

    assert [shove() for _ in range(5)] == [True, True, True, False, False]
    assert [len(each) for each in told] == [0, 0, 1, 1, 1]
    assert "filter/FORWARD" in str(told[-1][0])
    # What is gone altogether is no matter of order.
    parent = world.node.rules.chains("inet", "filter")
    parent["INPUT"].clear()
    parent["FORWARD"].remove("-j KUBE-ROUTER-FORWARD")
    world.node.turn(full=True)
    assert not world.node.differences()
    world.node.now_s += 3600
    assert shove()
    assert not told[-1]


# --- what concerns whom ---


def test_events_mark_objects_but_not_other_nodes(here: Any, clusters: Any) -> None:
    world = here(IPV4)
    marked: set[Any] = set()
    world.node.firewall.subscribe(world.node.cache, SimpleNamespace(mark=marked.update))
    for name in clusters.NODE_ADDRESSES:
        document = clusters.node(name)
        document["spec"]["podCIDRs"] = ["10.9.0.0/24"]
        world.node.change(document)
    assert marked == {Key("Node", "node1")}
    marked.clear()
    world.put(FROM_X)
    world.put_pod("a/z", 9, "x")
    world.node.remove(("Pod", "a", "z"), ("Namespace", "", "a"))
    world.node.change(clusters.service("a/s", ["10.96.0.1"], 80, 80))
    assert marked == {
        Key("NetworkPolicy", "a/n"),
        Key("Pod", "a/z"),
        Key("Namespace", "a"),
        Key("Service", "a/s"),
    }


def test_each_kind_of_object_is_followed(here: Any, clusters: Any) -> None:
    world = here(DENY)
    world.put(
        "a/n: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: "
        "[{from: [{namespaceSelector: {matchLabels: {app: x}}}]}]}"
    )
    world.turn()
    assert world.node.own_sets()[world.set_of("a/n")] == frozenset()
    world.node.change(clusters.namespace("a", {"app": "x"}))
    world.turn()
    assert "10.244.2.1" in world.node.own_sets()[world.set_of("a/n")]
    world.node.change(clusters.service("a/s", ["10.96.0.1"], 80, 80))
    world.turn()
    assert world.node.own_sets()["kube-router-services"] == {"10.96.0.1,tcp:80"}
    document = clusters.node("node1")
    document["spec"]["podCIDRs"] = ["10.9.0.0/24"]
    world.node.change(document)
    world.turn()
    assert any("10.9.0.0/24" in rule for rule in world.node.chains()["KUBE-NWPLCY-TAIL-IN"])
    # A Node that is away for a moment keeps what it said.
    chains = world.node.chains()
    world.node.remove(("Node", "", "node1"))
    assert not world.node.turn().failed
    assert not world.node.turn(full=True).failed
    assert world.node.chains() == chains
    world.node.change(document)
    for identity in [("Service", "a", "s"), ("Namespace", "", "a"), ("Pod", "a", "r")]:
        world.node.remove(identity)
        world.turn()
    world.node.remove(("NetworkPolicy", "a", "n"))
    world.turn()
    numbers = world.node.firewall.numbers
    assert (numbers["controller_policy_chains"], numbers["controller_policy_ipsets"]) == (0, 0)


def test_what_stands_follows_every_object(here: Any, clusters: Any) -> None:
    """Each step is compared with what would stand from scratch."""
    world = here(BOTH)
    node = world.node

    def space(name: str, **labels: str) -> None:
        node.change(clusters.namespace(name, labels))
        world.turn()

    def pod(key: str, where: str, number: int, port: int = 80, **labels: str) -> None:
        ips, ports = clusters.addresses(where, number), [{"name": "web", "containerPort": port}]
        node.change(clusters.pod(key, where, ips, labels, ports))
        world.turn()

    def put(policies: str) -> None:
        world.put(policies)
        world.turn()

    def gone(*identities: tuple[str, str, str]) -> None:
        node.remove(*identities)
        world.turn()

    space("a", team="x")
    space("b")
    pod("b/s", "node2", 9, app="x")
    by_team = "{namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: x}}}"
    by_tier = "{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}"
    by_none = "{namespaceSelector: {matchLabels: {team: none}}}"
    anyone = "{from: [{namespaceSelector: {}}], ports: [{port: web}]}"
    either = "{podSelector: {matchExpressions: [{key: app, operator: In, values: [x, y]}]}}"
    for policy in (
        f"a/team: {{podSelector: {{}}, ingress: [{{from: [{by_team}]}}]}}",
        f"a/again: {{podSelector: {{matchLabels: {{app: x}}}}, ingress: [{{from: [{by_team}]}}]}}",
        f"a/tier: {{podSelector: {{}}, ingress: [{{from: [{by_tier}, {either}]}}, {anyone}]}}",
        "a/web: {podSelector: {}, policyTypes: [Egress], egress: "
        "[{to: [{namespaceSelector: {}}], ports: [{port: web}]}]}",
        "b/here: {podSelector: {}}",
    ):
        put(policy)
    # Namespaces: labels, and gone with pods in it.
    for team in ("x", "y", "x"):
        space("b", team=team)
    gone(("Namespace", "", "b"))
    # Whoever asks for its labels now is told of none.
    either_team = (
        "{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [x, z]}]}}"
    )
    put(f"a/late: {{podSelector: {{}}, ingress: [{{from: [{either_team}]}}]}}")
    gone(("NetworkPolicy", "a", "late"))
    gone(("Pod", "b", "s"))
    space("b", team="x")
    pod("b/s", "node2", 9, app="x")
    # Pods: every way into a selection and out of it; ports and addresses.
    for labels in ({"app": "y"}, {"tier": ""}, {"app": "z", "tier": "t"}, {}, {"app": "x"}):
        pod("b/s", "node2", 9, **labels)
        pod("a/p", "node1", 1, **labels)
    for port in (81, 80):
        pod("a/p", "node1", 1, port, app="x")
        pod("b/s", "node2", 9, port, app="x")
    pod("b/s", "node2", 10, app="x")
    pod("a/p", "node1", 17, app="x")
    # Other sets of pods that are known: as these are by now.
    late = (
        "a/late: {podSelector: {}, policyTypes: [Egress], "
        f"egress: [{{to: [{by_team}], ports: [{{port: web}}]}}]}}"
    )
    for port, labels in ((81, {"app": "x"}), (81, {"app": "z"}), (80, {"app": "x"})):
        pod("b/s", "node2", 10, port, **labels)
        put(late)
        gone(("NetworkPolicy", "a", "late"))
    space("b", team="y")
    node.change(clusters.namespace("b", {"team": "x"}))
    put(late)
    space("b", team="y")
    gone(("NetworkPolicy", "a", "late"))
    space("b", team="x")
    # A pod that moves here and away again (under one name, as in a StatefulSet).
    pod("b/s", "node1", 9, app="x")
    pod("b/s", "node2", 9, app="x")
    # Two that claim one address, here and elsewhere.
    pod("a/t", "node1", 17, app="x")
    pod("b/u", "node2", 9, app="x")
    gone(("Pod", "a", "p"))
    gone(("Pod", "b", "s"))
    gone(("Pod", "a", "t"), ("Pod", "b", "u"))
    pod("a/p", "node1", 1, app="x")
    # Two Services of one address and port.
    for name in ("s", "t"):
        node.change(clusters.service(f"a/{name}", ["10.96.0.1", "fd00:96::1"], 80, 80))
        world.turn()
    gone(("Service", "a", "s"))
    gone(("Service", "a", "t"))
    # Policies of different pods share a set; one takes it over from another.
    pod("a/v", "node1", 3, app="v")
    pod("a/w", "node1", 4, app="w")
    share = f"ingress: [{{from: [{by_none}]}}]"
    of_v, of_w = (
        f"a/{app}: {{podSelector: {{matchLabels: {{app: {app}}}}}, {share}}}" for app in "vw"
    )
    put(f"{of_v}\n{of_w}")
    gone(("NetworkPolicy", "a", "v"))
    node.remove(("NetworkPolicy", "a", "w"))
    put(of_v)
    node.remove(("NetworkPolicy", "a", "v"))
    put(of_w)
    gone(("NetworkPolicy", "a", "w"))
    # Other rules, but of the same pods.
    put(f"a/team: {{podSelector: {{}}, ingress: [{{from: [{by_tier}]}}]}}")
    # Policies that share a set go one by one; one selects others, and is about another direction.
    gone(("NetworkPolicy", "a", "again"))
    put(f"a/team: {{podSelector: {{matchLabels: {{app: y}}}}, ingress: [{{from: [{by_team}]}}]}}")
    world.put("a/tier: {podSelector: {}, policyTypes: [Egress]}")
    world.turn()
    for name in ("team", "web", "tier"):
        gone(("NetworkPolicy", "a", name))
    # More addresses than one chain compares, and fewer again.
    put("a/all: {podSelector: {}}")
    for number in range(20):
        ips = [f"10.244.1.{16 * (number % 15) + 1}", f"fd00:10:244:1::{number:x}1"]
        node.change(clusters.pod(f"a/many{number}", "node1", ips))
    gone(*(("Pod", "a", f"many{number}") for number in range(1, 20)))
    gone(("NetworkPolicy", "a", "all"))


def test_a_full_turn_finds_what_no_event_told(here: Any, clusters: Any) -> None:
    world = here(DENY)
    world.put(FROM_X)
    world.turn()
    document = clusters.node("node1")
    document["spec"]["podCIDRs"] = ["10.9.0.0/24", "fd09::/64"]
    world.put(
        "a/n: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {t: u}}}]}]}"
    )
    world.put_pod("a/r", 1, "z", "node2")
    world.node.change(
        document,
        clusters.namespace("a", {"t": "u"}),
        clusters.service("a/s", ["10.96.0.1"], 80, 80),
    )
    world.node.dirty.clear()
    world.turn(full=True)
    for kind, name in (
        ("NetworkPolicy", "n"),
        ("Pod", "p"),
        ("Service", "s"),
    ):
        world.node.remove((kind, "a", name))
    world.node.remove(("Namespace", "", "a"))
    world.node.dirty.clear()
    world.turn(full=True)


def test_writes_are_those_of_the_change(here: Any) -> None:
    world = here(BOTH)
    world.put(FROM_X)
    world.turn()
    before = world.node.writes
    world.put_pod("a/r", 1, "y", "node2")
    world.turn()
    assert world.node.writes - before == 2  # an address of each family goes
    before = world.node.writes
    world.put_pod("a/other", 7, "z", "node2")
    world.put("b/n: {podSelector: {}}")
    world.node.turn()
    assert world.node.writes == before


def test_it_says_when_nothing_is_left_to_be_done(here: Any, clusters: Any) -> None:
    world = here(IPV4)
    node = world.node
    told: list[bool] = []
    firewall = Firewall(node.cache, IPV4, "node1", node._open, lambda _: told.append(True))
    firewall.open()
    node.rules.refused.add("KUBE-ROUTER-INPUT")
    firewall.reconcile(frozenset(), True)
    assert not told
    node.rules.refused.clear()
    firewall.reconcile(frozenset(), False)
    assert told == [True]
    assert node.cache.get(Pod, "a/p") is not None
