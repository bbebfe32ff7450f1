from random import Random

from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Outcome
from controller.memory.eviction import NEWEST_KEPT, Queue, holders, victims
from tests.builders import experience


@given(st.lists(st.floats(0, 10), min_size=0, max_size=150), st.integers(1, 200), st.sets(st.integers(0, 149)))
def test_a_frontier_point_is_never_evicted_and_neither_are_the_newest(
    surprisals: list[float], capacity: int, frontier: set[int]
) -> None:
    experiences = [experience(number, surprisal=value) for number, value in enumerate(surprisals)]
    kept = {experiences[index].id for index in frontier if index < len(experiences)}
    gone = victims(experiences, kept, capacity)
    assert not kept & set(gone)
    assert not {e.id for e in experiences[-NEWEST_KEPT:]} & set(gone)
    assert len(gone) <= max(0, len(experiences) - capacity)


def test_those_that_taught_least_go_first() -> None:
    experiences = [experience(number, surprisal=float(number % 7)) for number in range(100)]
    gone = victims(experiences, (), 95)
    assert [int(name) for name in gone] == [0, 7, 14, 21, 28]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1)), max_size=60), st.randoms())
def test_of_those_with_one_outcome_the_newest_stands_on_the_frontier(
    rounds: list[tuple[int, int, int]], shuffled: Random
) -> None:
    everything = [
        experience(number, outcome=Outcome(latency, cost), load_bucket=bucket)
        for number, (latency, cost, bucket) in enumerate(rounds)
    ]
    newest = {place: number for number, place in enumerate(rounds)}
    best = {
        experience(number).id
        for (latency, cost, bucket), number in newest.items()
        if not any(
            other[2] == bucket and other[0] <= latency and other[1] <= cost and other[:2] != (latency, cost)
            for other in rounds
        )
    }
    shuffled.shuffle(everything)
    assert set(holders(everything)) == best


def test_nothing_goes_while_there_is_room() -> None:
    assert victims([experience(1)], (), 1) == ()


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=150),
    st.integers(1, 120),
    st.integers(0, 149),
    st.sets(st.integers(0, 149)),
)
def test_one_by_one_the_same_go_as_if_all_were_looked_at_each_time(
    surprisals: list[float], capacity: int, known: int, frontier: set[int]
) -> None:
    everything = [experience(number, surprisal=value) for number, value in enumerate(surprisals)]
    kept = {everything[index].id for index in frontier if index < len(everything)}
    queue, held = Queue(everything[:known]), {each.id: each for each in everything[:known]}
    for fresh in everything[known:]:
        held[fresh.id] = fresh
        queue.add(fresh)
        expected = victims(tuple(held.values()), kept, capacity)
        gone = queue.excess(held, kept, capacity)
        assert set(gone) == set(expected)
        for name in gone:
            del held[name]


def test_one_that_is_written_anew_with_another_surprisal_is_judged_by_that() -> None:
    held = {each.id: each for each in (experience(number, surprisal=1.0 + number) for number in range(60))}
    queue = Queue(held.values())
    anew = experience(0, surprisal=99.0)
    held[anew.id] = anew
    queue.add(anew)
    assert queue.excess(held, (), 59) == (experience(1).id,)
