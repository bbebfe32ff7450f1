from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Experience, Outcome, RewardTerms
from controller.features import action_vector
from controller.frontier import Frontiers
from controller.retrieval import Memory
from controller.reward import pareto_term
from controller.state import HOLD, Action, StageDelta
from controller.tuning import Tuning
from tests.builders import experience

STAGES = ("pre", "infer")
ALL = Tuning(least_reward=-1e9)


def lived(number: int, context: tuple[float, ...], reward: float, milli: int = 0, **changes: object) -> Experience:
    """A round in a context that ended with a reward; all of it in the latency term."""
    action = Action.of([StageDelta("infer", gpu_milli=milli)])
    terms = RewardTerms(reward - 0.8, 0.0, 0.0, 0.0, 0.8)
    values = {"context": context, "reward": terms, "action": action, "outcome": Outcome(3.0, 1.4), **changes}
    return experience(number, **values)


def filled(experiences: list[Experience], tuning: Tuning = ALL) -> Memory:
    memory = Memory(STAGES)
    memory.load(experiences, tuning)
    return memory


def random_lives(count: int, seed: int = 0, width: int = 4) -> list[Experience]:
    rng = np.random.default_rng(seed)
    return [
        lived(number, tuple(rng.random(width)), float(rng.normal()), int(rng.integers(-2, 3)) * 100)
        for number in range(count)
    ]


def surprisals_from_scratch(memory: Memory, tuning: Tuning) -> dict[str, float]:
    """Leave-one-out over all pairs, straight from the definition."""
    lives = memory.experiences
    context = np.array([life.context for life in lives], dtype=float)
    action = np.array([action_vector(life.action, STAGES) for life in lives])
    rewards = np.array([life.reward.total for life in lives])
    result = {}
    for place, life in enumerate(lives):
        near = ((context - context[place]) ** 2).sum(1) / memory.bandwidths[0] ** 2
        near += ((action - action[place]) ** 2).sum(1) / memory.bandwidths[1] ** 2
        kernel = np.exp(-near / 2)
        others = np.arange(len(lives)) != place
        total = kernel[others].sum() + tuning.shrinkage
        prior = rewards[others].mean()
        result[life.id] = abs(rewards[place] - (kernel[others] @ rewards[others] + tuning.shrinkage * prior) / total)
    return result


@pytest.mark.parametrize("count", [5, 31, 32, 33, 140])
def test_surprisals_kept_up_one_by_one_are_those_computed_from_scratch(count: int) -> None:
    memory = filled(random_lives(count))
    expected = surprisals_from_scratch(memory, ALL)
    for life, surprisal in zip(memory.experiences, memory.surprisals(ALL), strict=True):
        assert surprisal == pytest.approx(expected[life.id], abs=1e-4)


@given(st.lists(st.integers(0, 39), min_size=1, max_size=30, unique=True))
def test_forgetting_leaves_what_would_be_there_had_it_never_been(gone: list[int]) -> None:
    lives = random_lives(40, seed=3)
    memory = filled(lives)
    for number in gone:
        assert memory.remove(lives[number].id)
    if len(memory) > 1:
        expected = surprisals_from_scratch(memory, ALL)
        for life, surprisal in zip(memory.experiences, memory.surprisals(ALL), strict=True):
            assert surprisal == pytest.approx(expected[life.id], abs=1e-3)
    assert {life.id for life in memory.experiences} == {life.id for life in lives} - {lives[n].id for n in gone}


def test_an_experience_that_is_there_already_is_replaced() -> None:
    memory = filled([lived(1, (0.1, 0.1), 1.0), lived(1, (0.2, 0.2), 2.0)])
    assert len(memory) == 1
    assert memory.experiences[0].reward.total == 2.0


@pytest.mark.parametrize("context", [(float("nan"), 0.1), (float("inf"), 0.1), (0.1, 0.2, 0.3)])
def test_a_poisoned_experience_is_left_out(context: tuple[float, ...]) -> None:
    memory = filled([lived(1, (0.1, 0.1), 1.0)])
    memory.add(lived(2, context, 1.0), ALL)
    assert len(memory) == 1


