"""Made-up experiences, as many as are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from controller.experience import Experience, Outcome, RewardTerms
from controller.state import HOLD, Action, StageDelta

__all__ = ["STAGES", "WIDTH", "drawn"]

STAGES: Final = ("preprocess", "inference", "postprocess")
WIDTH: Final = 36
"""Length of a context of three stages."""


def drawn(count: int, width: int, seed: int = 0) -> Iterator[Experience]:
    """Rounds of a pipeline whose load wanders: contexts on four dimensions with noise, rewards that follow them, some odd."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, width)) * 0.1
    actions = [HOLD, *(Action.of([StageDelta(s, gpu_milli=m)]) for s in STAGES for m in (-100, 100, 200))]
    place = np.zeros(4)
    for first in range(0, count, 10_000):
        size = min(10_000, count - first)
        walk = place + np.cumsum(rng.normal(size=(size, 4)) * 0.05, axis=0)
        place = walk[-1]
        contexts = 0.5 + np.sin(walk) @ mix + rng.normal(size=(size, width)) * 0.02
        rewards = np.sin(3 * walk[:, 0]) - 1.0 + 0.1 * rng.normal(size=size)
        rewards += (rng.random(size) < 0.01) * rng.normal(size=size)
        for row, (context, reward) in enumerate(zip(contexts.tolist(), rewards.tolist(), strict=True)):
            number = first + row
            yield Experience(
                id=f"{number:08d}-0",
                pipeline="bench/shop",
                round=number,
                time_s=1.7e9 + 30.0 * number,
                context=tuple(context),
                action=actions[number % len(actions)],
                before=(),
                load_bucket=number % 20,
                previous_latency_ratio=0.8,
                outcome=Outcome(0.5 + 0.4 * abs(reward), 0.3, 0.0),
                reward=RewardTerms(reward, 0.0, 0.0, 0.0, 0.0),
                surprisal=abs(reward),
                predicted_reward=-1.0,
                policy="in-context",
                arrivals_per_s=50.0,
            )
