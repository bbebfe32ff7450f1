"""Online fit of a stage's service-time curve and variance to what is observed; forgetting, but only where there is news."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from controller.batches import request_scv
from controller.granting import cores_of
from controller.model import Array, ServiceCurve
from controller.state import BatchTimes, StageObservation

__all__ = ["PRIOR_SCV", "StageFit", "fit_stage", "fitted_curve", "given_fit", "gpu_part", "service_time_error"]

PRIOR_SCV: Final = 1.0
"""Squared coefficient of variation before anything is measured: exponential service, a cautious guess."""

# Per request: fixed, CPU, GPU; per batch: fixed, GPU. Shares of the first service time, taken as if it were a batch of one
# (measured laws: f = 0.10-0.43 on CPU, GPU nearly in proportion to 1/ρ), and their standard deviations.
_GPU_SHARES: Final = (0.05, 0.05, 0.45, 0.05, 0.40)
_GPU_DEVIATION: Final = (0.10, 0.05, 0.20, 0.10, 0.20)
_GPU_SINGLE_SHARES: Final = (0.10, 0.05, 0.85, 0.0, 0.0)
_GPU_SINGLE_DEVIATION: Final = (0.15, 0.08, 0.20, 1e-6, 1e-6)
_CPU_SHARES: Final = (0.25, 0.75, 0.0, 0.0, 0.0)
_CPU_DEVIATION: Final = (0.20, 0.20, 1e-6, 0.05, 1e-6)
_PARTS: Final = 5
_GIVEN_DEVIATION: Final = 0.25
"""Relative standard deviation of each part of a prior that somebody gave."""
_GIVEN_ELSEWHERE: Final = (0.3, 0.05, 0.1, 0.3, 0.1)
"""Standard deviation beside it, as shares of the whole: what somebody believes to be nothing may be something, above all what neither
cores nor share make faster."""
_CERTAIN_DEVIATION: Final = 0.001
"""The same of a prior that is known to be the truth."""

_MODEL_ERROR: Final = 0.03
"""Relative error of a window's mean that more requests do not average out."""

_SURPRISE: Final = 4.0
_KEPT_AFTER_SURPRISE: Final = 0.3
"""A measurement so many standard deviations away says that the stage has changed: most of what was known of it there is dropped."""

_BATCHES_FROM: Final = 1.02
_USUAL_BATCH: Final = 8.0
"""Largest batch of a stage that was seen to batch at all, until it is known: what inference servers are usually set to, or more.
Believing in less than there is keeps replicas for a reserve that the others would have covered; in more, gives up those that it needs."""
_BUSY: Final = 0.85
"""Part of a window in which replicas serve from which on what they take at once is all that they can."""

_LEAST_S: Final = 1e-6
_MOST_S: Final = 1e4
_BATCH_MOST: Final = 1e4
_SERVICES_MOST: Final = 1e9
"""What no honest window shows more of; NaN fails all of these comparisons."""

_SCV_MAX: Final = 25.0
_RANK: Final = 1e-7
"""Directions that are shorter than this part of the longest are rounding errors."""
_SAMPLES_LEAST: Final = 5.0
_PRIOR_SAMPLES: Final = 20.0


@dataclass(frozen=True, slots=True)
class StageFit:
    """Bayesian linear regression of S(n, cores, ρ) = θ · (n, n/cores, n/ρ, 1, 1/ρ), as plain numbers.

    ``scale_s`` is the unit: parameters are relative to it. ``information`` is the precision matrix, row by row.
    """

    scale_s: float
    uses_gpu: bool
    theta: tuple[float, ...]
    information: tuple[float, ...]
    scv: float = PRIOR_SCV
    scv_weight: float = 0.0
    updated_s: float = 0.0
    observations: int = 0
    batch_max: float = 1.0
    """Largest batch that is believed in: the usual one, the largest seen (or where sizes are not told twice the largest mean), or what was
    seen when saturated."""
    batch_known: bool = False
    """The stage was seen saturated."""

    @property
    def covariance(self) -> Array:
        """Covariance of the parameters in units of ``scale_s``²."""
        return _inverse(self.information)


@lru_cache(maxsize=8192)
def _inverse(information: tuple[float, ...]) -> Array:
    """A menu asks for the covariance of one fit hundreds of times."""
    return np.asarray(np.linalg.inv(np.array(information).reshape(_PARTS, _PARTS)))


