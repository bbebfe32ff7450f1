from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Experience, Outcome
from controller.frontier import GLOBAL, Frontier, Frontiers, point_of
from controller.reward import pareto_term
from controller.standing import Standings, median, pareto_terms
from controller.tuning import Distance, FrontierScope, Tuning
from tests.builders import experience

GRID = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0])
POINTS = st.lists(st.tuples(GRID, GRID), max_size=12)


@given(POINTS, st.lists(st.tuples(GRID, GRID), min_size=1, max_size=20), st.sampled_from(["igd+", "euclidean"]))
def test_the_pareto_terms_of_many_are_those_of_each(
    points: list[tuple[float, float]], outcomes: list[tuple[float, float]], distance: str
) -> None:
    frontier = Frontier.of(points)
    each = [pareto_term(Outcome(*outcome), frontier, distance) for outcome in outcomes]
    assert pareto_terms(np.array(outcomes), frontier, distance) == pytest.approx(each)


def lived(number: int, rng: np.random.Generator) -> Experience:
    """A round that was fast where it was dear, so that frontiers grow long; one in ten served nobody and stands on none."""
    latency = float(rng.uniform(0.1, 2.5))
    cost = 0.3 / latency * float(rng.lognormal(0.0, 0.2))
    idle = rng.random() < 0.1
    return experience(number, outcome=Outcome(0.0 if idle else latency, cost), load_bucket=int(rng.integers(0, 3)))


@pytest.mark.parametrize("distance", ["igd+", "euclidean"])
@pytest.mark.parametrize("scope", ["bucket", "global"])
def test_rewards_are_those_of_todays_frontiers_whatever_came_and_went(scope: FrontierScope, distance: Distance) -> None:
    """Rows come one by one and many at once, go in any order, and frontiers move in between."""
    rng = np.random.default_rng(4)
    tuning = Tuning(frontier_scope=scope, distance=distance)
    standings, lives, frontiers = Standings(), list[Experience](), Frontiers({})
    for number in range(600):
        many = [lived(number * 10_000 + extra, rng) for extra in range(1_500 if number == 100 else 1)]
        standings.append(many)
        lives += many
        for each in many[:2]:
            frontiers = frontiers.add(each.load_bucket, point_of(each.outcome))
        if number % 4 == 3:
            place = int(rng.integers(len(lives)))
            standings.remove(place)
            last = lives.pop()
            if place < len(lives):
                lives[place] = last
        if rng.random() < 0.5:
            afresh = Standings()
            afresh.append(lives)
            rewards, _ = standings.rewards(frontiers, tuning)
            assert np.allclose(rewards, afresh.rewards(frontiers, tuning)[0], rtol=0.0, atol=1e-12)
            for place in rng.integers(len(lives), size=5).tolist():
                life = lives[place]
                frontier = frontiers.at(GLOBAL if scope == "global" else life.load_bucket)
                term = pareto_term(life.outcome, frontier, distance)
                assert rewards[place] == pytest.approx(life.reward.total - life.reward.pareto + term)
    assert max(len(frontier.points) for frontier in frontiers.by_bucket.values()) > 16


def test_without_the_pareto_term_rewards_are_those_of_the_other_terms() -> None:
    rng = np.random.default_rng(4)
    lives, standings = [lived(number, rng) for number in range(2_000)], Standings()
    for life in lives:
        standings.append([life])
        if len(standings.rewards(Frontiers({}), Tuning(pareto=False))[0]) == 1_000:
            standings.rewards(Frontiers({}).add(0, (0.1, 0.1)), Tuning())
    rewards, _ = standings.rewards(Frontiers({}), Tuning(pareto=False))
    assert rewards == pytest.approx([life.reward.total - life.reward.pareto for life in lives])
    assert standings.rewards(Frontiers({}), Tuning())[0] == pytest.approx(
        [rest + pareto_term(life.outcome, Frontier()) for rest, life in zip(rewards, lives, strict=True)]
    )


