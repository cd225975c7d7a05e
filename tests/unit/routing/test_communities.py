"""Communities as operators write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing.communities import (
    MOST,
    WELL_KNOWN,
    parse_communities,
    parse_community,
)
from kube_router_py.routing.model import Community


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("65000:100", (65000, 100)),
        ("0:0", (0, 0)),
        ("65535:65535", (65535, 65535)),
        ("4259840100", (65000, 100)),
        ("0", (0, 0)),
        ("4294967295", (65535, 65535)),
        ("65000:1:2", (65000, 1, 2)),
        ("4294967295:0:4294967295", (4294967295, 0, 4294967295)),
        ("no-export", (65535, 65281)),
        ("NO-ADVERTISE", (65535, 65282)),
        ("local-AS", (65535, 65283)),
        ("graceful-shutdown", (65535, 0)),
        ("blackhole", (65535, 666)),
    ],
)
def test_every_way_to_write_one(text: str, parts: tuple[int, ...]) -> None:
    assert parse_community(text).parts == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4294967296",
        "65536:1",
        "1:65536",
        "1:2:3:4",
        "1:2:4294967296",
        "-1",
        "+1",
        "1:",
        ":1",
        "1 :2",
        "0x10",
        "\u0661:\u0662",
        "1\n",
        "no-export\x00",
        "no export",
        "noexport",
        "99999999999999999999",
    ],
)
def test_what_is_no_community_is_quoted_on_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is no community") as caught:
        parse_community(text)
    assert str(caught.value).isprintable()


def test_a_list_keeps_what_it_can_sorted_and_once() -> None:
    found, mistakes = parse_communities("65000:1:2, no-export ,65000:100,,65000:100,nonsense")
    assert found == (
        Community((65000, 100)),
        Community((65535, 65281)),
        Community((65000, 1, 2)),
    )
    assert len(mistakes) == 2
    assert "''" in mistakes[0]
    assert "'nonsense'" in mistakes[1]


def test_a_list_has_an_end() -> None:
    found, mistakes = parse_communities(",".join(f"65000:{n}" for n in range(MOST + 1)))
    assert len(found) == MOST
    assert mistakes == [f"there are {MOST + 1} communities; the first {MOST} count"]
    _, mistakes = parse_communities("," * 100_000)
    assert len(mistakes) == MOST + 1


@given(st.text(max_size=60))
def test_whatever_is_written_it_is_told_or_within_its_bits(text: str) -> None:
    found, mistakes = parse_communities(text)
    assert found or mistakes
    for each in found:
        assert all(0 <= part < 2 ** (32 if each.is_large else 16) for part in each.parts)
    assert all(mistake.isprintable() for mistake in mistakes)


@given(st.sampled_from(sorted(WELL_KNOWN)))
def test_a_known_name_is_its_numbers(name: str) -> None:
    high, low = WELL_KNOWN[name].parts  # type: ignore[misc]
    assert parse_community(f"{high}:{low}") == WELL_KNOWN[name]
    assert parse_community(str(high * 65536 + low)) == WELL_KNOWN[name]
