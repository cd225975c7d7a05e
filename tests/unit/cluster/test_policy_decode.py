"""NetworkPolicies that do not decode as a whole: isolation stays, nothing opens."""

import io
import json
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.decode import Item, ObjectDecoder
from kube_router_py.cluster.objects import NetworkPolicy
from kube_router_py.manifests import load_manifests

NOBODY: dict[str, Any] = {}
NO_PORT = {"protocol": "undecodable"}
NO_PODS = {"matchExpressions": [{"key": "undecodable", "operator": "undecodable"}]}


def decode(
    spec: Any, metadata: Any = None, decoder: ObjectDecoder[NetworkPolicy] | None = None
) -> Item[NetworkPolicy]:
    meta = {"name": "p", "namespace": "x", "resourceVersion": "7"} if metadata is None else metadata
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": spec,
    }
    return (decoder or ObjectDecoder(NetworkPolicy)).item(json.dumps(document).encode())


def spec_of(item: Item[NetworkPolicy]) -> Any:
    assert item.object is not None
    return plain(item.object.spec)


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


TCP = {"protocol": "TCP", "port": 80}
POD_A = {"podSelector": {"matchLabels": {"pod": "a"}}}
TARGET = {"matchLabels": {"app": "db"}}
TYPES = ["Ingress", "Egress"]


def rule(*peers: Any, ports: Any = None) -> dict[str, Any]:
    return {"from": list(peers), "ports": [TCP] if ports is None else ports}


