from hypothesis import given
from hypothesis import strategies as st

from controller.memory.eviction import NEWEST_KEPT, victims
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


def test_nothing_goes_while_there_is_room() -> None:
    assert victims([experience(1)], (), 1) == ()
