"""Forced probes: with a probability that fades a round tries a safe action that the policy would not have chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controller.tuning import Tuning

__all__ = ["epsilon", "forced_probe"]


def epsilon(round_number: int, tuning: Tuning) -> float:
    """ε = max(0.05, 0.15 · 0.95ⁿ) in round n, counted from 0; 0 with probing off."""
    if not tuning.probing:
        return 0.0
    return max(tuning.epsilon_floor, tuning.epsilon * tuning.epsilon_decay ** max(0, round_number))


def forced_probe(safe: Sequence[int], round_number: int, tuning: Tuning, rng: np.random.Generator) -> int | None:
    """Draw whether this round probes, and if so which of the safe candidates.

    Args:
        safe: Numbers of candidates that are predicted to keep the SLO and the reserve; empty means no probe.
        round_number: Counted from 0.
        tuning: ε.
        rng: Seeded by the caller; drawn from exactly twice, whatever comes of it, so that runs stay comparable.

    Returns:
        The candidate's number, or None.
    """
    draw, which = float(rng.random()), float(rng.random())
    if not safe or draw >= epsilon(round_number, tuning):
        return None
    return safe[min(len(safe) - 1, int(which * len(safe)))]
