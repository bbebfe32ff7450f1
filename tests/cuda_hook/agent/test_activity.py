from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuda_hook.agent.activity import DEFAULT_SAMPLE_NS, FOREIGN, CardActivity, Seen, busy_tenants
from cuda_hook.agent.nvml import UtilizationSample

_S = 1_000_000_000


def _sample(pid: int, busy: float) -> UtilizationSample:
    return UtilizationSample(pid, 0, busy)


def test_who_submitted_or_still_runs_is_busy() -> None:
    before = {"idle": Seen(5, 0), "launching": Seen(5, 0), "gone": Seen(1, 0)}
    now = {"idle": Seen(5, 0), "launching": Seen(6, 0), "long kernel": Seen(3, 50), "new": Seen(9, 0)}
    assert busy_tenants(before, now) == {"launching", "long kernel"}


def test_peers_are_the_others_and_are_remembered() -> None:
    card = CardActivity()
    card.mark_active(["a"], 1 * _S)
    card.mark_active(["a", "b"], 2 * _S)
    assert card.peers_of("a", 2 * _S, _S // 10) == (1, 2 * _S)
    assert card.peers_of("c", 2 * _S, _S // 10) == (2, 2 * _S)
    assert card.peers_of("a", 5 * _S, _S // 10) == (0, 2 * _S)
    assert CardActivity().peers_of("a", 5 * _S, _S) == (0, 0)


def test_busy_time_adds_up_over_samples_and_processes() -> None:
    card, period = CardActivity(), DEFAULT_SAMPLE_NS
    for k in range(1, 61):
        end = 100 * _S + k * period
        samples = [("a", end, _sample(1, 0.20)), ("a", end, _sample(2, 0.10)), ("b", end, _sample(3, 0.60))]
        card.add_samples(samples, ["a", "b"], end + period // 2)
    account = card.accounts["a"]
    assert account.busy_ns / (account.until_ns - account.from_ns) == pytest.approx(0.3, abs=1e-6)
    account = card.accounts["b"]
    assert account.busy_ns / (account.until_ns - account.from_ns) == pytest.approx(0.6, abs=1e-6)


def test_an_idle_container_is_accounted_as_idle_although_nvml_is_silent_about_it() -> None:
    card = CardActivity()
    card.add_samples([("a", 100 * _S, _sample(1, 1.0))], ["a"], 100 * _S)
    card.add_samples([], ["a"], 110 * _S)
    account = card.accounts["a"]
    assert account.until_ns == 110 * _S - 3 * card.sample_ns
    assert account.busy_ns == DEFAULT_SAMPLE_NS


def test_the_sampling_period_of_the_card_is_learned() -> None:
    card, period = CardActivity(), 100_000_000
    for k in range(1, 31):
        card.add_samples([("a", 50 * _S + k * period, _sample(1, 0.5))], ["a"], 50 * _S + k * period)
    assert card.sample_ns == period


def test_dead_tenants_are_forgotten_and_strangers_are_not() -> None:
    card = CardActivity()
    card.mark_active(["a", "b", FOREIGN], _S)
    card.add_samples([("a", _S, _sample(1, 1.0)), ("b", _S, _sample(2, 1.0))], ["a", "b"], _S)
    card.forget(["a"], [1])
    assert set(card.accounts) == {"a"}
    assert set(card.active_at) == {"a", FOREIGN}


@given(
    busy=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    gaps=st.lists(st.integers(1, 3), min_size=40, max_size=40),
)
def test_time_never_runs_backwards_and_nobody_is_busier_than_time(busy: list[float], gaps: list[int]) -> None:
    card, end, before = CardActivity(), 100 * _S, 0
    for value, gap in zip(busy, gaps, strict=False):
        end += gap * DEFAULT_SAMPLE_NS
        card.add_samples([("a", end, _sample(1, value))] if value else [], ["a"], end)
        account = card.accounts["a"]
        assert account.until_ns >= before
        assert account.busy_ns <= account.until_ns - account.from_ns + DEFAULT_SAMPLE_NS
        before = account.until_ns
