"""Which terms are admitted depends on who asks for them, not on the order of asking."""

from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing import distinct_terms
from kube_router_py.routing.distinct_terms import MOST_ENTRIES, DistinctTerms
from kube_router_py.routing.exports import ORDINARY, Terms

PEERS = ("a", "b", "c")
CHOICES = [None, (), ("a",), ("b", "c"), ("a", "unknown")]
TERMS = [Terms(local_preference=n, peers=p) for n in (1, 2) for p in CHOICES]

steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from("stuvwx"),
            st.frozensets(st.sampled_from(TERMS), max_size=2),
            st.sampled_from("123"),
        ),
        st.frozensets(st.sampled_from(PEERS)),
    ),
    max_size=20,
)


def in_order(terms: Terms) -> tuple[object, ...]:
    """Of those of one Service."""
    return terms.local_preference, terms.peers is None, terms.peers or ()


@given(steps, st.sampled_from([0, 4, 6, 10, 15]))
def test_the_oldest_services_have_theirs(found: list[Any], most: int) -> None:
    with patch.object(distinct_terms, "MOST_ENTRIES", most):
        known = DistinctTerms()
    asked: dict[str, tuple[frozenset[Terms], tuple[str, str]]] = {}
    peers: frozenset[str] = frozenset()
    admitted: dict[str, frozenset[Terms]] = {}
    for step in found:
        just_asked = ""
        if isinstance(step, frozenset):
            peers = step
            changed = known.follow_peers(peers)
        else:
            just_asked, terms, age = step
            old = asked.get(just_asked, (frozenset(), ("", "")))[0]
            asked[just_asked] = terms, (age, just_asked)
            changed = known.update(just_asked, old, terms, (age, just_asked))
        now = {key: frozenset(filter(known.admits, has)) for key, (has, _) in asked.items()}
        # Whoever is not named has the answer that it had.
        others = [each for each in now if each not in changed and each != just_asked]
        assert all(now[each] == admitted[each] for each in others)
        admitted = now

    fitting: list[Terms] = [ORDINARY]
    for wanted, _ in sorted(asked.values(), key=lambda each: each[1]):
        for terms in sorted(wanted, key=in_order):
            chosen = {p for each in (*fitting, terms) for p in each.peers or () if p in peers}
            if terms not in fitting and len(fitting) * (2 + len(chosen)) <= most:
                fitting.append(terms)
    assert admitted == {key: wanted & {*fitting} for key, (wanted, _) in asked.items()}
    assert set(known.refused()) == {key for key, has in asked.items() if has[0] - {*fitting}}


def test_neighbors_that_there_are_not_cost_nothing() -> None:
    known = DistinctTerms({"a"})
    names = tuple(f"router-{number}" for number in range(1000))
    for number in range(MOST_ENTRIES // 2):
        key, terms = f"n/{number}", Terms(local_preference=number, peers=names)
        assert known.update(key, frozenset(), {terms}, ("2024", key)) == frozenset()
    assert list(known.refused()) == []
