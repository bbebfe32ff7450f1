"""Tune HPA, the ρ-target law and MPC for the simulated pipelines, and print the settings to put into ``baselines/tuning.py``.

python -m benchmarks.tune_baselines [pipeline …]; one to two minutes per pipeline and law.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from controller.simulation.baselines.tuning import Candidate, hpa_grid, mpc_grid, rate_target_grid, tune
from controller.simulation.pipelines import GRAPHS, PIPELINES, pipeline_named


def main(names: Sequence[str]) -> None:
    for name in names or [*PIPELINES, *GRAPHS]:
        grids: list[Sequence[Candidate]] = [hpa_grid(), rate_target_grid(), mpc_grid()]
        for grid in grids:
            best = tune(pipeline_named(name), grid, show)
            print(f"{name}: {best}", flush=True)


def show(candidate: Candidate, misses: float, usd: float) -> None:
    print(f"  {100 * misses:6.2f} % missed  {usd:6.2f} $/h  {candidate}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
