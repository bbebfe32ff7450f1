"""The two parts of regret add up, and rollouts meet the same requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.simulation.plant import Plant
from controller.simulation.regret import RegretAccount, action_values, round_regret
from controller.simulation.service import ServiceLaw
from controller.state import HOLD, Action, StageDelta
from tests.controller.simulation.builders import two_stages

ACTIONS = [HOLD, *(Action.of([StageDelta("a", replicas=step)]) for step in (-1, 1, 2, 3))]


@given(
    values=st.lists(st.floats(-100, 100), min_size=5, max_size=5),
    covered=st.sets(st.sampled_from(ACTIONS)),
    taken=st.sampled_from(ACTIONS),
)
def test_coverage_and_selection_add_up_to_the_regret(values: list[float], covered: set[Action], taken: Action) -> None:
    table = dict(zip(ACTIONS, values, strict=True))
    regret = round_regret(table, covered, taken)
    assert regret.coverage + regret.selection == regret.instantaneous
    assert regret.instantaneous == pytest.approx(max(values) - table[taken], abs=1e-9)
    assert regret.coverage >= 0
    if taken in covered or taken == HOLD:
        assert regret.selection >= 0


def test_regret_at_a_known_point() -> None:
    up, more, down = ACTIONS[2], ACTIONS[3], ACTIONS[1]
    regret = round_regret({HOLD: 1.0, up: 3.0, more: 7.0, down: 0.0}, [up, down], down)
    assert (regret.coverage, regret.selection, regret.instantaneous) == (4.0, 3.0, 7.0)


def test_a_retrieved_action_that_is_not_feasible_covers_nothing() -> None:
    up, more = ACTIONS[2], ACTIONS[3]
    assert round_regret({HOLD: 1.0, up: 3.0}, [more], HOLD).coverage == 2.0


def test_an_action_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="need a value"):
        round_regret({HOLD: 1.0}, [], ACTIONS[2])


def test_probes_are_summed_apart() -> None:
    account = RegretAccount()
    up = ACTIONS[2]
    account.add(round_regret({HOLD: 0.0, up: 1.0}, [], HOLD))
    account.add(round_regret({HOLD: 0.0, up: 5.0}, [up], HOLD, probe=True))
    account.add(round_regret({HOLD: 0.0, up: 2.0}, [up], HOLD))
    assert (account.total().coverage, account.total().selection) == (1.0, 2.0)
    assert account.total(probes=True).instantaneous == 5.0


def test_values_come_from_rollouts_that_leave_the_plant_alone() -> None:
    rng = np.random.default_rng(1)
    arrivals = np.sort(rng.uniform(0, 300, 300 * 14))
    plant = Plant(two_stages(first_law=ServiceLaw(cpu_s=0.06, scv=0.5)), arrivals, 1)
    twin = plant.copy()
    plant.advance(60)
    twin.advance(60)
    relief, useless = Action.of([StageDelta("pre", cpu=1000)]), Action.of([StageDelta("inf", gpu_milli=100)])

    def goodput(one: Plant, _action: Action) -> float:
        return one.observe(30).goodput_per_s

    values = action_values(plant, [relief, useless], 30, goodput)
    assert set(values) == {HOLD, relief, useless}
    assert values[relief] > values[HOLD] + 1
    assert values[useless] == pytest.approx(values[HOLD], abs=0.5)
    assert values == action_values(plant, [relief, useless], 30, goodput)
    assert plant.now == 60
    assert plant.observe(30) == twin.observe(30)
