import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Experience, Outcome
from controller.frontier import Frontier, Frontiers, point_of
from controller.reward import pareto_term
from controller.standing import Standings, pareto_terms
from controller.tuning import Tuning
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
    outcome = Outcome(float(rng.uniform(0.1, 2.5)), float(rng.uniform(0.0, 1.2)))
    return experience(number, outcome=outcome, load_bucket=int(rng.integers(0, 4)))


@pytest.mark.parametrize("scope", ["bucket", "global"])
def test_rewards_are_those_of_todays_frontiers_whatever_came_and_went(scope: str) -> None:
    """Rows come one by one and many at once, go in any order, and frontiers move in between."""
    rng = np.random.default_rng(4)
    tuning = Tuning(frontier_scope="global" if scope == "global" else "bucket")
    standings, lives, frontiers = Standings(), list[Experience](), Frontiers({})
    for number in range(400):
        many = [lived(number * 10_000 + extra, rng) for extra in range(1_500 if number == 200 else 1)]
        standings.append(many)
        lives += many
        if number % 3:
            for each in many[:2]:
                frontiers = frontiers.add(each.load_bucket, point_of(each.outcome))
        if number % 4 == 3:
            place = int(rng.integers(len(lives)))
            standings.remove(place)
            last = lives.pop()
            if place < len(lives):
                lives[place] = last
        if number % 7 == 0:
            rewards, _ = standings.rewards(frontiers, tuning)
            expected = [
                life.reward.total
                - life.reward.pareto
                + pareto_term(life.outcome, frontiers.at(-1_000_000 if scope == "global" else life.load_bucket))
                for life in lives
            ]
            assert rewards == pytest.approx(expected)


def test_only_what_moved_is_judged_again() -> None:
    rng = np.random.default_rng(1)
    standings, frontiers = Standings(), Frontiers({}).add(0, (1.0, 1.0)).add(1, (1.0, 1.0))
    standings.append([experience(number, load_bucket=number % 2) for number in range(100)])
    assert standings.rewards(frontiers, Tuning())[1] == 100
    assert standings.rewards(frontiers, Tuning())[1] == 0
    standings.append([lived(200, rng)])
    assert standings.rewards(frontiers, Tuning())[1] == 1
    assert standings.rewards(frontiers.add(0, (0.5, 0.5)), Tuning())[1] in (50, 51)
