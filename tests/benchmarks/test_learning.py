"""The learning benchmark: every bar judges what it had run, from where it says, and misses what is too dear or too late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest

from benchmarks.learning import suites
from benchmarks.learning.ablations import ablations_jobs
from benchmarks.learning.bars import BARS, Job, Results
from benchmarks.learning.runs import GRAIN_S, Course, Run, bursts, series_of, setup_of
from controller.method import Method

SEEDS = (501, 502)


def course(job: Run, usd: float = 1.0, missed: float = 0.0, from_s: float = 0.0) -> Course:
    """A run with 100 requests in every grain, from a moment on at a cost and with a share of them missed."""
    grains = int(job.duration_s // GRAIN_S)
    late = np.arange(grains) * GRAIN_S >= from_s
    return Course(
        np.full(grains, 100.0), np.where(late, 100.0 * missed, 0.0), np.where(late, usd, 1.0) * GRAIN_S / 3600
    )


def ours(job: Job) -> bool:
    """The policy with its defaults, which the bars are about, told no more than it would be."""
    return isinstance(job, Run) and not job.change and job.told != "truth"


def results(jobs: Sequence[Job], usd: float = 1.0, missed: float = 0.0, from_s: float = 0.0) -> Results:
    """All of the same cost and without misses, but for the policy's own runs."""
    return {
        job: (course(job, usd, missed, from_s) if ours(job) else course(job)) if isinstance(job, Run) else 1.0
        for job in jobs
    }


@pytest.mark.parametrize("name", BARS)
def test_a_bar_judges_no_run_that_it_did_not_ask_for_and_asks_for_each_seed(name: str) -> None:
    jobs = BARS[name].jobs(SEEDS)
    assert {job.seed for job in jobs} >= set(SEEDS)
    sheet = BARS[name].judge(results(jobs, usd=0.5), SEEDS)
    assert sheet.reached, [line for line in sheet.lines if line.reached is False]
    assert any(line.reached for line in sheet.lines)


@pytest.mark.parametrize("name", BARS)
def test_what_costs_too_much_or_comes_too_late_is_missed(name: str) -> None:
    jobs = BARS[name].jobs(SEEDS)
    assert not BARS[name].judge(results(jobs, usd=1.5), SEEDS).reached
    if name != "bursts":  # there all bursts are judged by the first, which misses as much here
        assert not BARS[name].judge(results(jobs, usd=0.9, missed=0.05), SEEDS).reached


def test_what_varies_most_takes_more_seeds() -> None:
    steady = {job.seed for job in BARS["steady"].jobs(SEEDS)}
    runs = [job for job in BARS["bursts"].jobs(SEEDS) if isinstance(job, Run)]
    assert steady == set(range(501, 509))
    for workload, last in (("bursts-precursor", 503), ("bursts-poisson", 505)):
        assert {job.seed for job in runs if job.workload == workload} == set(range(501, last)), workload
    assert {job.seed for job in runs if job.stops_s} == set(range(501, 505))


@pytest.mark.parametrize(
    ("suite", "job", "from_s"),
    [
        ("others", suites.other("nlp", "burst", 501), 0.0),
        ("wrong prior", suites.wrong("nlp", "ramp", 501), 600.0),
        ("bursts", suites.bursting("nlp", "bursts-regular", 501), 1170.0),
        ("bursts", suites.bursting("nlp", "bursts-poisson", 501), None),
    ],
)
def test_against_mpc_a_run_counts_from_where_its_own_bar_judges_it(suite: str, job: Run, from_s: float | None) -> None:
    found = suites.judged_from_s(job, suite)
    if from_s is None:
        third = bursts(series_of(job.pipeline, job.workload, job.duration_s, job.seed))[2][0]
        assert third - GRAIN_S < found <= third
    else:
        assert found == from_s
    jobs = BARS["mpc"].jobs(SEEDS)
    even = results(jobs, usd=0.9)
    usd = np.concatenate([np.full(round(found / GRAIN_S), 1.0), even[job].usd[round(found / GRAIN_S) :]])
    dear_before = {**even, job: replace(even[job], usd=usd)}
    assert BARS["mpc"].judge(dear_before, SEEDS).lines == BARS["mpc"].judge(even, SEEDS).lines


def test_every_piece_that_is_taken_away_can_be_chosen_by_a_setting() -> None:
    taken = {name for change in suites.ABLATIONS.values() for name, _ in change}
    assert taken <= {each.name for each in fields(Method)}
    whole, without = ablations_jobs([1])[:4], ablations_jobs([1])[4:]
    assert len(without) == len(whole) * (len(suites.ABLATIONS) + 1)
    assert len({*whole, *without}) == len(whole) + len(without), "each differs from the whole and from every other"
    fixed = setup_of("image-classification", fixed_share=True)
    for stage in fixed.stages:
        if stage.initial.gpu_rate is not None:
            assert stage.limits.gpu_milli_min == stage.limits.gpu_milli_max == stage.initial.gpu_rate.milli