def test_the_round_that_fell_out_of_line_is_the_surprising_one() -> None:
    lives = [lived(number, (0.5, 0.5), 1.0) for number in range(10)] + [lived(99, (0.5, 0.5), -1.0)]
    memory = filled(lives)
    by_id = dict(zip([life.id for life in memory.experiences], memory.surprisals(ALL), strict=True))
    assert max(by_id, key=lambda identity: by_id[identity]) == lives[-1].id


def test_what_is_near_and_surprising_is_shown_first() -> None:
    near = [lived(number, (0.5, 0.5), 1.0) for number in range(5)]
    odd = lived(50, (0.5, 0.52), -0.5)
    far = lived(51, (8.0, 8.0), -3.0)
    chosen = filled([*near, odd, far]).retrieve((0.5, 0.5), Frontiers({}), ALL)
    assert chosen[0].experience == odd
    assert far not in [each.experience for each in chosen]


def test_twins_are_not_shown_twice() -> None:
    lives = [lived(number, (0.5, 0.5), float(number % 2)) for number in range(20)]
    assert len(filled(lives).retrieve((0.5, 0.5), Frontiers({}), replace(ALL, diversity=1.1))) < 3
    assert len(filled(lives).retrieve((0.5, 0.5), Frontiers({}), replace(ALL, diversity=0.0))) == 15


def test_no_more_than_m_are_shown_and_none_if_m_is_zero() -> None:
    memory = filled(random_lives(200))
    for most in (0, 5, 15):
        shown = memory.retrieve((0.5,) * 4, Frontiers({}), replace(ALL, examples_max=most, diversity=0.0))
        assert len(shown) == most


def test_only_the_better_half_is_shown_unless_told_otherwise() -> None:
    memory = filled(random_lives(100))
    median = float(np.median([life.reward.total for life in memory.experiences]))
    shown = memory.retrieve((0.5,) * 4, Frontiers({}), Tuning(diversity=0.0))
    assert shown
    assert all(each.experience.reward.total >= median for each in shown)


def test_the_pareto_term_is_that_of_the_frontier_of_today() -> None:
    life = lived(1, (0.5, 0.5), 1.8, outcome=Outcome(0.9, 0.5), load_bucket=3)
    other = lived(2, (0.5, 0.5), 0.1, outcome=Outcome(0.9, 0.9), load_bucket=3)
    memory = filled([life, other])
    today = Frontiers({}).add(3, (0.5, 0.1))
    shown = {each.experience.id: each.reward for each in memory.retrieve((0.5, 0.5), today, ALL)}
    expected = life.reward.total - life.reward.pareto + pareto_term(life.outcome, today.at(3))
    assert shown[life.id] == pytest.approx(expected)


def test_a_kernel_mean_learns_what_the_model_gets_wrong_where_it_was_wrong() -> None:
    lives = [lived(number, (0.5, 0.5), 0.5, milli=100, predicted_reward=1.0) for number in range(20)]
    memory = filled(lives)
    up = Action.of([StageDelta("infer", gpu_milli=100)])
    here, elsewhere = memory.predict((0.5, 0.5), [up, HOLD], ALL)
    assert here.mean == pytest.approx(-0.5, abs=0.05)
    assert here.support == pytest.approx(20.0)
    assert abs(elsewhere.mean) < abs(here.mean)
    assert here.nearest is not None
    (unknown,) = memory.predict((9.0, 9.0), [up], ALL)
    assert unknown.mean == pytest.approx(0.0, abs=1e-6)
    assert unknown.deviation == pytest.approx(1.0, abs=1e-6)


def test_an_empty_memory_predicts_nothing_and_shows_nothing() -> None:
    memory = Memory(STAGES)
    assert memory.retrieve((0.1,), Frontiers({}), ALL) == []
    assert memory.predict((0.1,), [HOLD], ALL)[0].support == 0.0
