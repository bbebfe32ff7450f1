from dataclasses import replace

import pytest

from controller.journal import CHECKPOINT_ROUNDS
from controller.memory.store import Store
from controller.replay import POLICIES, parse_changes, replay, tuned
from controller.tuning import Tuning
from sair.errors import InvalidInput
from tests.controller.histories import history, recorded_run


async def test_the_same_policy_with_the_same_parameters_decides_the_same_from_the_journal_alone(store: Store) -> None:
    watcher = await recorded_run(store, 900)
    rounds, experiences = await history(store)
    result = replay(rounds, experiences)
    assert len(result.comparisons) == len(watcher.reports)
    assert all(each.faithful for each in result.comparisons)
    for each, report in zip(result.comparisons, watcher.reports, strict=True):
        assert report.decision is not None
        assert each.done == report.decision.action
        if each.policy != "probe":
            assert each.would == report.decision.action
        assert each.done_p99_s == report.decision.predicted_p99_s
    assert any(each.done for each in result.comparisons)


async def test_a_journal_whose_beginning_is_gone_is_replayed_from_the_first_record_that_carries_what_was_learned(
    store: Store,
) -> None:
    await recorded_run(store, 880)
    rounds, experiences = await history(store)
    later = replay(rounds[3:], experiences)
    assert [each.round for each in later.comparisons] == list(range(CHECKPOINT_ROUNDS, len(rounds)))
    assert all(each.faithful for each in later.comparisons)
    assert [each.round for each in later.skipped] == list(range(3, CHECKPOINT_ROUNDS))


async def test_holding_differs_wherever_something_was_done(store: Store) -> None:
    await recorded_run(store, 500)
    rounds, experiences = await history(store)
    result = replay(rounds, experiences, policy=POLICIES["hold"])
    assert all(not each.would for each in result.comparisons)
    assert result.different == sum(bool(each.done) for each in result.comparisons) > 0


async def test_another_parameter_changes_decisions_and_is_not_called_faithful(store: Store) -> None:
    await recorded_run(store, 900)
    rounds, experiences = await history(store)
    result = replay(rounds, experiences, changes=parse_changes(["remembered_factor=3", "uncovered_factor=5"]))
    own = replay(rounds, experiences)
    assert all(each.faithful is None for each in result.comparisons)
    assert result.different > own.different


async def test_rounds_that_cannot_be_read_are_skipped_with_their_reason_and_the_others_go_on(store: Store) -> None:
    await recorded_run(store, 500)
    rounds, experiences = await history(store)
    damaged = list(rounds)
    damaged[4] = replace(rounds[4], decision={**rounds[4].decision, "observation_json": "{"})
    damaged[6] = replace(rounds[6], decision={"kind": "decision", "round": "6", "problem": "held: no scrape"})
    result = replay(damaged, experiences)
    assert {each.round for each in result.skipped} == {4, 6}
    assert any("observation_json" in each.reason for each in result.skipped)
    assert any(each.reason == "held: no scrape" for each in result.skipped)
    assert len(result.comparisons) == len(rounds) - 2


async def test_absurd_numbers_in_a_record_cost_that_round_alone(store: Store) -> None:
    await recorded_run(store, 400)
    rounds, experiences = await history(store)
    bad = list(rounds)
    view = rounds[5].text("view_json").replace('"slo_s":0.25', '"slo_s":0.0')
    assert view != rounds[5].text("view_json")
    bad[5] = replace(rounds[5], decision={**rounds[5].decision, "view_json": view})
    assert len(replay(bad, experiences).comparisons) >= len(rounds) - 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epsilon", "name=value"),
        ("epsilom=1", "a parameter such as epsilon"),
        ("prices=1", "prices"),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_with_those_that_are_near(setting: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_changes([setting])


@pytest.mark.parametrize(
    "setting", ["epsilon=much", "epsilon=nan", "epsilon=inf", "caution=-1", "distance=far", "reserve=7"]
)
def test_a_value_that_a_parameter_cannot_have_is_refused(setting: str) -> None:
    with pytest.raises(InvalidInput, match=setting.split("=", maxsplit=1)[0]):
        tuned({}, parse_changes([setting]))


def test_parameters_are_changed_on_top_of_what_was_recorded() -> None:
    recorded = {"prices": {"gpu": 4.0}, "caution": 0.7}
    changed = tuned(
        recorded, parse_changes(["prices.vcpu=0.5", "reserve=false", "distance=euclidean", "least_reward=none"])
    )
    assert (changed.prices.gpu, changed.prices.vcpu, changed.caution) == (4.0, 0.5, 0.7)
    assert changed.reserve is False
    assert changed.distance == "euclidean"
    assert tuned({}, {}) == Tuning()
