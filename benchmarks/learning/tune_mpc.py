"""Find MPC's best setting for each suite of the fourth bar: ``python -m benchmarks.learning.tune_mpc [SUITE …]``; some ten minutes.

On a seed that no table uses. The best setting is the one at which a request within the SLO costs least: what the fourth bar judges by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import suites
from benchmarks.learning.bars import runs_of_suites
from benchmarks.learning.runs import Run, run

TUNING_SEED = 101


def main(names: Sequence[str]) -> None:
    """Print every setting's misses and relative cost, and the best setting of each suite."""
    for suite, jobs in runs_of_suites([TUNING_SEED]):
        if names and suite not in names:
            continue
        since_s = [suites.judged_from_s(job, suite) for job in jobs]
        plain = _figures([suites.mpc(job, suite, (0.85, ())) for job in jobs], since_s)
        scored = []
        for number, setting in enumerate(suites.MPC_GRID):
            found = _figures([suites.mpc(job, suite, setting) for job in jobs], since_s)
            misses, cost = float(found[:, 0].mean()), float((found[:, 1] / plain[:, 1]).mean())
            each = float((found[:, 1] / plain[:, 1] / (1.0 - found[:, 0])).mean())
            print(
                f"  {100 * misses:6.2f} % missed  {cost:6.3f} of the plain cost  {each:6.3f} per good one  {setting}",
                flush=True,
            )
            scored.append((each, number))
        print(f"{suite}: {suites.MPC_GRID[min(scored)[1]]}", flush=True)


def _figures(jobs: Sequence[Run], since_s: Sequence[float]) -> NDArray[np.float64]:
    """Misses and $/h of each run, where it is judged."""
    courses = [run(job) for job in jobs]
    return np.array([(each.misses(at), each.usd_per_hour(at)) for each, at in zip(courses, since_s, strict=True)])


if __name__ == "__main__":
    main(sys.argv[1:])
