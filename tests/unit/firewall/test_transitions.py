"""While the kernel is changed, step by step, every verdict is the old or the new one."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import cycle, product
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kube_router_py.firewall.settings import FirewallOptions

PLAIN = FirewallOptions(families=("inet", "inet6"))
DENY = FirewallOptions(families=("inet", "inet6"), default_deny=True)
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
OUTSIDE = ("203.0.113.10", "2001:db8::10")
PLACES = ((6, 80), (6, 81), (6, 80), (17, 53), (6, 80), (6, 81), (132, 80))


def addresses(objects: Any) -> set[str]:
    pods = (each for each in objects if each["kind"] == "Pod")
    return {ip["ip"] for each in pods for ip in each["status"].get("podIPs", ())}


def flows(tracer: Any, objects: Any, vips: tuple[str, ...] = ()) -> Iterator[Any]:
    """From, to and between all addresses that this node's pods have or had, to a port or two."""
    places = cycle(PLACES)
    claimed = {each for each in addresses(objects) if each.startswith(("10.244.", "fd00:10:244:"))}
    local = {each for each in claimed if each.startswith(("10.244.1.", "fd00:10:244:1:"))}
    others = {*OUTSIDE, *sorted(claimed - local)[:4]}
    for src, dst in product(sorted(local | others), sorted(local | others)):
        if (":" in src) != (":" in dst) or not {src, dst} & local:
            continue
        nodes = ["node1" if end in local else "node2" for end in (src, dst)]
        for _ in range(2):
            protocol, port = next(places)
            yield tracer.Flow(src, dst, protocol, port, nodes[0], dst_node=nodes[1])
        for vip in vips:
            if src in local and (":" in vip) == (":" in src):
                service = (vip, 80)
                yield tracer.Flow(src, dst, 6, 80, nodes[0], dst_node=nodes[1], service=service)


class Watched:
    """A node with verdicts looked at after every step of a turn."""

    def __init__(self, tracer: Any, node: Any, live: Any, vips: tuple[str, ...] = ()) -> None:
        self._tracer, self.node, self._live, self._vips = tracer, node, live(node), vips

    def turn(self, changes: Any, *, restart: bool = False, full: bool = False) -> list[str]:
        """Carry out changes, given as manifests and as identities of what goes, in one turn;
        returns what was wrong on the way, or at its end."""
        node = self.node
        before = list(node.objects.values())
        for each in changes:
            if isinstance(each, dict):
                node.change(each)
            elif each in node.objects:
                node.remove(each)
        if restart:
            node.restart()
        # Which flows matter is known only now, and the kernel is still as it was.
        found = [*flows(self._tracer, [*before, *node.objects.values()], self._vips)]
        kinds = {each["kind"] if isinstance(each, dict) else each[0] for each in changes}
        if "Service" in kinds and len(kinds) > 1:
            # When the proxy begins to send these on is its own affair.
            found = [flow for flow in found if flow.service is None]
        self._live.look()
        old = {flow: self._live.verdict(flow) for flow in found}
        steps: list[dict[Any, Any]] = []

        def look() -> None:
            entries, families = self._live.look()
            moved = {each.split(",")[0] for each in entries}
            all_of = {f for f in (4, 6) if any("/" in m and (":" in m) == (f == 6) for m in moved)}
            all_of |= {4 if family == "inet" else 6 for family in families}
            steps.append(
                {
                    flow: self._live.verdict(flow)
                    for flow in found
                    if (6 if ":" in flow.src else 4) in all_of
                    or moved & {flow.src, flow.dst, flow.service and flow.service[0]}
                }
            )

        node.each_step(look)
        outcome = node.turn(full=full)
        node.each_step(None)
        wrong: list[str] = [f"failed: {each}" for each in outcome.failed] + node.differences()
        self._live.look()
        new = {flow: self._live.verdict(flow) for flow in found}
        for number, verdicts in enumerate(steps, 1):
            for flow, verdict in verdicts.items():
                for what, was, is_, then in zip(
                    ("egress", "ingress", "whole"), old[flow], verdict, new[flow], strict=True
                ):
                    if is_ not in (was, then):
                        wrong.append(
                            f"step {number} of {len(steps)}: {what} {is_} instead of {was}: {flow}"
                        )
        return wrong


