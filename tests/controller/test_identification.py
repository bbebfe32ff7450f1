import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.identification import PRIOR_SCV, StageFit, fit_stage, fitted_curve, given_fit, service_time_error
from controller.model import ServiceCurve
from controller.state import Allocation, BatchTimes, StageObservation
from sair.quantities import GpuRate, Mebibytes, Millicores
from tests.controller.situations import stage_observation

TRUTH = ServiceCurve(0.001, 0.002, 0.004, 0.4, setup_s=0.010, setup_gpu_s=0.004)


def at(
    milli: int, cpu: int = 1000, batch: float | None = None, truth: ServiceCurve = TRUTH, **changes: object
) -> StageObservation:
    """The GPU stage measured at a share, a CPU and a batch."""
    allocation = Allocation(2, Millicores(cpu), Mebibytes(512), GpuRate(milli))
    service = float(truth.service_s(cpu / 1000, milli / 1000, batch or 1.0))
    seen = stage_observation("infer", allocation, service_s=service, service_scv=truth.scv, mean_batch=batch)
    return replace(seen, **changes)  # type: ignore[arg-type]


def learn(windows: list[StageObservation], fit: StageFit | None = None, every_s: float = 30.0) -> StageFit:
    for number, window in enumerate(windows):
        fit = fit_stage(fit, window, window_s=15.0, now=every_s * number, half_life_s=900.0)
    assert fit is not None
    return fit


def test_after_one_window_the_fit_gives_back_what_was_measured() -> None:
    fit = learn([at(500)])
    assert float(fitted_curve(fit).service_s(1.0, 0.5)) == pytest.approx(float(TRUTH.service_s(1.0, 0.5)), rel=1e-6)


def test_elsewhere_it_is_unsure_until_it_has_been_there() -> None:
    fit = learn([at(500)] * 5)
    assert float(service_time_error(fit, 1.0, 0.2)) > 3 * float(service_time_error(fit, 1.0, 0.5))
    wiser = learn([at(200)] * 5, fit)
    assert float(service_time_error(wiser, 1.0, 0.2)) < float(service_time_error(fit, 1.0, 0.2)) / 3


def test_a_share_that_scales_less_than_believed_is_found_from_three_shares() -> None:
    fit = learn([at(milli) for milli in (500, 400, 300, 400, 500, 600)])
    for share in (0.25, 0.4, 0.7):
        assert float(fitted_curve(fit).service_s(1.0, share)) == pytest.approx(
            float(TRUTH.service_s(1.0, share)), rel=0.05
        )


def test_what_a_batch_saves_is_found_from_batches_of_several_sizes() -> None:
    fit = learn([at(500, batch=batch) for batch in (1.0, 2.0, 4.0, 6.0, 3.0, 1.5)])
    curve = fitted_curve(fit)
    for batch in (1.0, 5.0, 8.0):
        assert float(curve.service_s(1.0, 0.5, batch)) == pytest.approx(
            float(TRUTH.service_s(1.0, 0.5, batch)), rel=0.06
        )


def _served(rng: np.random.Generator, arriving: float, windows: int, *, by_size: bool) -> list[StageObservation]:
    """Windows of a stage whose requests vary and whose next batch is what gathered during the one before."""
    truth, found, gathered = replace(TRUTH, scv=0.6, gpu_s=0.002), [], 1
    once, each = float(truth.per_batch_s(0.5)), float(truth.per_item_s(1.0, 0.5))
    for _ in range(windows):
        sizes, times = [], []
        for _ in range(120):
            mean = once + each * gathered
            sizes.append(gathered)
            times.append(mean * float(rng.gamma(gathered / truth.scv, truth.scv / gathered)))
            gathered = min(8, max(1, int(rng.poisson(arriving * times[-1]))))
        told = tuple(
            BatchTimes(
                size, sizes.count(size), float(np.mean([t for s, t in zip(sizes, times, strict=True) if s == size]))
            )
            for size in sorted(set(sizes))
        )
        mean_batch = float(np.mean(sizes))
        seen = at(
            500, batch=mean_batch, truth=truth, service_s=sum(times) / sum(sizes), departures_per_s=sum(sizes) / 15.0
        )
        found.append(replace(seen, batches=told if by_size else ()))
    return found


