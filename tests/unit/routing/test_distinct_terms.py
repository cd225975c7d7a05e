"""Which terms are admitted depends on who asks for them, not on the order of asking."""

from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing import distinct_terms
from kube_router_py.routing.distinct_terms import DistinctTerms
from kube_router_py.routing.exports import ORDINARY, Terms

TERMS = [ORDINARY, *(Terms(local_preference=n) for n in range(5))]

updates = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(TERMS), st.sampled_from("123")),
    max_size=20,
)


@given(updates)
def test_the_oldest_services_have_theirs(found: list[Any]) -> None:
    with patch.object(distinct_terms, "MOST", 2):
        known = DistinctTerms()
    asked: dict[str, tuple[Terms, tuple[str, str]]] = {}
    admitted: dict[str, bool] = {}
    for key, terms, age in found:
        old = asked.get(key, (ORDINARY, ("", "")))[0]
        asked[key] = terms, (age, key)
        changed = known.update(key, old, terms, (age, key))
        now = {each: known.admits(has) for each, (has, _) in asked.items()}
        # Whoever is not named has the answer that it had, unless it asked just now.
        others = [each for each in now if each not in changed and each != key]
        assert all(now[each] == admitted[each] for each in others)
        admitted = now

    order: list[Terms] = []
    for terms, _ in sorted(asked.values(), key=lambda each: each[1]):
        if terms != ORDINARY and terms not in order:
            order.append(terms)
    for terms in TERMS:
        assert known.admits(terms) == (terms not in order[2:])
    refused = {key for key, (terms, _) in asked.items() if terms in order[2:]}
    assert set(known.refused()) == refused