# --- random changes ---


def relabelled(each: Any, labels: Any) -> Any:
    found = deepcopy(each)
    found["metadata"]["labels"] = labels
    return found


@st.composite
def some_changes(draw: Any, random_clusters: Any, clusters: Any, objects: Any) -> Any:
    """One to three changes of these objects, as ``Watched.turn`` takes them."""
    known = {clusters.identity(each): each for each in objects}
    pods = [key for key in known if key[0] == "Pod"]
    labelled = [key for key in known if key[0] in ("Pod", "Namespace")]
    judging = [key for key in known if key[0] in ("NetworkPolicy", "Namespace")]
    made = st.one_of(
        random_clusters.PODS,
        random_clusters.POLICIES,
        random_clusters.POLICIES,
        random_clusters.NAMESPACES,
        random_clusters.SERVICES,
    )
    found: list[Any] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        match draw(st.sampled_from(["make", "label", "label", "audit", "remove", "reuse"])):
            case "label" if labelled:
                each = known[draw(st.sampled_from(labelled))]
                found.append(relabelled(each, draw(random_clusters.LABELS)))
            case "audit" if judging:
                each = known[draw(st.sampled_from(judging))]
                found.append(clusters.audited(each, draw(random_clusters.AUDITS)))
            case "remove" if known:
                found.append(draw(st.sampled_from(sorted(known))))
            case "reuse" if pods:
                key = draw(st.sampled_from(pods))
                other = draw(random_clusters.PODS)
                if clusters.identity(other) != key:
                    other["spec"]["nodeName"] = known[key]["spec"]["nodeName"]
                    other["status"] = known[key]["status"]
                    found += [key, other]
            case _:
                found.append(draw(made))
    return found


class Dense:
    """Clusters in which nearly everything matters to nearly everything: all pods of one node, few
    labels, and policies that select by them in both directions."""

    def __init__(self, clusters: Any) -> None:
        one = st.sampled_from(["x", "y"])
        self.LABELS = st.fixed_dictionaries({"app": one})
        self.AUDITS = st.sampled_from([None, None, "true", "false"])
        self.NAMESPACES = st.builds(
            clusters.namespace, st.sampled_from("ab"), self.LABELS, audit=self.AUDITS
        )
        # To each pod an address of its own; others may claim it.
        names = st.sampled_from([f"{space}/{name}" for space in "ab" for name in "pqr"])
        self.PODS = st.builds(
            self._pod, st.just(clusters), names, self.LABELS, st.sampled_from([80, 81])
        )
        selector = st.one_of(st.just({}), *[st.just({"matchLabels": {"app": app}}) for app in "xy"])
        peer = st.one_of(
            st.fixed_dictionaries({"podSelector": selector}),
            st.fixed_dictionaries({"namespaceSelector": selector, "podSelector": selector}),
        )
        ports = st.sampled_from([None, None, None, [{"port": "web"}], [{"port": 80}]])
        rules = [
            st.lists(
                st.fixed_dictionaries(
                    {side: st.lists(peer, min_size=1, max_size=2), "ports": ports}
                ),
                max_size=2,
            )
            for side in ("from", "to")
        ]
        spec = st.fixed_dictionaries(
            {
                "podSelector": selector,
                "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
                "ingress": rules[0],
                "egress": rules[1],
            }
        )
        keys = st.sampled_from(["a/n", "a/m", "b/n"])
        self.POLICIES = st.builds(clusters.policy, keys, spec, audit=self.AUDITS)
        self.SERVICES = st.builds(
            clusters.service, st.just("a/s"), st.just(("10.96.0.1",)), st.just(80), st.just(80)
        )
        self._identity = clusters.identity

    def _pod(self, clusters: Any, key: str, labels: Any, port: int) -> Any:
        number = 1 + "ab".index(key[0]) * 4 + "pqr".index(key[2])
        ports = [{"name": "web", "containerPort": port}]
        return clusters.pod(key, "node1", clusters.addresses("node1", number)[:1], labels, ports)

    def objects(self) -> Any:
        def some(strategy: Any, least: int, most: int) -> Any:
            return st.lists(strategy, min_size=least, max_size=most, unique_by=self._identity)

        return st.builds(
            lambda *kinds: [each for kind in kinds for each in kind],
            some(self.NAMESPACES, 2, 2),
            some(self.PODS, 3, 5),
            some(self.POLICIES, 1, 3),
            some(self.SERVICES, 0, 1),
        )


