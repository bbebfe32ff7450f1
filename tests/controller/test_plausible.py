import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.applying import undone
from controller.knowledge import moved_by, restore, stored
from controller.plausible import check_learned
from controller.tuning import Tuning
from sair.errors import InvalidInput
from tests.controller.situations import chain, experienced

VIEW, TUNING = chain(), Tuning()
KNOWLEDGE = experienced(rounds_seen=8)
WILD = st.sampled_from([math.nan, math.inf, -math.inf, 1e18, -1e18, -1.0])

PLACES = [
    ("residual",),
    ("frozen_until_s",),
    ("foreseen_per_s",),
    ("ratios", "infer"),
    ("peaks", "remembered"),
    ("peaks", "base"),
    ("peaks", "remembered_s"),
    ("peaks", "recent", 0, 1),
    ("fits", "infer", "scale_s"),
    ("fits", "infer", "theta", 2),
    ("fits", "infer", "information", 1),
    ("fits", "infer", "scv"),
    ("fits", "infer", "batch_max"),
    ("analogues", "rates", 0),
    ("analogues", "growths", 0),
    ("round",),
]
MAY_BE_NEGATIVE = (("residual",), ("frozen_until_s",), ("fits", "infer", "information", 1), ("peaks", "remembered_s"))


def plain() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(json.dumps(stored(KNOWLEDGE)))
    return state


def with_value(place: tuple[str | int, ...], value: float) -> dict[str, Any]:
    state: Any = plain()
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    changed: dict[str, Any] = state
    return changed


def test_what_the_controller_wrote_is_believed() -> None:
    check_learned(KNOWLEDGE.learned)
    assert restore(VIEW, plain(), [], TUNING).learned == KNOWLEDGE.learned


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@given(wild=WILD)
def test_a_number_that_cannot_be_is_refused_by_name(place: tuple[str | int, ...], wild: float) -> None:
    if wild == -1.0 and place in MAY_BE_NEGATIVE:
        wild = math.nan
    with pytest.raises(InvalidInput, match=f"controller state.*{place[0]}"):
        restore(VIEW, with_value(place, wild), [], TUNING)


def test_lists_that_do_not_belong_together_are_refused() -> None:
    state = plain()
    state["analogues"]["rates"].append(5.0)
    with pytest.raises(InvalidInput, match="analogues"):
        restore(VIEW, state, [], TUNING)


def test_an_information_matrix_that_is_none_is_refused() -> None:
    state = plain()
    state["fits"]["infer"]["information"][1] = 1e9
    with pytest.raises(InvalidInput, match="information"):
        restore(VIEW, state, [], TUNING)


def test_a_rollback_long_after_the_last_observation_leaves_a_state_that_can_be_read() -> None:
    later = KNOWLEDGE.learned.peaks.updated_s + 7200.0
    check_learned(undone(KNOWLEDGE, KNOWLEDGE.learned.round, later, TUNING).learned)


def test_what_another_clock_wrote_is_believed_after_it_was_moved() -> None:
    moved = moved_by(KNOWLEDGE.learned, -1e5)
    check_learned(moved)
    assert moved.peaks.updated_s == pytest.approx(KNOWLEDGE.learned.peaks.updated_s - 1e5)
    assert moved.peaks.remembered == KNOWLEDGE.learned.peaks.remembered
    assert moved_by(moved, 1e5).peaks.recent == KNOWLEDGE.learned.peaks.recent
