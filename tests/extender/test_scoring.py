"""How nodes compare."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extender.scoring import score
from tests.extender.builders import need, view

STAGE = "default/vision/inference"


def test_a_node_without_room_scores_nothing() -> None:
    assert score([view(0, 100)], need(500), 100) == 0
    assert score([], need(500), 100) == 0


def test_golden_values() -> None:
    assert score([view(0, 1000)], need(1000), 0) == 10
    # spread 1, headroom 1, fit 0.5: 10 · (0.5 + 0.3 + 0.1)
    assert score([view(0, 1000)], need(500), 100) == 9
    # spread ½, headroom 0, fit 1: 10 · (0.25 + 0 + 0.2), rounded to even
    assert score([view(0, 500, stages={STAGE: 1})], need(500), 100) == 4


def test_a_node_with_fewer_siblings_wins() -> None:
    assert score([view(0)], need(500), 100) > score([view(0), view(1, 500, stages={STAGE: 1})], need(500), 100)


def test_among_equals_the_fuller_node_wins() -> None:
    assert score([view(0, 400)], need(200), 100) > score([view(0, 1000)], need(200), 100)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 16_000), st.integers(0, 5)), max_size=8),
    st.integers(1, 1000),
    st.integers(0, 1000),
)
def test_scores_stay_within_what_the_scheduler_accepts(
    cards: list[tuple[int, int, int]], milli: int, headroom: int
) -> None:
    views = [
        view(index, free, memory, stages={STAGE: siblings}) for index, (free, memory, siblings) in enumerate(cards)
    ]

    assert 0 <= score(views, need(milli), headroom) <= 10
