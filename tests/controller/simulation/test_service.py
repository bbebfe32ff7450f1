"""The service law and the draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.simulation.service import ColdStart, ServiceLaw, demands, stream

LAW = ServiceLaw(cpu_s=0.010, serial_fraction=0.2, batch_s=0.006, item_s=0.005, max_batch=8)


def test_the_law_at_known_points() -> None:
    assert LAW.time_s(1, 1.0, 1.0) == pytest.approx(0.010 + 0.011)
    assert LAW.time_s(4, 2.0, 0.5) == pytest.approx(4 * 0.010 * (0.2 + 0.4) + (0.006 + 0.020) / 0.5)
    assert LAW.capacity_per_s(1.0, 1.0) == pytest.approx(8 / (0.08 + 0.046))
    assert LAW.core_seconds(1, 1.0) == pytest.approx(0.010 + 0.011)


def test_a_part_that_does_not_scale_stays_what_it_is_at_the_reference_share() -> None:
    stiff = ServiceLaw(item_s=0.1, scaling_fraction=0.45, reference_share=0.5)
    plain = ServiceLaw(item_s=0.1)
    assert stiff.time_s(1, 1.0, 0.5) == pytest.approx(plain.time_s(1, 1.0, 0.5))
    assert stiff.time_s(1, 1.0, 1.0) == pytest.approx(0.1 * (0.45 + 0.55 / 0.5))
    assert stiff.time_s(1, 1.0, 0.25) < plain.time_s(1, 1.0, 0.25)


@given(st.integers(1, 8), st.floats(0.25, 8), st.floats(0.05, 1), st.floats(1.01, 3))
def test_more_of_anything_is_never_slower(batch: int, cores: float, share: float, factor: float) -> None:
    slower = LAW.time_s(batch, cores, share)
    assert LAW.time_s(batch, cores * factor, share) < slower
    assert LAW.time_s(batch, cores, min(1.0, share * factor)) <= slower


@pytest.mark.parametrize("spread", ["gamma", "lognormal"])
@pytest.mark.parametrize("scv", [0.1, 0.5, 2.0])
def test_demands_have_mean_one_and_the_wanted_variation(spread: str, scv: float) -> None:
    law = ServiceLaw(cpu_s=1.0, scv=scv, spread="gamma" if spread == "gamma" else "lognormal")
    drawn = demands(law, stream(1, "test"), 400_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.02)
    assert drawn.var() == pytest.approx(scv, rel=0.1)
    assert drawn.min() > 0


def test_without_variation_every_demand_is_one() -> None:
    assert set(demands(ServiceLaw(cpu_s=1.0), stream(1, "test"), 10)) == {1.0}


def test_each_purpose_has_a_stream_of_its_own() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    assert len({stream(seed, *names).random() for seed in (1, 2) for names in (("a",), ("b",), ("a", "b"))}) == 6


def test_cold_starts_are_lognormal_within_their_range() -> None:
    drawn = ColdStart(60.0, 0.35, shortest_s=30.0, longest_s=440.0).draw(stream(1, "cold"), 20_000)
    assert np.median(drawn) == pytest.approx(60.0, rel=0.02)
    assert drawn.min() >= 30
    assert drawn.max() <= 440
