import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.bottleneck import bottleneck, utilisations

loads = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.floats(0.1, 100.0), st.integers(1, 20), st.floats(0.001, 1.0)),
    min_size=1,
)


def test_utilisation_is_arrivals_times_service_time_over_replicas() -> None:
    assert utilisations({"a": (30.0, 4, 0.1)}) == {"a": pytest.approx(0.75)}


@given(loads)
def test_the_bottleneck_is_the_busiest_stage(given_loads: dict[str, tuple[float, int, float]]) -> None:
    hot = bottleneck(given_loads)
    assert hot is not None
    busy = utilisations(given_loads)
    assert busy[hot] == max(busy.values())


def test_a_stage_without_replicas_is_the_bottleneck() -> None:
    assert bottleneck({"a": (30.0, 1, 0.1), "b": (0.1, 0, 0.001)}) == "b"


def test_nobody_is_where_nothing_is_measured_or_all_idle() -> None:
    assert bottleneck({}) is None
    assert bottleneck({"a": (1.0, 1, 0.1)}, floor=0.5) is None
