"""Where on a node a replica goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extender.card import CardView
from extender.packing import choose, fits
from tests.extender.builders import need, view

STAGE = "default/vision/inference"


def chosen(cards: list[CardView], milli: int = 300, memory: int = 0, headroom: int = 100) -> int | None:
    best = choose(cards, need(milli, memory), headroom)
    return None if best is None else best.card


def test_the_fullest_card_that_still_holds_the_replica_is_taken() -> None:
    assert chosen([view(0, 1000), view(1, 600), view(2, 200)]) == 1


def test_room_for_raises_is_left_where_there_is_a_choice() -> None:
    assert chosen([view(0, 1000), view(1, 350)]) == 0
    assert chosen([view(0, 1000), view(1, 350)], headroom=0) == 1
    assert chosen([view(1, 350)]) == 1


def test_replicas_of_one_stage_go_to_different_cards() -> None:
    assert chosen([view(0, 1000), view(1, 600, stages={STAGE: 1})]) == 0
    assert chosen([view(0, 1000, stages={STAGE: 1}), view(1, 600, stages={STAGE: 2})]) == 0
    assert chosen([view(0, 1000), view(1, 600, stages={"default/vision/other": 1})]) == 1


def test_memory_decides_between_cards_of_equal_share() -> None:
    assert chosen([view(0, 600, 16_000), view(1, 600, 9_000)], memory=8_000) == 1
    assert chosen([view(0, 600, 7_000)], memory=8_000) is None


def test_equal_cards_are_taken_in_order() -> None:
    assert chosen([view(2), view(0), view(1)]) == 0


cards = st.lists(
    st.builds(
        lambda free, memory, siblings: view(0, free, memory, stages={STAGE: siblings}),
        st.integers(0, 1000),
        st.integers(0, 16_000),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(cards, st.integers(1, 1000), st.integers(0, 16_000), st.integers(0, 1000))
def test_a_card_is_found_exactly_if_one_fits_and_then_it_fits(
    found: list[CardView], milli: int, memory: int, headroom: int
) -> None:
    numbered = [
        view(index, card.free_milli, card.free_memory_mi, stages=card.stages) for index, card in enumerate(found)
    ]
    best = choose(numbered, need(milli, memory), headroom)

    if best is None:
        assert not any(fits(card, need(milli, memory)) for card in numbered)
    else:
        assert fits(numbered[best.card], need(milli, memory))
        assert choose(list(reversed(numbered)), need(milli, memory), headroom) == best
