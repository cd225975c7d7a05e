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
TERMS = [ORDINARY, *(Terms(local_preference=n, peers=p) for n in (1, 2) for p in CHOICES)]

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("stuvwx"), st.sampled_from(TERMS), st.sampled_from("123")),
        st.frozensets(st.sampled_from(PEERS)),
    ),
    max_size=20,
)


@given(steps, st.sampled_from([0, 4, 6, 10, 15]))
def test_the_oldest_services_have_theirs(found: list[Any], most: int) -> None:
    with patch.object(distinct_terms, "MOST_ENTRIES", most):
        known = DistinctTerms()
    asked: dict[str, tuple[Terms, tuple[str, str]]] = {}
    peers: frozenset[str] = frozenset()
    admitted: dict[str, bool] = {}
    for step in found:
        just_asked = ""
        if isinstance(step, frozenset):
            peers = step
            changed = known.follow_peers(peers)
        else:
            just_asked, terms, age = step
            old = asked.get(just_asked, (ORDINARY, ("", "")))[0]
            asked[just_asked] = terms, (age, just_asked)
            changed = known.update(just_asked, old, terms, (age, just_asked))
        now = {each: known.admits(has) for each, (has, _) in asked.items()}
        # Whoever is not named has the answer that it had.
        others = [each for each in now if each not in changed and each != just_asked]
        assert all(now[each] == admitted[each] for each in others)
        admitted = now

    fitting: list[Terms] = [ORDINARY]
    for terms, _ in sorted(asked.values(), key=lambda each: each[1]):
        chosen = {p for each in (*fitting, terms) for p in each.peers or () if p in peers}
        if terms not in fitting and len(fitting) * (2 + len(chosen)) <= most:
            fitting.append(terms)
    assert admitted == {key: terms in fitting for key, (terms, _) in asked.items()}
    assert set(known.refused()) == {key for key, fits in admitted.items() if not fits}


def test_neighbors_that_there_are_not_cost_nothing() -> None:
    known = DistinctTerms({"a"})
    names = tuple(f"router-{number}" for number in range(1000))
    for number in range(MOST_ENTRIES // 2):
        terms = Terms(local_preference=number, peers=names)
        assert known.update(f"n/{number}", ORDINARY, terms, ("2024", f"n/{number}")) == frozenset()
    assert list(known.refused()) == []