@pytest.mark.parametrize(
    ("ingress", "expected", "fields"),
    [
        pytest.param(
            [rule(POD_A, ports=[TCP, {"port": [1]}])],
            [rule(POD_A, ports=[TCP, NO_PORT])],
            ["spec.ingress[0].ports[1].port"],
            id="a port that is a list",
        ),
        pytest.param(
            [rule(POD_A, ports=[{"port": 80, "endPort": "90"}])],
            [rule(POD_A, ports=[NO_PORT])],
            ["spec.ingress[0].ports[0].endPort"],
            id="an endPort that is text",
        ),
        pytest.param(
            [rule(POD_A, ports=[{"port": True}, {"protocol": 6}])],
            [rule(POD_A, ports=[NO_PORT, NO_PORT])],
            ["spec.ingress[0].ports[0].port", "spec.ingress[0].ports[1].protocol"],
            id="two broken ports, two Problems",
        ),
        pytest.param(
            [rule(POD_A, {"ipBlock": {"cidr": 5}})],
            [rule(POD_A, NOBODY)],
            ["spec.ingress[0].from[1].ipBlock.cidr"],
            id="a cidr that is a number",
        ),
        pytest.param(
            [rule({"ipBlock": {"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}}, POD_A)],
            [rule(NOBODY, POD_A)],
            ["spec.ingress[0].from[0].ipBlock.except"],
            id="an except that is no list",
        ),
        pytest.param(
            [rule({"podSelector": {"matchLabels": {"pod": 1}}})],
            [rule(NOBODY)],
            ["spec.ingress[0].from[0].podSelector.matchLabels[...]"],
            id="a label that is a number",
        ),
        pytest.param(
            [rule({"podSelector": {"matchLabels": {"pod": None}}})],
            [rule(NOBODY)],
            ["spec.ingress[0].from[0].podSelector.matchLabels[...]"],
            id="a label that is null is no label less",
        ),
        pytest.param(
            [rule({"namespaceSelector": {"matchExpressions": [{"key": "a", "values": [None]}]}})],
            [rule(NOBODY)],
            ["spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].values[0]"],
            id="a value that is null",
        ),
        pytest.param(
            [5, rule(POD_A)],
            [{"from": [NOBODY]}, rule(POD_A)],
            ["spec.ingress[0]"],
            id="a rule that is a number keeps its index",
        ),
        pytest.param(
            [None], [{"from": [NOBODY]}], ["spec.ingress[0]"], id="a null rule is no empty rule"
        ),
        pytest.param(
            [rule(None)], [rule(NOBODY)], ["spec.ingress[0].from[0]"], id="a null peer is nobody"
        ),
        pytest.param(
            [rule(POD_A, ports=[None])],
            [rule(POD_A, ports=[NO_PORT])],
            ["spec.ingress[0].ports[0]"],
            id="a null port is not all of TCP",
        ),
        pytest.param(
            [{"from": {}, "ports": 80}],
            [{"from": [NOBODY], "ports": [NO_PORT]}],
            ["spec.ingress[0].from", "spec.ingress[0].ports"],
            id="lists that are none",
        ),
        pytest.param({}, [{"from": [NOBODY]}], ["spec.ingress"], id="rules that are no list"),
    ],
)
def test_a_broken_part_matches_nothing_and_the_rest_stays(
    ingress: Any, expected: Any, fields: list[str]
) -> None:
    item = decode({"podSelector": TARGET, "policyTypes": TYPES, "ingress": ingress})
    assert (item.key, item.revision, item.problem) == ("x/p", "7", None)
    assert spec_of(item) == {"podSelector": TARGET, "policyTypes": TYPES, "ingress": expected}
    assert [(flaw.object, flaw.field) for flaw in item.flaws] == [
        ("NetworkPolicy x/p", field) for field in fields
    ]


@pytest.mark.parametrize(
    ("spec", "expected", "fields"),
    [
        pytest.param(
            {"podSelector": {"matchLabels": []}, "ingress": [rule(POD_A)]},
            {"podSelector": NO_PODS, "ingress": [rule(POD_A)]},
            ["spec.podSelector.matchLabels"],
            id="a podSelector that cannot be read selects nothing",
        ),
        pytest.param(
            {"podSelector": TARGET, "policyTypes": "Egress"},
            {"podSelector": TARGET, "policyTypes": TYPES},
            ["spec.policyTypes"],
            id="types that cannot be read close both directions",
        ),
        pytest.param(
            {"podSelector": TARGET, "egress": [{"to": [5]}]},
            {"podSelector": TARGET, "egress": [{"to": [NOBODY]}]},
            ["spec.egress[0].to[0]"],
            id="a broken egress rule still is one",
        ),
        pytest.param(
            {"podSelector": TARGET, "egress": 5},
            {"podSelector": TARGET, "egress": [{"to": [NOBODY]}]},
            ["spec.egress"],
            id="broken egress without types still closes egress",
        ),
        pytest.param([], {"podSelector": NO_PODS}, ["spec"], id="a spec that is a list"),
    ],
)
def test_selector_types_and_egress(spec: Any, expected: Any, fields: list[str]) -> None:
    item = decode(spec)
    assert spec_of(item) == expected
    assert [flaw.field for flaw in item.flaws] == fields


def test_null_members_are_not_set_and_no_flaw() -> None:
    ingress = [{"from": None, "ports": [{"port": None, "protocol": "UDP"}]}]
    item = decode({"podSelector": {"matchLabels": None}, "ingress": ingress, "egress": None})
    assert item.flaws == ()
    assert spec_of(item) == {"podSelector": {}, "ingress": [{"ports": [{"protocol": "UDP"}]}]}


def test_a_problem_says_what_was_found_and_what_follows() -> None:
    (flaw,) = decode({"ingress": [{"ports": [{"port": [1]}]}]}).flaws
    assert str(flaw) == (
        "NetworkPolicy x/p spec.ingress[0].ports[0].port: cannot be decoded: "
        "Expected `int | str | null`, got `array`; this entry matches nothing"
    )


def test_of_broken_metadata_the_name_is_kept() -> None:
    meta = {"name": "p", "namespace": "x", "resourceVersion": "7", "labels": {"a": 1}}
    item = decode({"podSelector": TARGET}, meta)
    assert (item.key, item.revision) == ("x/p", "7")
    assert spec_of(item) == {"podSelector": TARGET}
    assert [flaw.field for flaw in item.flaws] == ["metadata.labels[...]"]


@pytest.mark.parametrize("metadata", [{"name": 5}, {"name": "p", "namespace": []}, [], "name"])
def test_without_a_name_there_is_no_policy(metadata: Any) -> None:
    item = decode({"podSelector": TARGET}, metadata)
    assert (item.key, item.object) == ("", None)
    assert item.problem is not None


def test_manifests_keep_the_policy_and_tell_every_flaw() -> None:
    text = """
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: p, namespace: x}
    spec:
      podSelector: {}
      ingress: [{from: [{ipBlock: {cidr: 5}}], ports: [{port: [1]}]}]
    """
    manifests = load_manifests(["-"], io.StringIO(text))
    (policy,) = manifests.list(NetworkPolicy)
    assert plain(policy.spec)["ingress"] == [{"from": [NOBODY], "ports": [NO_PORT]}]
    assert [problem.field for problem in manifests.problems] == [
        "spec.ingress[0].from[0].ipBlock.cidr",
        "spec.ingress[0].ports[0].port",
    ]


def test_the_cache_tells_flaws_until_they_are_gone() -> None:
    cache = Cache([NetworkPolicy])
    broken = decode({"ingress": [{"ports": [{"port": [1]}]}]})
    assert broken.object is not None
    assert cache.put(NetworkPolicy, broken.object, "7", broken.flaws) == broken.flaws
    assert cache.get(NetworkPolicy, "x/p") == broken.object
    assert cache.problems() == broken.flaws
    assert cache.stats()[NetworkPolicy].problems == 1
    # The same again, at a newer version, is no news.
    assert cache.put(NetworkPolicy, broken.object, "8", broken.flaws) == ()
    cache.delete(NetworkPolicy, "x/p", "9")
    assert cache.problems() == ()
    cache.replace(NetworkPolicy, [broken.object], "10", flaws={"x/p": broken.flaws})
    assert cache.problems() == broken.flaws
    cache.replace(NetworkPolicy, [broken.object], "11")
    assert cache.problems() == ()
