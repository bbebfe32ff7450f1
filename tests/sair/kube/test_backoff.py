from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sair.kube.backoff import Backoff

draws = st.floats(0, 1, exclude_max=True)


@given(failures=st.integers(1, 10_000), draw=draws)
def test_a_wait_is_between_half_the_step_and_the_step_and_never_past_the_cap(failures: int, draw: float) -> None:
    step_s = min(30.0, 0.2 * 2.0 ** min(failures - 1, 60))
    assert step_s / 2 <= Backoff().delay_s(failures, draw) <= step_s


@given(failures=st.integers(1, 1000), draw=draws)
def test_another_failure_never_shortens_the_wait(failures: int, draw: float) -> None:
    assert Backoff().delay_s(failures + 1, draw) >= Backoff().delay_s(failures, draw)


def test_without_failures_there_is_no_wait() -> None:
    assert Backoff().delay_s(0, 0.5) == 0.0
