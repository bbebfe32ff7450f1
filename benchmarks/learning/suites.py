"""What each bar runs: pipelines, workloads, variants of the policy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from benchmarks.learning.runs import GRAIN_S, Change, Run, bursts, series_of
from controller.peak import Peaks, half_life_s
from controller.simulation.pipelines import PIPELINES
from controller.tuning import Tuning

__all__ = [
    "ABLATIONS",
    "BURSTS",
    "FROM_ROUND_20_S",
    "LAST_QUARTER",
    "MEMORY_OFF",
    "MPC_GRID",
    "MPC_SETTINGS",
    "OTHERS",
    "ROUND_S",
    "WRONG",
    "after_bursts",
    "bursting",
    "judged_from_s",
    "mpc",
    "other",
    "steady",
    "wrong",
]

ROUND_S: Final = 30.0
SETTLED_S: Final = 10 * ROUND_S
FROM_ROUND_20_S: Final = 20 * ROUND_S
NAMES: Final = tuple(PIPELINES)
BURSTS: Final = ("bursts-regular", "bursts-precursor", "bursts-poisson")
WRONG: Final = ("poisson", "ramp")
OTHERS: Final = ("poisson", "ramp", "burst", "ramp-burst", "step", "diurnal")

LAST_QUARTER: Final[Change] = (("remember_peaks", False), ("analogues", False))
"""A reserve for the last 15 minutes' peak instead of the remembered one."""
MEMORY_OFF: Final[Change] = (
    *LAST_QUARTER,
    ("identification", False),
    ("correct_forecasts", False),
    ("examples_max", 0),
    ("probing", False),
)
"""What is left is model-predictive control: queueing prior, recent peaks, reserve, reflex."""

Setting = tuple[float, Change]
"""Preference and factors."""
MPC_SETTINGS: Final[dict[str, Setting]] = {
    "wrong prior": (1.0, (("covered_factor", 1.25),)),
    "bursts": (1.0, (("covered_factor", 1.25),)),
    "others": (1.0, (("covered_factor", 1.25),)),
}
"""The best of a grid on a seed that no table uses, by the figure that it is judged by: the cost of a request within the SLO.
``python -m benchmarks.learning.tune_mpc`` finds them again."""
MPC_GRID: Final[tuple[Setting, ...]] = tuple(
    (preference, (("covered_factor", factor),))
    for preference in (0.75, 0.85, 0.95, 1.0)
    for factor in (1.0, 1.25, 2.0, 3.0)
)

ABLATIONS: Final[dict[str, Change]] = {
    "memory off": MEMORY_OFF,
    "analogues off": (("analogues", False),),
    "remembered peaks off": (("remember_peaks", False),),
    "identification off": (("identification", False),),
    "forecasts uncorrected": (("correct_forecasts", False),),
    "surprisal off": (("surprisal_in_score", False),),
    "surprisal by the neighbourhood": (("local_deviation", True),),
    "diversity off": (("diversity", 0.0),),
    "no experiences shown": (("examples_max", 0),),
    "5 experiences": (("examples_max", 5),),
    "10 experiences": (("examples_max", 10),),
    "20 experiences": (("examples_max", 20),),
    "Pareto term off": (("pareto", False),),
    "euclidean distance": (("distance", "euclidean"),),
    "one frontier for all loads": (("frontier_scope", "global"),),
    "probing off": (("probing", False),),
    "reflex off": (("reflex", False),),
    "reserve off": (("reserve", False),),
}


def steady(pipeline: str, seed: int) -> Run:
    """Bar 1: begins with three times what a steady load needs."""
    return Run(pipeline, "poisson", 1800.0, seed, oversized=3, settled_s=SETTLED_S)


def wrong(pipeline: str, workload: str, seed: int, told: str = "prior", change: Change = ()) -> Run:
    """Bar 2."""
    return Run(pipeline, workload, 1800.0, seed, change, "truth" if told == "truth" else "prior", wrong_prior=True)


def bursting(pipeline: str, workload: str, seed: int, change: Change = (), earlier: Run | None = None) -> Run:
    """Bar 3."""
    return Run(pipeline, workload, 3000.0, seed, change, earlier=earlier)


def after_bursts(pipeline: str, workload: str, seed: int, change: Change = ()) -> tuple[Run, float]:
    """Bar 3: the bursts stop after 25 minutes. With it the moment from which on memory may cost nothing: one half-life later."""
    stops_s = 1500.0
    starts = [begin for begin, _, _ in bursts(series_of(pipeline, workload, stops_s, seed))]
    gaps = tuple(later - sooner for sooner, later in itertools.pairwise(starts))
    from_s = stops_s + half_life_s(Peaks(gaps=gaps), Tuning())
    from_s = -(-from_s // ROUND_S) * ROUND_S
    return Run(pipeline, workload, from_s + 900.0, seed, change, stops_s=stops_s), from_s


def other(pipeline: str, workload: str, seed: int, change: Change = ()) -> Run:
    """Bar 4: a right prior and no recurring bursts."""
    return Run(pipeline, workload, 1800.0, seed, change, "prior")


def judged_from_s(job: Run, suite: str) -> float:
    """From when on a run counts against MPC: where its own bar judges it, after 20 rounds and from the third burst on; else all of it."""
    if suite == "wrong prior":
        return FROM_ROUND_20_S
    if suite == "others":
        return 0.0
    starts = [begin for begin, _, _ in bursts(series_of(job.pipeline, job.workload, job.duration_s, job.seed))]
    return GRAIN_S * (starts[min(2, len(starts) - 1)] // GRAIN_S)


def mpc(job: Run, suite: str, setting: Setting | None = None) -> Run:
    """The same run with memory off, at its best setting for the suite."""
    preference, change = setting or MPC_SETTINGS[suite]
    told = "prior" if job.told == "nothing" else job.told
    return Run(
        job.pipeline,
        job.workload,
        job.duration_s,
        job.seed,
        (*MEMORY_OFF, *change),
        told,
        job.wrong_prior,
        preference=preference,
    )


def pairs(workloads: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """Every pipeline, workload and seed."""
    return [(pipeline, workload, seed) for pipeline in NAMES for workload in workloads for seed in seeds]