def _shape(stage: StageObservation) -> tuple[float, float, float] | None:
    """Cores, share and batch that the replicas really had; None if the stage has no usable measurement."""
    rate = stage.granted or stage.allocation.gpu_rate
    service, batch = stage.service_s, stage.mean_batch
    if service is None or not _LEAST_S < service < _MOST_S or cores_of(stage) <= 0:
        return None
    if batch is None or not 1.0 <= batch <= _BATCH_MOST:
        batch = 1.0
    return cores_of(stage), rate.fraction if rate else 1.0, batch


def _features(cores: Array | float, rate: Array | float, batch: Array | float, uses_gpu: bool) -> Array:
    """(n, n/cores, n/ρ, 1, 1/ρ) along the last axis."""
    cores, rate, batch = np.asarray(cores), np.asarray(rate), np.asarray(batch)
    phi = np.empty((*np.broadcast_shapes(cores.shape, rate.shape, batch.shape), _PARTS))
    share = 1.0 / rate if uses_gpu else np.zeros(rate.shape)
    phi[..., 0], phi[..., 1], phi[..., 2], phi[..., 3], phi[..., 4] = batch, batch / cores, batch * share, 1.0, share
    return phi


def _begin(stage: StageObservation, cores: float, rate: float, batch: float, service_s: float, now: float) -> StageFit:
    uses_gpu = stage.allocation.gpu_rate is not None
    if not uses_gpu:
        shares, deviation = np.array(_CPU_SHARES), np.array(_CPU_DEVIATION)
    elif stage.mean_batch is None:
        shares, deviation = np.array(_GPU_SINGLE_SHARES), np.array(_GPU_SINGLE_DEVIATION)
    else:
        shares, deviation = np.array(_GPU_SHARES), np.array(_GPU_DEVIATION)
    # The split is of a single request's time at this allocation; parameters are what it would be at one core and a whole card.
    single = service_s * batch / float(shares[:3].sum() * batch + shares[3:].sum())
    lever = np.array([1.0, cores, rate, 1.0, rate])
    information = np.diag(1.0 / (deviation * lever) ** 2)
    return StageFit(single, uses_gpu, _numbers(shares * lever), _numbers(information), updated_s=now)


def given_fit(curve: ServiceCurve, uses_gpu: bool, *, certain: bool = False) -> StageFit:
    """A fit that begins with somebody's belief instead of with the first measurement; ``certain`` where it is the truth."""
    theta = np.array([curve.fixed_s, curve.cpu_s, curve.gpu_s, curve.setup_s, curve.setup_gpu_s])
    scale = max(float(theta.sum()), 1e-6)
    if certain:
        deviation = np.maximum(_CERTAIN_DEVIATION * theta / scale, 1e-4)
    else:
        batches = np.array([True, True, uses_gpu, curve.batch_max > 1.0, uses_gpu and curve.batch_max > 1.0])
        deviation = np.where(batches, _GIVEN_DEVIATION * theta / scale + np.array(_GIVEN_ELSEWHERE), 1e-6)
    fit = StageFit(scale, uses_gpu, _numbers(theta / scale), _numbers(np.diag(deviation**-2.0)), scv=curve.scv)
    return replace(fit, scv_weight=5 * _PRIOR_SAMPLES, batch_max=curve.batch_max)


def _numbers(values: Array) -> tuple[float, ...]:
    return tuple(map(float, values.ravel()))