TWENTIETHS = st.integers(0, 50).map(lambda number: number / 20)
ROUND = st.tuples(st.integers(0, 1), TWENTIETHS, TWENTIETHS)
"""Load bucket, ℓ and c; some of the ℓ lie beyond 2, where distances do not tell them apart, and some rounds stand on no frontier."""
EVENTS = st.one_of(
    st.tuples(st.just("lived"), ROUND),
    st.tuples(st.just("unseen"), ROUND),
    st.tuples(st.just("forgotten"), st.integers(0, 1_000)),
    st.tuples(st.just("rebuilt"), st.none()),
)


@given(st.lists(EVENTS, max_size=60), st.sampled_from(["bucket", "global"]), st.sampled_from(["igd+", "euclidean"]))
def test_rewards_kept_up_as_frontiers_move_are_those_judged_from_scratch(
    events: list[tuple[str, Any]], scope: FrontierScope, distance: Distance
) -> None:
    """Frontiers gain points that dominate others and points that do not, know of rounds that memory does not, and lose points."""
    tuning = Tuning(frontier_scope=scope, distance=distance)
    standings, lives, frontiers = Standings(), list[Experience](), Frontiers({})
    for number, (event, value) in enumerate(events):
        if event == "lived":
            bucket, latency, cost = value
            lives.append(experience(number, outcome=Outcome(latency, cost), load_bucket=bucket))
            standings.append(lives[-1:])
            frontiers = frontiers.add(bucket, (latency, cost))
        elif event == "unseen":
            frontiers = frontiers.add(value[0], value[1:])
        elif event == "rebuilt":
            frontiers = Frontiers({})
            for life in lives[::2]:
                frontiers = frontiers.add(life.load_bucket, point_of(life.outcome))
        elif lives:
            place = value % len(lives)
            standings.remove(place)
            lives[place] = lives[-1]
            lives.pop()
        afresh = Standings()
        afresh.append(lives)
        rewards = standings.rewards(frontiers, tuning)[0]
        assert rewards == pytest.approx(afresh.rewards(frontiers, tuning)[0], abs=1e-12)
        by_definition = [
            life.reward.total
            - life.reward.pareto
            + pareto_term(life.outcome, frontiers.at(GLOBAL if scope == "global" else life.load_bucket), distance)
            for life in lives
        ]
        assert rewards == pytest.approx(by_definition, abs=1e-12)


@pytest.mark.parametrize("distance", ["igd+", "euclidean"])
@pytest.mark.parametrize("dominating", [True, False])
def test_a_frontier_that_gains_a_point_has_those_judged_again_that_it_changes_and_not_its_whole_bucket(
    distance: Distance, dominating: bool
) -> None:
    rng = np.random.default_rng(2)
    tuning, standings, frontiers = Tuning(distance=distance), Standings(), Frontiers({})
    for place in range(50):
        frontiers = frontiers.add(0, (0.5 + place / 50, 1.5 - place / 50))
    standings.append(
        [
            experience(number, outcome=Outcome(*rng.uniform(0.8, 2.0, 2).tolist()), load_bucket=0)
            for number in range(1_000)
        ]
    )
    standings.rewards(frontiers, tuning)
    more = frontiers.add(0, (0.999, 0.999) if dominating else (1.01, 0.995))
    assert len(more.at(0).points) == 50 + (not dominating)
    assert 0 < standings.rewards(more, tuning)[1] < 200


@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_a_median_is_the_same_wherever_it_was_before(values: list[float], between: tuple[float, float]) -> None:
    found, around = median(np.array(values), between)
    assert found == np.median(values)
    assert median(np.array(values), around)[0] == found


def test_only_what_moved_is_judged_again() -> None:
    rng = np.random.default_rng(1)
    standings, frontiers = Standings(), Frontiers({}).add(0, (1.0, 1.0)).add(1, (1.0, 1.0))
    standings.append([experience(number, load_bucket=number % 2) for number in range(100)])
    assert standings.rewards(frontiers, Tuning())[1] == 100
    assert standings.rewards(frontiers, Tuning())[1] == 0
    standings.append([lived(200, rng)])
    assert standings.rewards(frontiers, Tuning())[1] == 1
    assert standings.rewards(frontiers.add(0, (0.5, 0.5)), Tuning())[1] in (50, 51)