def histories(
    random_clusters: Any, clusters: Any, tracer: Any, node: Any, live: Any, options: Any
) -> Any:
    # Shrinking takes minutes, and the changes are few anyway.
    @settings(max_examples=40, phases=PHASES)
    @given(random_clusters.objects(), st.data())
    def check(objects: list[Any], data: Any) -> None:
        watched = Watched(tracer, node(options), live, ("10.96.0.1", "fd00:96::1"))
        assert not watched.turn(objects)
        for _ in range(data.draw(st.integers(1, 3))):
            known = [*watched.node.objects.values()]
            known = [each for each in known if each["kind"] != "Node"]
            changes = data.draw(some_changes(random_clusters, clusters, known))
            mode = data.draw(st.sampled_from(["", "", "", "", "restart", "full"]))
            wrong = watched.turn(changes, restart=mode == "restart", full=mode == "full")
            assert not wrong, "\n".join(wrong[:5])

    return check


@pytest.mark.parametrize("options", [PLAIN, DENY], ids=["", "default-deny"])
def test_verdicts_are_old_or_new(
    random_clusters: Any, clusters: Any, tracer: Any, firewall_node: Any, live: Any, options: Any
) -> None:
    histories(random_clusters, clusters, tracer, firewall_node, live, options)()


@pytest.mark.parametrize("options", [PLAIN, DENY], ids=["", "default-deny"])
def test_verdicts_are_old_or_new_where_everything_matters(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any, options: Any
) -> None:
    histories(Dense(clusters), clusters, tracer, firewall_node, live, options)()


# --- one by one: what both states refuse, and an order of single steps would let pass ---

CASES: dict[str, dict[str, str]] = yaml.safe_load(
    """
a pod gets other labels, other policies, and is another peer:
  policies: |
    a/out-x: {podSelector: {matchLabels: {app: x}}, policyTypes: [Egress]}
    a/out-y: {podSelector: {matchLabels: {app: y}}, policyTypes: [Egress], egress: [{}]}
    a/in-t: {podSelector: {matchLabels: {app: t}},
             ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}
  old: {a/p: x, a/t: t}
  new: {a/p: y}
a pod that is reached gets other labels, other policies, and is another peer:
  policies: |
    a/in-x: {podSelector: {matchLabels: {app: x}}}
    a/in-y: {podSelector: {matchLabels: {app: y}}, ingress: [{}]}
    a/out-p: {podSelector: {matchLabels: {app: p}}, policyTypes: [Egress],
              egress: [{to: [{podSelector: {matchLabels: {app: x}}}]}]}
  old: {a/p: p, a/t: x}
  new: {a/t: y}
a pod that may send nothing comes where it would be let in: &new
  policies: |
    a/out-x: {podSelector: {matchLabels: {app: x}}, policyTypes: [Egress]}
    a/in-t: {podSelector: {matchLabels: {app: t}},
             ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}
  old: {a/t: t}
  new: {a/p: x}
a pod that could send nothing goes where it would be let in:
  <<: *new
  old: {a/p: x, a/t: t}
  new: {a/p: null}
both ends are in a namespace that gets other labels:
  policies: |
    a/out: {podSelector: {matchLabels: {app: p}}, policyTypes: [Egress],
            egress: [{to: [{namespaceSelector: {matchLabels: {app: x}}}]}]}
    a/in: {podSelector: {matchLabels: {app: t}},
           ingress: [{from: [{namespaceSelector: {matchLabels: {app: y}}}]}]}
  old: {a/p: p, a/t: t, a: x}
  new: {a: y}
one end gets other policies, the other end is another peer:
  policies: |
    a/from-x: {podSelector: {matchLabels: {app: t}},
               ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}
    a/from-y: {podSelector: {matchLabels: {app: u}},
               ingress: [{from: [{podSelector: {matchLabels: {app: y}}}]}]}
  old: {a/p: x, a/t: u, a/v: t, a/w: u}
  new: {a/p: y, a/t: t}
a policy is another, and so is a peer:
  policies: |
    a/n: {podSelector: {matchLabels: {app: t}},
          ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]},
                    {from: [{podSelector: {matchLabels: {app: y}}}], ports: [{port: 1}]}]}
  then: |
    a/n: {podSelector: {matchLabels: {app: t}},
          ingress: [{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 1}]},
                    {from: [{podSelector: {matchLabels: {app: y}}}]}]}
  old: {a/p: y, a/t: t}
  new: {a/p: x}
the port that a rule names is another, and so is the peer:
  policies: |
    a/n: {podSelector: {matchLabels: {app: t}},
          ingress: [{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: web}]}]}
  old: {a/p: y, a/t: t 80}
  new: {a/p: x, a/t: t 81}
"""
)