def fit_stage(
    fit: StageFit | None,
    stage: StageObservation,
    *,
    window_s: float,
    now: float,
    half_life_s: float,
    learn: bool = True,
) -> StageFit | None:
    """Fold one observation window into a stage's fit.

    Recursive least squares with directional forgetting (Cao and Schwartz 2000): information fades only along the directions
    that are measured anew, so the split into fixed, CPU and GPU parts survives long spells at one allocation.

    Args:
        fit: What is known so far; None before the first measurement.
        stage: The window.
        window_s: Its length, seconds.
        now: World time, seconds.
        half_life_s: After how long a measurement weighs half.
        learn: False keeps the prior as the first measurement scaled it.

    Returns:
        The new fit; the old one if the window has no usable measurement.
    """
    shape = _shape(stage)
    if shape is None or stage.service_s is None:
        return fit
    cores, rate, batch = shape
    if fit is None:
        fit = _begin(stage, cores, rate, batch, stage.service_s, now)
    elif not learn:
        return fit
    samples = _SAMPLES_LEAST
    if math.isfinite(stage.departures_per_s):
        samples = max(samples, stage.departures_per_s * window_s / batch)
    keep = 0.5 ** (max(0.0, now - fit.updated_s) / half_life_s)
    measured = stage.service_s * batch / fit.scale_s
    phi = _features(cores, rate, batch, fit.uses_gpu)
    theta = np.array(fit.theta)
    expected = float(phi @ theta)
    # Weighed by the mean of both: by the measurement alone, a stage that becomes slower would be believed later than a faster one.
    noise = ((measured + expected) / 2.0) ** 2 * (fit.scv / samples + _MODEL_ERROR**2)
    information = np.array(fit.information).reshape(_PARTS, _PARTS)
    if abs(measured - expected) > _SURPRISE * math.sqrt(float(phi @ fit.covariance @ phi) + noise):
        keep = min(keep, _KEPT_AFTER_SURPRISE)
    rows, values, precisions = _measurements(fit, stage, cores, rate, (phi, measured, 1.0 / noise))
    before = _faded(information, rows, keep)
    information = before + (rows.T * precisions) @ rows
    theta = np.linalg.solve(information, before @ theta + rows.T @ (precisions * values))
    full, known = _full_batch(fit, stage, batch, window_s)
    fit = replace(
        fit,
        theta=_numbers(_nonnegative(theta, information, phi, measured)),
        information=_numbers(information),
        updated_s=now,
        observations=fit.observations + 1,
        batch_max=full,
        batch_known=known,
    )
    if not learn:
        return fit
    scv = _scv_by_size(stage)
    if scv is None and stage.service_scv is not None:
        curve = fitted_curve(fit)
        once, each = float(curve.per_batch_s(rate)), float(curve.per_item_s(cores, rate))
        scv = request_scv(stage.service_scv, batch, once, each)
    return _fold_variance(fit, scv, samples, keep)


def _scv_by_size(stage: StageObservation) -> float | None:
    """Squared coefficient of variation by one request, out of that of batches of each size, which varies by their mean; None if untold."""
    told = [
        (each.services, each.size * each.scv)
        for each in _usable(stage)
        if each.scv is not None and 0 <= each.scv <= _SCV_MAX
    ]
    total = sum(services for services, _ in told)
    return sum(services * scv for services, scv in told) / total if total > 0 else None


def _usable(stage: StageObservation) -> list[BatchTimes]:
    """The batch sizes whose numbers can be true."""
    return [
        each
        for each in stage.batches
        if 1 <= each.size <= _BATCH_MOST and 0 < each.services <= _SERVICES_MOST and _LEAST_S < each.mean_s < _MOST_S
    ]


def _faded(information: Array, rows: Array, keep: float) -> Array:
    """Information faded to ``keep`` along the directions that ``rows`` (k, 5) measure: I − (1 − keep) · IΦᵀ(ΦIΦᵀ)⁺ΦI.

    With I = LLᵀ that is L(1 − (1 − keep)P)Lᵀ, P projecting onto what LᵀΦᵀ spans.
    """
    try:
        root = np.linalg.cholesky(information)
    except np.linalg.LinAlgError:
        return information  # no such matrix, by rounding or out of a damaged memory: what is measured now is added all the same
    directions, lengths, _ = np.linalg.svd(root.T @ rows.T, full_matrices=False)
    measured = root @ directions[:, lengths > _RANK * lengths[0]]
    return np.asarray(information - (1.0 - keep) * measured @ measured.T)


def _measurements(
    fit: StageFit, stage: StageObservation, cores: float, rate: float, whole: tuple[Array, float, float]
) -> tuple[Array, Array, Array]:
    """Features (k, 5), services in units of the fit's scale (k) and their precisions (k): one row a batch size, or the window as a whole.

    Between windows size and time cannot be told apart without bias: where requests happen to take long more of them gather, and the
    next batch is larger. How large a batch is says nothing of how long its own requests take.
    """
    batches = _usable(stage)
    if len(batches) < 2:
        phi, measured, precision = whole
        return phi[None, :], np.array([measured]), np.array([precision])
    sizes = np.array([float(each.size) for each in batches])
    services = np.array([each.services for each in batches])
    values = np.array([each.mean_s for each in batches]) / fit.scale_s
    rows = _features(cores, rate, sizes, fit.uses_gpu)
    middle = (values + np.maximum(rows @ np.array(fit.theta), 0.0)) / 2.0
    return rows, values, 1.0 / (middle**2 * (fit.scv / (sizes * services) + _MODEL_ERROR**2))


