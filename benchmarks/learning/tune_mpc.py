"""Find MPC's best setting for each suite of the fourth bar: ``python -m benchmarks.learning.tune_mpc [SUITE …]``; some ten minutes.

On a seed that no table uses. The best setting is the one at which a request within the SLO costs least: what the fourth bar judges by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.learning import suites
from benchmarks.learning.bars import runs_of_suites
from benchmarks.learning.runs import Run, run

TUNING_SEED = 101


def main(names: Sequence[str]) -> None:
    """Print every setting's misses and relative cost, and the best setting of each suite."""
    for suite, jobs in runs_of_suites([TUNING_SEED]):
        if names and suite not in names:
            continue
        plain = np.array([_figures(suites.mpc(job, suite, (0.85, ()))) for job in jobs])
        scored = []
        for number, setting in enumerate(suites.MPC_GRID):
            found = np.array([_figures(suites.mpc(job, suite, setting)) for job in jobs])
            misses, cost = float(found[:, 0].mean()), float((found[:, 1] / plain[:, 1]).mean())
            each = float((found[:, 1] / plain[:, 1] / (1.0 - found[:, 0])).mean())
            print(
                f"  {100 * misses:6.2f} % missed  {cost:6.3f} of the plain cost  {each:6.3f} per good one  {setting}",
                flush=True,
            )
            scored.append((each, number))
        print(f"{suite}: {suites.MPC_GRID[min(scored)[1]]}", flush=True)


def _figures(job: Run) -> tuple[float, float]:
    course = run(job)
    return course.misses(), course.usd_per_hour()


if __name__ == "__main__":
    main(sys.argv[1:])
