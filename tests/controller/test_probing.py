import numpy as np
import pytest

from controller.probing import epsilon, forced_probe
from controller.tuning import Tuning


def test_epsilon_has_its_golden_values() -> None:
    assert epsilon(0, Tuning()) == 0.15
    assert epsilon(10, Tuning()) == pytest.approx(0.15 * 0.95**10)
    assert epsilon(1000, Tuning()) == 0.05


def test_epsilon_is_nothing_with_probing_off() -> None:
    assert epsilon(0, Tuning(probing=False)) == 0.0


def test_only_safe_candidates_are_probed_and_all_of_them() -> None:
    rng = np.random.default_rng(1)
    always = Tuning(epsilon=1.0, epsilon_floor=1.0)
    assert {forced_probe((2, 5, 7), 0, always, rng) for _ in range(200)} == {2, 5, 7}
    assert forced_probe((), 0, always, rng) is None


def test_probes_come_as_often_as_epsilon_says() -> None:
    rng = np.random.default_rng(2)
    hits = sum(forced_probe((1,), 0, Tuning(), rng) is not None for _ in range(4000))
    assert hits / 4000 == pytest.approx(0.15, abs=0.02)


def test_the_same_seed_probes_alike_whatever_is_safe() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for round_number in range(50):
        forced_probe((1, 2), round_number, Tuning(), first)
        forced_probe((), round_number, Tuning(), second)
    assert first.random() == second.random()
