"""What of a stored state cannot be: numbers that no run of the controller writes. Redis is not trusted with the pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sair.errors import InvalidInput

if TYPE_CHECKING:
    from controller.analogues import Analogues
    from controller.identification import StageFit
    from controller.knowledge import Learned, Pending
    from controller.peak import Peaks

__all__ = ["COUNT_MOST", "RATE_MOST", "RESIDUAL_MOST", "check_learned", "plausible_rate"]

_LATEST_S: Final = 4.2e9
"""Unix time in the year 2103; simulated times are smaller, and negative in a memory that was carried over."""
RATE_MOST: Final = 1e7
RESIDUAL_MOST: Final = 10.0
COUNT_MOST: Final = 10**9
"""Rounds and whatever else is counted: more than a controller lives to see."""
_LONGEST: Final = 4096
_PARTS: Final = 5

_Claim = tuple[str, Any, bool, str]
"""Field, value, whether it can be, what is allowed."""


def plausible_rate(per_s: float) -> float:
    """A rate as it may be remembered, requests per second: up to the most that there can be, 0 where it is no number."""
    return min(RATE_MOST, max(0.0, per_s)) if math.isfinite(per_s) else 0.0


def check_learned(learned: Learned) -> None:
    """Refuse a state with a number that cannot be.

    Raises:
        InvalidInput: Names the first such field, its value and what is allowed.
    """
    for field, value, holds, allowed in _claims(learned):
        if not holds:
            raise InvalidInput(f"controller state {field}", value, allowed)


def _within(field: str, value: float, low: float, high: float) -> _Claim:
    return field, value, math.isfinite(value) and low <= value <= high, f"a number from {low:g} to {high:g}"


def _claims(learned: Learned) -> Iterator[_Claim]:
    yield _within("round", learned.round, 0, COUNT_MOST)
    for name, fit in learned.fits.items():
        yield from _fit_claims(f"fits.{name}", fit)
    for name, ratio in learned.ratios.items():
        yield _within(f"ratios.{name}", ratio, 0.01, 100.0)
    yield from _peak_claims(learned.peaks)
    yield from _analogue_claims(learned.analogues)
    yield _within("residual", learned.residual, -RESIDUAL_MOST, RESIDUAL_MOST)
    yield _within("foreseen_per_s", learned.foreseen_per_s, 0.0, RATE_MOST)
    yield _within("frozen_until_s", learned.frozen_until_s, -_LATEST_S, _LATEST_S)
    for refusal in learned.refusals:
        yield _within("refusals.until_round", refusal.until_round, 0, learned.round + _LONGEST)
    if learned.pending is not None:
        yield from _pending_claims(learned.pending)


def _fit_claims(field: str, fit: StageFit) -> Iterator[_Claim]:
    yield _within(f"{field}.scale_s", fit.scale_s, 1e-9, 1e5)
    yield f"{field}.theta", len(fit.theta), len(fit.theta) == _PARTS, f"{_PARTS} numbers"
    for value in fit.theta:
        yield _within(f"{field}.theta", value, 0.0, 1e9)
    yield f"{field}.theta", fit.theta, sum(fit.theta) > 0.0, "something that takes time"
    yield f"{field}.information", len(fit.information), len(fit.information) == _PARTS**2, f"{_PARTS**2} numbers"
    for value in fit.information:
        yield _within(f"{field}.information", value, -1e18, 1e18)
    yield f"{field}.information", "a matrix", _is_precision(fit), "one that is symmetric and positive definite"
    yield _within(f"{field}.scv", fit.scv, 0.0, 1e3)
    yield _within(f"{field}.scv_weight", fit.scv_weight, 0.0, 1e9)
    yield _within(f"{field}.updated_s", fit.updated_s, -_LATEST_S, _LATEST_S)
    yield _within(f"{field}.observations", fit.observations, 0, COUNT_MOST)
    yield _within(f"{field}.batch_max", fit.batch_max, 1.0, 2e4)


def _is_precision(fit: StageFit) -> bool:
    matrix = np.array(fit.information).reshape(_PARTS, _PARTS)
    largest = float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * largest):
        return False
    # Parts that a stage does not have are known to be nothing with a weight of 1e12, hence the scaling.
    size = np.sqrt(np.abs(np.diag(matrix)))
    if not (size > 0).all():
        return False
    return bool(np.linalg.eigvalsh(matrix / np.outer(size, size)).min() > -1e-9)


def _peak_claims(peaks: Peaks) -> Iterator[_Claim]:
    yield _within("peaks.updated_s", peaks.updated_s, -_LATEST_S, _LATEST_S)
    latest = max(peaks.updated_s, -_LATEST_S)
    yield "peaks.recent", len(peaks.recent), len(peaks.recent) <= _LONGEST, f"at most {_LONGEST}"
    for at, value in peaks.recent:
        yield _within("peaks.recent", at, -_LATEST_S, latest)
        yield _within("peaks.recent", value, 0.0, RATE_MOST)
    yield _within("peaks.remembered", peaks.remembered, 0.0, RATE_MOST)
    yield _within("peaks.remembered_s", peaks.remembered_s, -_LATEST_S, max(latest, 0.0))
    yield _within("peaks.base", peaks.base, 0.0, RATE_MOST)
    for field, moment in (("first_s", peaks.first_s), ("burst_s", peaks.burst_s)):
        if moment is not None:
            yield _within(f"peaks.{field}", moment, -_LATEST_S, latest)
    yield "peaks.gaps", len(peaks.gaps), len(peaks.gaps) <= _LONGEST, f"at most {_LONGEST}"
    for gap in peaks.gaps:
        yield _within("peaks.gaps", gap, 0.0, _LATEST_S)


def _analogue_claims(analogues: Analogues) -> Iterator[_Claim]:
    lengths = {len(each) for each in (analogues.times_s, analogues.signatures, analogues.rates, analogues.growths)}
    yield (
        "analogues",
        sorted(lengths),
        len(lengths) == 1 and max(lengths) <= _LONGEST,
        f"lists of one length, at most {_LONGEST}",
    )
    for at in analogues.times_s:
        yield _within("analogues.times_s", at, -_LATEST_S, _LATEST_S)
    for parts in analogues.signatures:
        for part in parts:
            yield _within("analogues.signatures", part, 0.0, 2.0)
    for rate in analogues.rates:
        yield _within("analogues.rates", rate, 1e-6, RATE_MOST)
    for growth in analogues.growths:
        yield _within("analogues.growths", growth, 0.0, RATE_MOST)


def _pending_claims(pending: Pending) -> Iterator[_Claim]:
    yield _within("pending.round", pending.round, 0, COUNT_MOST)
    yield _within("pending.time_s", pending.time_s, -_LATEST_S, _LATEST_S)
    yield _within("pending.latency_ratio", pending.latency_ratio, 0.0, 1e6)
    yield _within("pending.arrivals_per_s", pending.arrivals_per_s, 0.0, RATE_MOST)
    for value in pending.context:
        yield _within("pending.context", value, -1e3, 1e3)
    if pending.predicted_reward is not None:
        yield _within("pending.predicted_reward", pending.predicted_reward, -1e9, 1e9)
    for name, allocation in pending.before:
        yield _within(f"pending.before.{name}", allocation.replicas, 0, 1e6)