def test_what_a_batch_saves_is_found_at_a_steady_load_where_times_are_told_by_batch_size() -> None:
    truth = replace(TRUTH, gpu_s=0.002)
    right = float(truth.service_s(1.0, 0.5, 8.0))
    errors = {
        by_size: [
            abs(float(fitted_curve(learn(windows)).service_s(1.0, 0.5, 8.0)) / right - 1.0)
            for windows in (_served(np.random.default_rng(seed), 90.0, 40, by_size=by_size) for seed in range(6))
        ]
        for by_size in (True, False)
    }
    assert np.mean(errors[True]) < 0.08
    # Between windows alone, long requests and large batches go together.
    assert np.mean(errors[False]) > 2 * np.mean(errors[True])


def test_the_variance_of_a_request_is_found_from_that_of_batches_of_each_size() -> None:
    told = tuple(BatchTimes(size, 50.0, 0.02 * size, 0.8 / size) for size in (1, 2, 4, 8))
    fit = learn([replace(at(500, batch=3.75), batches=told, service_scv=2.0)] * 20)
    assert fit.scv == pytest.approx(0.8, rel=0.05)


def test_information_that_is_none_does_not_end_the_learning() -> None:
    fit = learn([at(500)] * 3)
    broken = replace(fit, information=tuple(-5.0 if place == 0 else each for place, each in enumerate(fit.information)))
    wiser = fit_stage(broken, at(500), window_s=15.0, now=200.0, half_life_s=900.0)
    assert wiser is not None
    assert wiser.observations == fit.observations + 1


def test_any_number_of_batch_sizes_is_taken_in() -> None:
    told = tuple(BatchTimes(size, 1.0, 0.01 + 0.001 * size) for size in range(1, 2000))
    curve = fitted_curve(learn([replace(at(500, batch=1000.0), batches=told)] * 3))
    assert float(curve.service_s(1.0, 0.5, 1000.0)) * 1000 == pytest.approx(1.01, rel=0.05)


def test_the_split_survives_a_long_spell_at_one_share() -> None:
    before = learn([at(milli) for milli in (500, 400, 300, 400, 500, 600)])
    after = learn([at(500)] * 200, before)
    assert float(fitted_curve(after).service_s(1.0, 0.3)) == pytest.approx(float(TRUTH.service_s(1.0, 0.3)), rel=0.08)


def test_a_stage_that_becomes_slower_is_followed_within_a_few_half_lives() -> None:
    slower = ServiceCurve(0.002, 0.004, 0.008, 0.4, setup_s=0.020, setup_gpu_s=0.008)
    fit = learn([at(500)] * 40)
    fit = learn([at(500, truth=slower)] * 90, replace(fit, updated_s=0.0))
    assert float(fitted_curve(fit).service_s(1.0, 0.5)) == pytest.approx(float(slower.service_s(1.0, 0.5)), rel=0.05)


def test_the_variance_goes_from_a_cautious_prior_to_what_is_measured() -> None:
    first = learn([at(500, departures_per_s=0.5)])
    many = learn([at(500)] * 10)
    assert PRIOR_SCV > first.scv > many.scv
    assert many.scv == pytest.approx(TRUTH.scv, rel=0.05)


def test_switched_off_the_prior_stays_as_the_first_window_scaled_it() -> None:
    first = learn([at(500)])
    kept = fit_stage(first, at(200), window_s=15.0, now=60.0, half_life_s=900.0, learn=False)
    assert kept == first


