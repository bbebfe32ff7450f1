"""The decision core's parameters: one set of defaults for all workloads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from controller.cost import Prices

__all__ = ["Distance", "FrontierScope", "Tuning"]

Distance = Literal["igd+", "euclidean"]
FrontierScope = Literal["bucket", "global"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the pure core is run with. Times in seconds, rates in requests per second."""

    interval_s: float = 30.0
    """Length of a round."""
    window_s: float = 15.0
    """Length of the observation window: the settled tail of the round."""
    reflex_interval_s: float = 0.5
    """How often the reflex looks at the queues at most: every two SLOs, up to every 2 s."""
    prices: Prices = field(default_factory=Prices)
    """What allocations cost, $/h."""

    latency_weight: float = 0.15
    """w₁ of R_latency."""
    cost_weight: float = 4.0
    """w₂ of R_cost, on cost as a fraction of the budget. With 0.5 nothing is ever released."""
    sla_weight: float = 2.0
    """w₃ of R_sla."""
    proactive_bonus: float = 0.1
    """β; below 0.2, or the separation margin R(a) − R(b) ≥ 0.2 − β is void."""
    pareto: bool = True
    """R_pareto, what an outcome adds to the frontier or how near to it it lies; off: 0."""
    distance: Distance = "igd+"
    """Distance of a dominated point to the frontier; ``euclidean`` can order two dominated points wrongly."""
    frontier_scope: FrontierScope = "bucket"
    """One frontier per bucket of the arrival rate, or one for all loads."""

    examples_max: int = 15
    """M: how many experiences are shown; 0 shows none."""
    diversity: float = 0.5
    """λ: how much likeness to an experience already chosen takes from a score; 0 turns diversity off."""
    local_deviation: bool = False
    """Measure surprisal in standard deviations of the neighbourhood instead of the whole memory's: an odd round counts for more among
    rounds that all ended alike."""
    surprisal_in_score: bool = True
    """Score experiences by similarity × surprisal; off: by similarity alone."""
    least_reward: float | None = None
    """r_min: only experiences above it are shown. None: the median of the memory, because the cost term moves all rewards."""
    shrinkage: float = 1.0
    """Weight of the prior in kernel means, as a number of experiences."""

    identification: bool = True
    """Fit service times and their variance to what is observed; off: the prior scaled by the first observation."""
    identification_half_life_s: float = 900.0
    """After how long a measurement weighs half against new ones of the same kind."""
    correct_forecasts: bool = True
    """Correct the model's P99 by how far observed ones were from it; off: the model as it is fitted."""
    caution: float = 0.5
    """Standard deviations of the service-time fit that a plan adds to its mean."""

    recent_peak_window_s: float = 90.0
    """Over how long the recent peak is taken that the knobs are set for."""
    load_margin: float = 1.07
    """Factor on the recent peak for the spread of arrivals within a round."""
    reserve: bool = True
    """Guardrail 10: replicas at their highest knobs must cover the recent and the remembered peak."""
    remembered_factor: float = 1.2
    """Reserve as a multiple of the remembered peak."""
    cpu_reserve: float = 1.7
    """Factor on the reserve, and on what is kept, of stages without a GPU: their standby costs next to nothing, and what they lack the
    others wait for."""
    uncovered_factor: float = 3.0
    """Reserve as a multiple of the current rate until memory covers the pattern."""
    covered_factor: float = 1.25
    """The same afterwards."""
    covered_after_s: float = 750.0
    """After how long of watching memory counts as covering the pattern."""
    remember_peaks: bool = True
    """Off: the reserve rests on the recent peak alone."""
    peak_half_life_s: float = 1800.0
    """Least half-life of a remembered peak; it grows to four times the longest gap between bursts."""
    peak_half_life_max_s: float = 172800.0
    """Upper bound of that half-life."""
    burst_ratio: float = 1.6
    """Arrivals of so many times the usual are the beginning of a burst."""
    analogues_ahead_s: float = 65.0
    """How far ahead analogues look."""
    analogues: bool = True
    """Add what arrivals did in the 2 minutes after similar situations; never less than without."""

    probing: bool = True
    """Forced probes with probability ε."""
    epsilon: float = 0.15
    """ε₀, probability of a forced probe in the first round."""
    epsilon_decay: float = 0.95
    """Factor on ε per round."""
    epsilon_floor: float = 0.05
    """Lowest ε."""

    utilisation_limit: float = 0.9
    """Highest projected utilisation of a stage after a downward step."""
    scrape_interval_s: float = 15.0
    """Metrics older than two of these are stale."""
    menu_max: int = 10
    """Candidates in a menu at most; at least 6 where that many are distinct."""

    reflex: bool = True
    """Add capacity between rounds."""
    reflex_threshold_s: float = 0.25
    """Queued work, in seconds of the stage's capacity, above which the reflex acts; 0.2 to 0.3."""
    reflex_drain_s: float = 4.0
    """How fast the reflex wants a queue gone."""
    freeze_s: float = 20.0
    """How long no downward step is taken after the reflex acted."""
