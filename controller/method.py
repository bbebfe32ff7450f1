"""Which pieces of the method are on: settings for those that may be chosen, whatever they were found to add."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

from msgspec import Meta

from controller.tuning import Distance, FrontierScope, Tuning
from sair.settings import settings

__all__ = ["Method"]

_PLAIN = Tuning()


@settings("SAIR_METHOD_")
class Method:
    """The selectable pieces, for all pipelines; what is not set is as in ``Tuning``. A round's journal record names what was changed."""

    examples_max: Annotated[int, Meta(ge=0, le=50)] = _PLAIN.examples_max
    """M, how many experiences a round is shown; 0 shows none."""
    surprisal_in_score: bool = _PLAIN.surprisal_in_score
    """Choose experiences by likeness × surprisal; off: by likeness alone."""
    local_deviation: bool = _PLAIN.local_deviation
    """Measure surprisal in standard deviations of the neighbourhood instead of the whole memory's."""
    diversity: Annotated[float, Meta(ge=0, le=2)] = _PLAIN.diversity
    """λ, how much likeness to an experience already chosen takes from a score; 0 turns diversity off."""
    least_reward: Annotated[float, Meta(ge=-100, le=100)] | None = _PLAIN.least_reward
    """r_min: only experiences with a higher reward are shown, the Pareto term being that of today; unset: the better half."""
    pareto: bool = _PLAIN.pareto
    """The Pareto term of the reward; off: 0."""
    distance: Distance = _PLAIN.distance
    """Distance of a dominated point to the frontier; euclidean can order two dominated points wrongly."""
    frontier_scope: FrontierScope = _PLAIN.frontier_scope
    """One frontier per bucket of the arrival rate, or one for all loads."""
    identification: bool = _PLAIN.identification
    """Fit service times and their variance to what is observed; off: the prior scaled by the first observation."""
    correct_forecasts: bool = _PLAIN.correct_forecasts
    """Correct the model's P99 by how far observed ones were from it."""
    reserve: bool = _PLAIN.reserve
    """Guardrail 10: replicas at their highest knobs must cover the recent and the remembered peak."""
    remember_peaks: bool = _PLAIN.remember_peaks
    """Off: the reserve rests on the recent peak alone."""
    analogues: bool = _PLAIN.analogues
    """Add what arrivals did in the minutes after similar situations."""
    probing: bool = _PLAIN.probing
    """Forced probes with probability ε."""
    epsilon: Annotated[float, Meta(ge=0, le=1)] = _PLAIN.epsilon
    """ε₀, probability of a forced probe in the first round; it decays from there."""
    reflex: bool = _PLAIN.reflex
    """Add capacity between rounds."""

    def tuning(self, tuning: Tuning) -> Tuning:
        """A tuning with these pieces."""
        return replace(tuning, **asdict(self))

    @property
    def changed(self) -> dict[str, Any]:
        """The pieces that are not as in ``Tuning``."""
        return {name: value for name, value in asdict(self).items() if value != getattr(_PLAIN, name)}