def test_a_belief_that_somebody_gave_is_used_until_measured_otherwise() -> None:
    fit = given_fit(TRUTH, uses_gpu=True)
    assert float(fitted_curve(fit).service_s(2.0, 0.3)) == pytest.approx(float(TRUTH.service_s(2.0, 0.3)))
    wrong = given_fit(ServiceCurve(0.0, 0.0, 0.050), uses_gpu=True)
    corrected = learn([at(500), at(400), at(300)] * 5, wrong)
    assert float(fitted_curve(corrected).service_s(1.0, 0.4)) == pytest.approx(
        float(TRUTH.service_s(1.0, 0.4)), rel=0.1
    )


def test_full_batches_are_believed_larger_than_mean_ones_until_a_saturated_stage_shows_them() -> None:
    fit = learn([at(500, batch=5.0)])
    assert fit.batch_max == 10.0
    assert learn([at(500, batch=1.2)]).batch_max == 8.0
    assert learn([at(500, batch=1.0)]).batch_max == 1.0
    saturated = at(500, batch=4.0, queue_depth=100.0, queue_slope=1.0)
    assert learn([saturated], fit).batch_max == 4.0


def sized(*services: float, mean_s: float = 2.0) -> StageObservation:
    """Two replicas served so many batches of one, two, three … tasks in a window of 15 s."""
    batches = tuple(BatchTimes(size, count, mean_s) for size, count in enumerate(services, 1))
    mean = sum(each.size * each.services for each in batches) / sum(services)
    return at(500, batch=mean, queue_depth=100.0, queue_slope=1.0, batches=batches)


def test_the_largest_batch_is_known_from_replicas_that_never_waited_and_mostly_filled_it() -> None:
    fit = learn([at(500, batch=5.0)])
    assert fit.batch_max == 10.0
    full = learn([sized(1, 0, 1, 1, 0, 12)], fit)
    assert (full.batch_max, full.batch_known) == (6.0, True)
    assert learn([sized(1, 1, 1, 1, 1, 1, 1)], full).batch_max == 7.0  # there are larger ones after all
    assert learn([sized(3, 4, mean_s=0.5)], full).batch_max == 6.0
    assert learn([sized(15)], fit).batch_max == 1.0


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        pytest.param(sized(2, 2, 4, 4, 2, 1), "a queue at both ends of the window may be chance", id="few are full"),
        pytest.param(sized(1, 0, 1, 1, 0, 12, mean_s=1.0), "crops of a frame always come together", id="it waited"),
        pytest.param(sized(0, 4, mean_s=7.0), "too few", id="four services"),
        pytest.param(sized(15, mean_s=1.0), "there may just be nothing to batch", id="one by one"),
    ],
)
def test_otherwise_the_usual_largest_batch_is_believed_in_or_the_largest_seen(seen: StageObservation, why: str) -> None:
    fit = learn([at(500, batch=1.1)])
    assert (learn([seen], fit).batch_max, learn([seen], fit).batch_known) == (8.0, False), why
    assert learn([sized(0, 0, 0, 0, 0, 0, 0, 0, 1, 9, 3, mean_s=0.1)], fit).batch_max == 11.0


@pytest.mark.parametrize("service", [None, math.nan, math.inf, 0.0, -1.0, 1e18])
def test_a_service_time_that_is_none_teaches_nothing(service: float | None) -> None:
    fit = learn([at(500)])
    assert fit_stage(fit, at(300, service_s=service), window_s=15.0, now=60.0, half_life_s=900.0) == fit
    assert fit_stage(None, at(300, service_s=service), window_s=15.0, now=60.0, half_life_s=900.0) is None


@given(
    st.lists(st.tuples(st.integers(50, 1000), st.integers(500, 4000), st.floats(1e-4, 2.0)), min_size=1, max_size=15)
)
def test_whatever_is_measured_predicted_times_stay_positive_numbers(windows: list[tuple[int, int, float]]) -> None:
    fit = learn([at(milli, cpu, service_s=service) for milli, cpu, service in windows])
    grid = fitted_curve(fit).service_s(np.array([0.5, 1.0, 4.0]), np.array([0.05, 0.5, 1.0]))
    assert np.isfinite(grid).all()
    assert (grid > 0).all()
    assert all(value >= -1e-12 for value in fit.theta)
    assert fit.scv >= 0
