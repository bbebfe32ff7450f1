import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Outcome
from controller.frontier import (
    GLOBAL,
    REFERENCE,
    Frontier,
    Frontiers,
    Holders,
    Point,
    dominates,
    load_bucket,
    point_of,
)

points = st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 1.5))
many = st.lists(points, max_size=30)


def area_by_grid(frontier: Frontier) -> float:
    """Hypervolume by counting: an independent second way to the same number."""
    scaled = [(min(latency, 2.0) / 2.0, cost) for latency, cost in frontier.points]
    edges_x = sorted({0.0, REFERENCE[0], *(x for x, _ in scaled if x < REFERENCE[0])})
    edges_y = sorted({0.0, REFERENCE[1], *(y for _, y in scaled if y < REFERENCE[1])})
    total = 0.0
    for left, right in itertools.pairwise(edges_x):
        for low, high in itertools.pairwise(edges_y):
            if any(x <= left and y <= low for x, y in scaled):
                total += (right - left) * (high - low)
    return total


def test_a_point_dominates_another_that_is_no_better_anywhere_and_worse_somewhere() -> None:
    assert dominates((0.5, 0.2), (0.5, 0.3))
    assert not dominates((0.5, 0.2), (0.5, 0.2))
    assert not dominates((0.4, 0.3), (0.5, 0.2))


@given(many)
def test_a_frontier_holds_exactly_the_points_that_nobody_dominates(given_points: list[Point]) -> None:
    expected = {p for p in given_points if not any(dominates(q, p) for q in given_points)}
    assert set(Frontier.of(given_points).points) == expected


@given(many, st.randoms(use_true_random=False))
def test_the_order_in_which_points_are_added_does_not_matter(given_points: list[Point], random: object) -> None:
    shuffled = list(given_points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    frontier = Frontier()
    for point in shuffled:
        frontier = frontier.add(point)
    assert frontier == Frontier.of(given_points)


@given(many, points)
def test_accepting_means_not_being_dominated(given_points: list[Point], point: Point) -> None:
    frontier = Frontier.of(given_points)
    assert frontier.accepts(point) == (not any(dominates(each, point) for each in frontier.points))


@given(many, points)
def test_a_contribution_is_the_hypervolume_with_the_point_less_that_without(
    given_points: list[Point], point: Point
) -> None:
    frontier = Frontier.of(given_points)
    others = Frontier(tuple(each for each in frontier.points if each != point))
    expected = area_by_grid(others.add(point)) - area_by_grid(others) if frontier.accepts(point) else 0.0
    assert frontier.contribution(point) == pytest.approx(expected, abs=1e-9)


def test_a_lone_point_contributes_its_whole_rectangle_up_to_the_reference() -> None:
    assert Frontier().contribution((1.0, 0.1)) == pytest.approx((1.1 - 0.5) * (1.1 - 0.1))


@given(many, points, points)
def test_the_default_distance_never_misorders_two_dominated_points(
    given_points: list[Point], a: Point, b: Point
) -> None:
    frontier = Frontier.of(given_points)
    better, worse = (min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]), max(a[1], b[1]))
    assert frontier.distance(better) <= frontier.distance(worse) + 1e-12


def test_the_euclidean_distance_misorders_two_points_that_the_default_does_not() -> None:
    frontier = Frontier.of([(0.0, 0.5), (2.0, 0.4)])
    better, worse = (1.0, 0.5), (2.0, 0.5)
    assert dominates(better, worse)
    assert frontier.distance(better, "euclidean") == pytest.approx(0.5)
    assert frontier.distance(worse, "euclidean") == pytest.approx(0.1)
    assert frontier.distance(better) == frontier.distance(worse) == pytest.approx(0.1)


@given(many, points)
def test_no_point_of_the_frontier_is_at_a_distance_from_it(given_points: list[Point], point: Point) -> None:
    frontier = Frontier.of([*given_points, point])
    assert all(frontier.distance(each, kind) == 0.0 for each in frontier.points for kind in ("igd+", "euclidean"))


@pytest.mark.parametrize("point", [(math.nan, 0.1), (0.1, math.inf), (-math.inf, 0.0)])
def test_what_is_no_number_never_enters_a_frontier(point: Point) -> None:
    assert Frontier().add(point).points == ()
    assert Frontier.of([point]).points == ()


@pytest.mark.parametrize("outcome", [Outcome(0.0, 0.1), Outcome(0.5, 0.0), Outcome(1e-9, 0.1), Outcome(0.0, 0.0)])
def test_a_round_that_served_nobody_or_cost_nothing_stands_on_no_frontier(outcome: Outcome) -> None:
    served = Frontiers({}).add(0, (0.5, 0.5)).add(0, (0.9, 0.2))
    assert served.add(0, point_of(outcome)) is served
    assert list(Holders().add("1", 0, outcome)) == []
    assert Frontiers({}).add(0, point_of(outcome)).at(GLOBAL).points == ()


def test_each_load_has_a_frontier_of_its_own_and_all_share_one() -> None:
    frontiers = Frontiers({}).add(3, (0.5, 0.5)).add(7, (0.9, 0.9))
    assert frontiers.at(7).points == ((0.9, 0.9),)
    assert frontiers.at(GLOBAL).points == ((0.5, 0.5),)
    assert frontiers.at(5).points == ()


@given(st.floats(0.0, 1e6))
def test_a_load_bucket_grows_with_the_rate_and_spans_a_factor_of_one_and_a_half(rate: float) -> None:
    assert load_bucket(rate) <= load_bucket(rate * 1.4) <= load_bucket(rate) + 1


@pytest.mark.parametrize("rate", [math.nan, math.inf, -5.0, 0.0])
def test_a_rate_that_is_none_falls_into_the_lowest_bucket(rate: float) -> None:
    assert load_bucket(rate) == 0


coarse = st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan, math.inf])
"""Few values, so that points are often equal or dominate each other."""


@given(st.lists(st.tuples(st.integers(0, 2), coarse, coarse), max_size=40))
def test_who_stands_on_a_frontier_is_the_same_one_by_one_as_over_the_whole_memory(
    rounds: list[tuple[int, float, float]],
) -> None:
    holders, frontiers = Holders(), Frontiers({})
    for number, (bucket, latency, cost) in enumerate(rounds):
        holders = holders.add(str(number), bucket, Outcome(latency, cost))
        frontiers = frontiers.add(bucket, (latency, cost))
    newest = {
        (bucket, (latency, cost)): str(number)
        for number, (bucket, latency, cost) in enumerate(rounds)
        if (latency, cost) in frontiers.at(bucket).points
    }
    assert {(bucket, point_of(outcome)): name for name, bucket, outcome in holders} == newest
    assert len(list(holders)) == len(newest)


def test_a_round_looks_at_its_own_frontier_and_not_at_all_of_memory() -> None:
    compared = 0

    class Counted(float):
        def __le__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return super().__le__(other)

    holders = Holders()
    for number in range(2000):
        holders = holders.add(str(number), 0, Outcome(Counted(number), Counted(number)))
    assert len(list(holders)) == 1
    assert compared < 4 * 2000