def _full_batch(fit: StageFit, stage: StageObservation, batch: float, window_s: float) -> tuple[float, bool]:
    """What to believe of the largest batch after a window, and whether it is known.

    Known it is from a window in which the replicas hardly ever waited and most batches were as large as the largest; from a stage that does
    not tell sizes, where a queue was there all the time.
    """
    if stage.mean_batch is None:
        return fit.batch_max, fit.batch_known
    told = _usable(stage)
    if told:
        largest = float(max(each.size for each in told))
        services = sum(each.services for each in told)
        full = sum(each.services for each in told if each.size == largest)
        busy = sum(each.services * each.mean_s for each in told) / (max(1, stage.ready) * window_s)
        saturated = busy > _BUSY and full > services / 2 and services >= _SAMPLES_LEAST
    else:
        largest = max(1.0, float(round(batch)))
        lowest = min(stage.queue_depth, stage.queue_depth - stage.queue_slope * window_s)
        saturated = lowest > 2.0 * stage.ready * batch and stage.ready > 0
    if saturated:
        return largest, True
    if fit.batch_known:
        return max(fit.batch_max, largest), True
    if batch <= _BATCHES_FROM:
        return fit.batch_max, False
    return max(fit.batch_max, _USUAL_BATCH, largest if told else float(math.ceil(2.0 * batch))), False


def _nonnegative(theta: Array, information: Array, phi: Array, measured: float) -> Array:
    """The nearest θ ≥ 0 in the metric of the information matrix, by clamping one negative parameter after another."""
    free = list(range(_PARTS))
    for _ in range(_PARTS - 1):
        worst = min(free, key=lambda index: theta[index])
        if theta[worst] >= 0.0:
            return theta
        free.remove(worst)
        inner = information[np.ix_(free, free)]
        target = (information @ theta)[free]
        fresh = np.zeros(_PARTS)
        fresh[free] = np.linalg.solve(inner, target)
        theta = fresh
    theta = np.maximum(theta, 0.0)
    predicted = float(phi @ theta)
    return theta if predicted > 0.0 else np.array([measured / phi[0], 0.0, 0.0, 0.0, 0.0])


def _fold_variance(fit: StageFit, scv: float | None, samples: float, keep: float) -> StageFit:
    """Decayed mean of the measured variance over samples, with the prior worth 20 of them."""
    if scv is None or not math.isfinite(scv) or scv < 0:
        return fit
    measured = (fit.scv * (_PRIOR_SAMPLES + fit.scv_weight) - PRIOR_SCV * _PRIOR_SAMPLES) * keep
    weight = fit.scv_weight * keep + samples
    total = PRIOR_SCV * _PRIOR_SAMPLES + measured + min(scv, _SCV_MAX) * samples
    return replace(fit, scv=max(0.0, total / (_PRIOR_SAMPLES + weight)), scv_weight=min(weight, 1e6))


def fitted_curve(fit: StageFit) -> ServiceCurve:
    """The fitted curve in seconds."""
    fixed, cpu, gpu, setup, setup_gpu = (value * fit.scale_s for value in fit.theta)
    if not fit.uses_gpu:
        gpu = setup_gpu = 0.0
    return ServiceCurve(fixed, cpu, gpu, fit.scv, setup, setup_gpu, fit.batch_max)


def gpu_part(fit: StageFit, cores: float, rate: float, batch: float, caution: float) -> float:
    """Which part of a service the GPU works, ``caution`` standard deviations below the fit: max(0, γᵀθ − caution · √(γᵀ Σ γ)) / φᵀθ,
    γ being those of the features φ that go with the share."""
    phi = _features(cores, rate, batch, fit.uses_gpu)
    gamma = phi * np.array([0.0, 0.0, 1.0, 0.0, 1.0])
    theta = np.array(fit.theta)
    least = float(gamma @ theta) - caution * math.sqrt(max(0.0, float(gamma @ fit.covariance @ gamma)))
    return min(1.0, max(0.0, least) / max(float(phi @ theta), 1e-12))


def service_time_error(fit: StageFit, cores: Array | float, rate: Array | float, batch: Array | float = 1.0) -> Array:
    """Relative standard deviation of the fitted mean service time at other allocations: √(φᵀ Σ φ) / φᵀθ."""
    phi = _features(cores, rate, batch, fit.uses_gpu)
    variance = ((phi @ fit.covariance) * phi).sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)) / np.maximum(phi @ np.array(fit.theta), 1e-12))
