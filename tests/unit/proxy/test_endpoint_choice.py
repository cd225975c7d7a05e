"""Which endpoints a node uses: usability, topology hints, traffic policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.services import Candidate, Usability, cluster_endpoints, local_endpoints

READY, PAUSED = Usability.READY, Usability.PAUSED
SERVING, TERMINATING = Usability.SERVING_TERMINATING, Usability.TERMINATING


def candidate(
    use: Usability = READY, node: str = "other", zones: str = "", nodes: str = ""
) -> Candidate:
    """``zones`` and ``nodes`` are hints, with spaces between them."""
    hints = (frozenset(text.split()) or None for text in (nodes, zones))
    return Candidate(use, node, *hints)


ZONES: dict[str, Candidate] = {
    "a": candidate(zones="z1"),
    "b": candidate(zones="z2"),
    "c": candidate(zones="z1 z3"),
}
NODES: dict[str, Candidate] = {
    "a": candidate(nodes="n1", zones="z1"),
    "b": candidate(nodes="n2", zones="z1"),
    "c": candidate(nodes="n2 n3", zones="z2"),
}


@pytest.mark.parametrize(
    ("listed", "node", "zone", "chosen"),
    [
        # Hints for zones (KEP-4444).
        (ZONES, "n1", "z1", "a c"),
        (ZONES, "n1", "z3", "c"),
        (ZONES, "n1", "z9", "a b c"),  # none is meant for this zone
        (ZONES, "n1", "", "a b c"),  # the node has no zone
        ({**ZONES, "d": candidate()}, "n1", "z1", "a b c d"),  # one ready endpoint has no hint
        # What is not ready neither needs a hint nor counts as being here.
        ({**ZONES, "d": candidate(PAUSED)}, "n1", "z1", "a c"),
        ({**ZONES, "d": candidate(SERVING)}, "n1", "z1", "a c"),
        ({"a": candidate(PAUSED, zones="z1"), "b": candidate(zones="z2")}, "n1", "z1", "b"),
        ({"a": candidate(SERVING, zones="z1"), "b": candidate(zones="z2")}, "n1", "z1", "b"),
        # An empty name is a hint for nobody, not for nodes without a zone.
        ({"a": Candidate(READY, "", None, frozenset({""})), "b": ZONES["b"]}, "n1", "", "a b"),
        # Hints for nodes (KEP-3015) come first; where they cannot be used, those for zones.
        (NODES, "n1", "z1", "a"),
        (NODES, "n2", "z9", "b c"),
        (NODES, "n2", "", "b c"),
        (NODES, "n9", "z1", "a b"),
        (NODES, "n9", "z9", "a b c"),
        ({**NODES, "d": candidate(zones="z1")}, "n1", "z1", "a b d"),
        ({**NODES, "d": candidate()}, "n1", "z1", "a b c d"),
        # Nothing is ready (KEP-1669): hints no longer count.
        (
            {"a": candidate(SERVING, zones="z1"), "b": candidate(SERVING, zones="z2")},
            "n1",
            "z1",
            "a b",
        ),
        ({"a": candidate(SERVING), "b": candidate(TERMINATING)}, "n1", "z1", "a"),
        ({"a": candidate(PAUSED), "b": candidate(TERMINATING)}, "n1", "z1", ""),
        ({}, "n1", "z1", ""),
    ],
)
def test_cluster_policy(listed: dict[str, Candidate], node: str, zone: str, chosen: str) -> None:
    assert cluster_endpoints(listed, node, zone) == chosen.split()


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ({"a": candidate(node="n1"), "b": candidate()}, "a"),
        ({"a": candidate(), "b": candidate()}, ""),
        ({"a": candidate(SERVING, "n1"), "b": candidate()}, "a"),
        ({"a": candidate(SERVING, "n1"), "b": candidate(node="n1")}, "b"),
        ({"a": candidate(PAUSED, "n1"), "b": candidate(TERMINATING, "n1")}, ""),
        # Hints do not count: they may be for another zone.
        ({"a": candidate(READY, "n1", "z2", "n2"), "b": candidate(READY, "n2", "z1", "n1")}, "a"),
        ({"a": Candidate(READY)}, ""),
    ],
)
def test_local_policy(listed: dict[str, Candidate], chosen: str) -> None:
    assert local_endpoints(listed, "n1") == chosen.split()


_HINTS = st.none() | st.sets(st.sampled_from("xyz"), min_size=1).map(frozenset)
CANDIDATES = st.builds(
    Candidate, st.sampled_from(Usability), st.sampled_from(["x", "y", "z", ""]), _HINTS, _HINTS
)


@given(
    listed=st.dictionaries(st.integers(0, 7), CANDIDATES),
    node=st.sampled_from("xyzw"),
    zone=st.sampled_from(["x", "y", "z", "w", ""]),
)
def test_hints_never_leave_a_service_without_an_endpoint_that_it_has(
    listed: dict[int, Candidate], node: str, zone: str
) -> None:
    ready = {key for key, found in listed.items() if found.usability is READY}
    serving = {key for key, found in listed.items() if found.usability is SERVING}
    chosen = set(cluster_endpoints(listed, node, zone))
    assert chosen <= (ready or serving)
    assert bool(chosen) == bool(ready or serving)
    here = set(local_endpoints(listed, node))
    assert here <= {key for key, found in listed.items() if found.node == node}
    assert here <= ready or not here & ready


@given(listed=st.dictionaries(st.integers(0, 7), CANDIDATES), data=st.data())
def test_the_order_of_endpoints_does_not_matter(
    listed: dict[int, Candidate], data: st.DataObject
) -> None:
    shuffled: dict[int, Candidate] = dict(data.draw(st.permutations(list(listed.items()))))
    assert set(cluster_endpoints(shuffled, "x", "y")) == set(cluster_endpoints(listed, "x", "y"))
    assert set(local_endpoints(shuffled, "x")) == set(local_endpoints(listed, "x"))
