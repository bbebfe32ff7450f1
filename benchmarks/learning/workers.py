"""Runs jobs in processes of their own. Not in ``__main__``, which such a process does not import."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterable, Sequence
from multiprocessing.pool import Pool
from typing import Any

from benchmarks.learning.bars import Job
from benchmarks.learning.runs import Run, Static, run, size
from controller.lifeline import die_with_parent

__all__ = ["evaluate"]


def evaluate(jobs: Iterable[Job], workers: int) -> dict[Job, Any]:
    """Run each job once. Jobs of one pipeline, workload and seed go to one process, which remembers what they share."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in dict.fromkeys(jobs):
        groups.setdefault(_shared(job), []).append(job)
    # The longest first, so that no process is left alone with one at the end.
    ordered = sorted(groups.values(), key=lambda group: -sum(_length(job) for job in group))
    if workers == 1:
        return {job: result for group in ordered for job, result in _run_group(group)}
    pool: Pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_begin)
    with pool:
        return {job: result for done in pool.imap_unordered(_run_group, ordered) for job, result in done}


def _begin() -> None:
    die_with_parent()
    # Millions of small values that die young: looking for cycles among them took a seventh of the time.
    gc.set_threshold(100_000)


def _shared(job: Job) -> tuple[Any, ...]:
    if isinstance(job, Run) and job.workload.startswith("bursts"):
        return (job.pipeline, job.workload)
    return (job.pipeline, job.workload, job.seed)


def _length(job: Job) -> float:
    return job.duration_s * (3.0 if isinstance(job, Static) else 1.0)


def _run_group(group: Sequence[Job]) -> list[tuple[Job, Any]]:
    return [(job, size(job)[0] if isinstance(job, Static) else run(job)) for job in group]
