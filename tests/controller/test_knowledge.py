import json
from dataclasses import replace
from typing import Any

import pytest

from controller import round as rounds
from controller.knowledge import Knowledge, begin, learn, refused, restore, stored
from controller.model import ServiceCurve
from controller.state import KnobOutcome, StageView
from controller.tuning import Tuning
from sair.errors import InvalidInput
from tests.builders import experience
from tests.controller.situations import chain, experienced, observation

VIEW, TUNING = chain(), Tuning()


def lives(count: int = 5) -> list[Any]:
    return [experience(number, context=(0.1 * number, 0.2), pipeline=VIEW.key) for number in range(count)]


def through_json(knowledge: Knowledge) -> Any:
    return json.loads(json.dumps(stored(knowledge)))


def test_what_was_learned_survives_storing_exactly() -> None:
    knowledge = experienced(rounds_seen=6)
    for life in lives():
        knowledge, _ = learn(knowledge, life, TUNING)
    back = restore(VIEW, through_json(knowledge), lives(), TUNING)
    assert back.learned == knowledge.learned
    assert back.frontiers == knowledge.frontiers
    assert back.memory.surprisals(TUNING) == pytest.approx(knowledge.memory.surprisals(TUNING))


def test_nothing_stored_is_a_fresh_beginning() -> None:
    assert restore(VIEW, None, [], TUNING).learned == begin(VIEW).learned


def test_stages_that_are_gone_are_forgotten() -> None:
    smaller = replace(VIEW, stages=VIEW.stages[:2])
    back = restore(smaller, through_json(experienced()), [], TUNING)
    assert set(back.learned.fits) == {"pre", "infer"}


def test_another_version_is_refused_by_name() -> None:
    raw = {**through_json(experienced()), "version": 99}
    with pytest.raises(InvalidInput, match="version"):
        restore(VIEW, raw, [], TUNING)


@pytest.mark.parametrize(
    "damage", [{"round": "many"}, {"fits": []}, {"peaks": {"remembered": "high"}}, {"residual": None}]
)
def test_damaged_state_is_refused_and_says_where(damage: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="controller state"):
        restore(VIEW, {**through_json(experienced()), **damage}, [], TUNING)


def test_learning_returns_the_surprisal_and_grows_the_frontier() -> None:
    knowledge = begin(VIEW)
    for life in lives(4):
        knowledge, surprisal = learn(knowledge, life, TUNING)
        assert surprisal >= 0.0
    assert knowledge.frontiers.at(3).points == ((0.8, 0.4),)
    assert len(knowledge.memory) == 4


def test_a_given_belief_is_where_a_stage_begins() -> None:
    knowledge = begin(VIEW, {"infer": ServiceCurve(0.0, 0.0, 0.02), "gone": ServiceCurve(0.0, 0.0, 0.02)})
    assert set(knowledge.learned.fits) == {"infer"}


def test_only_what_was_not_granted_in_full_is_remembered_as_refused() -> None:
    outcomes = [KnobOutcome("infer", "replicas", 4, 3, "no card"), KnobOutcome("pre", "cpu", 1500, 1500)]
    (refusal,) = refused(outcomes, 7)
    assert (refusal.stage, refusal.knob) == ("infer", "replicas")
    assert refusal.until_round > 7


def test_state_stays_small_enough_to_be_written_every_round() -> None:
    knowledge = begin(VIEW)
    for number in range(600):
        knowledge = rounds.observe(knowledge, VIEW, observation(time_s=30.0 * number), TUNING)
    assert len(json.dumps(stored(knowledge))) < 40_000


def test_a_stage_that_was_never_seen_has_no_fit() -> None:
    wider = replace(VIEW, stages=(*VIEW.stages, StageView("audit", ("post",), uses_gpu=False)))
    knowledge = rounds.observe(begin(wider), wider, observation(), TUNING)
    assert "audit" not in knowledge.learned.fits