def objects_of(clusters: Any, given: Any) -> list[Any]:
    """``a/p: LABEL [PORT]`` is a pod of this node, ``a: LABEL`` a namespace, None what goes."""
    found: list[Any] = []
    for key, value in given.items():
        space, slash, name = key.partition("/")
        if value is None:
            found.append(("Pod", space, name))
        elif not slash:
            found.append(clusters.namespace(space, {"app": value}))
        else:
            app, _, port = value.partition(" ")
            ips = clusters.addresses("node1", 1 + "ptvw".index(name))
            ports = [{"name": "web", "containerPort": int(port)}] if port else []
            found.append(clusters.pod(key, "node1", ips, {"app": app}, ports))
    return found


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_nothing_passes_that_both_states_refuse(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any, case: str, restart: bool
) -> None:
    given: Any = CASES[case]
    watched = Watched(tracer, firewall_node(), live)
    before = [*clusters.policies(given["policies"]), *objects_of(clusters, given["old"])]
    assert not watched.turn(before)
    then = [*clusters.policies(given.get("then", "{}")), *objects_of(clusters, given["new"])]
    commits = len(watched.node.rules.commits)
    wrong = watched.turn(then, restart=restart)
    assert not wrong, "\n".join(wrong)
    # In each family two: the rules see what the sets will hold, and then the sets alone.
    assert len(watched.node.rules.commits) - commits == 4


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
@pytest.mark.parametrize("level", ["policy", "namespace"])
def test_a_policy_begins_and_ceases_to_bite_in_one_step(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any, level: str, restart: bool
) -> None:
    """Also while peers come and go, and others hold the pods at the other end."""
    policies = clusters.policies(
        """
        a/n: {podSelector: {matchLabels: {app: t}}, policyTypes: [Ingress, Egress],
              ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}],
              egress: [{to: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: web}]}]}
        a/strict: {podSelector: {matchLabels: {app: y}}, policyTypes: [Egress],
                   egress: [{to: [{podSelector: {matchLabels: {app: t}}}]}]}
        """
    )
    watched = Watched(tracer, firewall_node(PLAIN), live)
    fixed = objects_of(clusters, {"a/t": "t 80", "a/v": "t 81", "a/w": "x 80"})
    assert not watched.turn([*policies, *fixed, clusters.namespace("a", {})])
    refused: list[bool] = []
    for audit, app in (("true", "x"), (None, "y"), ("true", "y"), (None, "x"), ("true", "y")):
        of_policy, of_space = (audit, None) if level == "policy" else (None, audit)
        changes = [
            clusters.audited(policies[0], of_policy),
            clusters.namespace("a", {}, audit=of_space),
            *objects_of(clusters, {"a/p": f"{app} 80"}),
        ]
        wrong = watched.turn(changes, restart=restart)
        assert not wrong, "\n".join(wrong)
        now = live(watched.node)
        now.look()
        target = clusters.addresses("node1", 3)[0]
        flow = tracer.Flow("203.0.113.10", target, 6, 80, "", dst_node="node1")
        refused.append(not now.verdict(flow)[2])
    assert refused == [False, True, False, True, False]


ORDINARY = {
    "a pod that may be reached by some, and reaches others": (
        "a/n: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
        {"a/t": "t"},
        {"a/p": "x"},
        1,
    ),
    "it goes": (
        "a/n: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
        {"a/t": "t", "a/p": "x"},
        {"a/p": None},
        1,
    ),
    "a set passes from one policy to another, and a peer out of it": (
        "a/m: {podSelector: {matchLabels: {app: t}}, ingress: [{from: [{podSelector: "
        "{matchLabels: {app: x}}}]}]}\n"
        "a/z: {podSelector: {matchLabels: {app: u}}, ingress: [{from: [{podSelector: "
        "{matchLabels: {app: x}}}]}]}",
        {"a/p": "x", "a/t": "t", "a/v": "x", "a/w": "v"},
        {"a/p": "y", "a/t": "y", "a/w": "u"},
        1,
    ),
    "a peer that has no policies": (
        "a/n: {podSelector: {matchLabels: {app: t}}, ingress: [{from: [{podSelector: "
        "{matchLabels: {app: x}}}]}]}",
        {"a/t": "t", "a/p": "y"},
        {"a/p": "x"},
        0,
    ),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_what_the_order_of_steps_is_enough_for_takes_one_commit_or_none(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any, case: str
) -> None:
    policies, old, new, count = ORDINARY[case]
    watched = Watched(tracer, firewall_node(PLAIN), live)
    assert not watched.turn([*clusters.policies(policies), *objects_of(clusters, old)])
    commits = len(watched.node.rules.commits)
    assert not watched.turn(objects_of(clusters, new))
    assert len(watched.node.rules.commits) - commits == 2 * count  # two families


def test_with_default_deny_what_a_pod_leaves_is_closed_first(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any
) -> None:
    """Its policies go with it; who is another peer by then is none to the address it had."""
    to_y = (
        "a/n: {podSelector: {}, policyTypes: [Egress], "
        "egress: [{to: [{podSelector: {matchLabels: {app: y}}}]}]}"
    )
    watched = Watched(tracer, firewall_node(DENY), live)
    old = objects_of(clusters, {"a/p": "x", "a/t": "x", "a/v": "y"})
    assert not watched.turn([*clusters.policies(to_y), *old])
    moved = clusters.pod("a/p", "node1", clusters.addresses("node1", 2), {"app": "y"})
    wrong = watched.turn([("Pod", "a", "t"), moved])
    assert not wrong, "\n".join(wrong)


def test_with_default_deny_what_a_pod_takes_is_opened_last(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any
) -> None:
    """Whom its policies admit no longer was never let in."""
    from_x = "a/n: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}"
    watched = Watched(tracer, firewall_node(DENY), live)
    ips = clusters.addresses("node2", 1)
    peer = clusters.pod("a/peer", "node2", ips, {"app": "x"})
    assert not watched.turn([*clusters.policies(from_x), *objects_of(clusters, {"a/t": "t"}), peer])
    changed = clusters.pod("a/peer", "node2", ips, {"app": "y"})
    wrong = watched.turn([*objects_of(clusters, {"a/p": "t"}), changed])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("reuse", [False, True], ids=["", "where another was"])
@pytest.mark.parametrize("policy", ["{}", "a/n: {podSelector: {}, policyTypes: [Ingress, Egress]}"])
def test_with_default_deny_a_new_pod_is_refused_until_all_stands(
    clusters: Any, tracer: Any, firewall_node: Any, live: Any, policy: str, reuse: bool
) -> None:
    node = firewall_node(DENY)
    watched = Watched(tracer, node, live)
    old = {"a/t": "t"} | ({"a/p": "x"} if reuse else {})
    assert not watched.turn([*clusters.policies(policy), *objects_of(clusters, old)])
    if reuse:
        assert not watched.turn(objects_of(clusters, {"a/p": None}))
    flow = tracer.Flow("10.244.1.1", "203.0.113.10", 6, 80, "node1")
    answer = tracer.Flow("203.0.113.10", "10.244.1.1", 6, 80, "", dst_node="node1")
    now = live(node)
    seen: list[bool] = []

    def look() -> None:
        now.look()
        seen.extend(now.verdict(each)[2] for each in (flow, answer))

    look()
    node.change(*objects_of(clusters, {"a/p": "x"}))
    node.each_step(look)
    node.turn()
    node.each_step(None)
    is_open = policy == "{}"
    assert seen[-2:] == [is_open, is_open]
    first = seen.index(True) if is_open else len(seen)
    # Local pods of each family come last: IPv4's entry is the last or the last but one.
    assert first >= len(seen) - 4
    assert not any(seen[:first])
