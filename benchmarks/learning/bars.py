"""The four bars: which runs each needs, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.learning import suites
from benchmarks.learning.runs import Course, Run, Static, bursts, series_of
from benchmarks.learning.verdicts import Pairs, Sheet, interval, percent, points

__all__ = ["BARS", "Bar", "Job", "Results", "runs_of_suites"]

Job = Run | Static
Results = Mapping[Job, Any]
"""Of a run its Course, of a Static its cost in $/h."""

_BEHIND_S: Final = 60.0
"""Requests that arrive so long after a burst still count as its: its queue may have to be worked off."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the four."""

    name: str
    jobs: Callable[[Sequence[int]], list[Job]]
    judge: Callable[[Results, Sequence[int]], Sheet]


_TIMES: Final[Mapping[str, int]] = {"steady": 4, "bursts-poisson": 2, "stopped": 2}
"""How many times the seeds some figures take. Whether one replica or two were right in hindsight moves a steady load's cost by 14 per
cent from seed to seed; a run has three to eight later bursts at Poisson times, at gaps that differ tenfold; whether two or three replicas
are left once bursts have stopped moves its cost by 7 per cent, more than the bar."""


def _enough(seeds: Sequence[int], what: str) -> range:
    return range(seeds[0], seeds[0] + _TIMES.get(what, 1) * len(seeds))


def _told(what: str) -> str:
    return f" ({_TIMES[what]}x the seeds)" if what in _TIMES else ""


# 1: no freeze


def _steady_jobs(seeds: Sequence[int]) -> list[Job]:
    pairs = [_steady_pair(pipeline, seed) for pipeline in suites.NAMES for seed in _enough(seeds, "steady")]
    return [job for pair in pairs for job in pair]


def _steady_pair(pipeline: str, seed: int) -> tuple[Static, Run]:
    ours = suites.steady(pipeline, seed)
    return Static(ours.pipeline, ours.workload, ours.duration_s, ours.seed, ours.settled_s), ours


def _steady(results: Results, seeds: Sequence[int]) -> Sheet:
    title = "1 No freeze: steady load, begun at 3x its right-sized static allocation; from round 10 on"
    sheet = Sheet(title + _told("steady"))
    for pipeline in suites.NAMES:
        ratios, late, misses = [], [], []
        for seed in _enough(seeds, "steady"):
            static, ours = _steady_pair(pipeline, seed)
            course: Course = results[ours]
            half = (ours.settled_s + ours.duration_s) / 2
            ratios.append(course.usd_per_hour(ours.settled_s) / results[static])
            late.append(course.usd_per_hour(half) / results[static])
            misses.append(course.misses(ours.settled_s))
        found = interval(ratios)
        figure = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]; second half {np.mean(late):.3f}"
        sheet.add(f"{pipeline}: cost / static", figure, "<= 1.2", found.mean <= 1.2)
        sheet.add(f"{pipeline}: misses", f"{100 * np.mean(misses):.3f} %", "<= 0.1 %", float(np.mean(misses)) <= 0.001)
    return sheet


# 2: wrong prior

_OFF: Final = suites.ABLATIONS["identification off"]


def _wrong_jobs(seeds: Sequence[int]) -> list[Job]:
    return [
        job
        for pipeline, workload, seed in suites.pairs(suites.WRONG, seeds)
        for job in (
            suites.wrong(pipeline, workload, seed),
            suites.wrong(pipeline, workload, seed, "truth"),
            suites.wrong(pipeline, workload, seed, change=_OFF),
        )
    ]


def _wrong(results: Results, seeds: Sequence[int]) -> Sheet:
    sheet = Sheet("2 Wrong prior: 45 % of the GPU time scales with the share, variance doubled; from round 20 on")
    against_off = Pairs()
    for pipeline in suites.NAMES:
        truth, off = Pairs(), Pairs()
        for workload in suites.WRONG:
            for seed in seeds:
                ours = results[suites.wrong(pipeline, workload, seed)]
                truth.add(ours, results[suites.wrong(pipeline, workload, seed, "truth")], suites.FROM_ROUND_20_S)
                off.add(ours, results[suites.wrong(pipeline, workload, seed, change=_OFF)], suites.FROM_ROUND_20_S)
        against_off.extend(off)
        cost, misses = float(np.mean(truth.cost)), float(np.mean(truth.misses))
        sheet.add(f"{pipeline}: cost against the truth", percent(truth.cost), "<= +10 %", cost <= 0.1)
        sheet.add(f"{pipeline}: misses against the truth", points(truth.misses), "<= +0.3 pt", misses <= 0.003)
        sheet.add(f"{pipeline}: against identification off", str(off))
    sheet.add("all: against identification off", str(against_off), "clearly better", against_off.better)
    return sheet


# 3: recurring bursts

_STOPPING: Final = ("bursts-regular",)


def _carried(pipeline: str, workload: str, seed: int, seeds: Sequence[int]) -> Run:
    """After a run with another seed, so that nothing is known of this one's bursts."""
    earlier = seeds[(list(seeds).index(seed) + 1) % len(seeds)] if len(seeds) > 1 else seed + 1
    return suites.bursting(pipeline, workload, seed, earlier=suites.bursting(pipeline, workload, earlier))


def _burst_jobs(seeds: Sequence[int]) -> list[Job]:
    jobs: list[Job] = []
    for workload in suites.BURSTS:
        enough = _enough(seeds, workload)
        for pipeline, _, seed in suites.pairs([workload], enough):
            jobs.append(suites.bursting(pipeline, workload, seed))
            jobs.append(suites.bursting(pipeline, workload, seed, suites.LAST_QUARTER))
            jobs.append(_carried(pipeline, workload, seed, enough))
    for pipeline, workload, seed in suites.pairs(_STOPPING, _enough(seeds, "stopped")):
        jobs.append(suites.after_bursts(pipeline, workload, seed)[0])
        jobs.append(suites.after_bursts(pipeline, workload, seed, suites.LAST_QUARTER)[0])
    return jobs


def _bursts(results: Results, seeds: Sequence[int]) -> Sheet:
    sheet = Sheet(
        "3 Recurring bursts: 3-5x for 40-60 s every 5-8 min, at regular times, with a precursor, at Poisson times"
    )
    for workload in suites.BURSTS:
        for pipeline in suites.NAMES:
            _burst_lines(sheet, results, _enough(seeds, workload), pipeline, workload)
    return sheet


def _burst_lines(sheet: Sheet, results: Results, seeds: Sequence[int], pipeline: str, workload: str) -> None:
    first, later, carried = _Tally(), _Tally(), _Tally()
    cost: list[float] = []
    for seed in seeds:
        ours = suites.bursting(pipeline, workload, seed)
        again = _carried(pipeline, workload, seed, seeds)
        assert again.earlier is not None
        seen, before = _bursts_of(ours), _bursts_of(again.earlier)
        course: Course = results[ours]
        cost.append(
            course.usd_per_hour()
            / results[suites.bursting(pipeline, workload, seed, suites.LAST_QUARTER)].usd_per_hour()
            - 1.0
        )
        for place, (begin, end, factor) in enumerate(seen):
            if place == 0:
                first.add(course, begin, end)
            if place >= 2 and factor <= 1.2 * max(each[2] for each in seen[:place]):
                later.add(course, begin, end)
            if factor <= 1.2 * max(each[2] for each in [*before, *seen[:place]]):
                carried.add(results[again], begin, end)
    name = f"{pipeline}, {workload.removeprefix('bursts-')}{_told(workload)}"
    bar = 0.1 * first.share
    text = f"{100 * later.share:.2f} % of the requests; the first {100 * first.share:.1f} %"
    sheet.add(f"{name}: misses from the third burst on", text, "<= a tenth", later.share <= bar)
    sheet.add(
        f"{name}: the same, memory carried over", f"{100 * carried.share:.2f} %", "<= a tenth", carried.share <= bar
    )
    sheet.add(f"{name}: cost against 15 minutes' peak", percent(cost), "<= +5 %", float(np.mean(cost)) <= 0.05)
    if workload in _STOPPING:
        stopped = []
        for seed in _enough(seeds, "stopped"):
            job, since_s = suites.after_bursts(pipeline, workload, seed)
            other, _ = suites.after_bursts(pipeline, workload, seed, suites.LAST_QUARTER)
            stopped.append(results[job].usd_per_hour(since_s) / results[other].usd_per_hour(since_s) - 1.0)
        sheet.add(
            f"{name}: cost a half-life after{_told('stopped')}",
            percent(stopped),
            "<= +5 %",
            float(np.mean(stopped)) <= 0.05,
        )


def _bursts_of(job: Run) -> list[tuple[float, float, float]]:
    series = series_of(job.pipeline, job.workload, job.duration_s, job.seed, job.stops_s)
    return [each for each in bursts(series) if each[1] + _BEHIND_S <= job.duration_s]


class _Tally:
    """Missed of all requests over several bursts."""

    def __init__(self) -> None:
        self._missed = self._requests = 0.0

    def add(self, course: Course, begin_s: float, end_s: float) -> None:
        """Count one burst: what was missed until a minute after it, of what it brought."""
        first, last, behind = (round(at // 5.0) for at in (begin_s, end_s, end_s + _BEHIND_S))
        self._missed += float(course.missed[first:behind].sum())
        self._requests += float(course.requests[first : last + 1].sum())

    @property
    def share(self) -> float:
        """Missed / requests."""
        return self._missed / max(1.0, self._requests)


# 4: against MPC


def _mpc_jobs(seeds: Sequence[int]) -> list[Job]:
    jobs: list[Job] = []
    for suite, ours in runs_of_suites(seeds):
        for job in ours:
            jobs += [job, suites.mpc(job, suite)]
    return jobs


def runs_of_suites(seeds: Sequence[int]) -> list[tuple[str, list[Run]]]:
    """What the policy is put against MPC on: the second bar's runs, the third's, and all other workloads."""
    return [
        ("wrong prior", [suites.wrong(*each) for each in suites.pairs(suites.WRONG, seeds)]),
        ("bursts", [suites.bursting(*each) for each in suites.pairs(suites.BURSTS, seeds)]),
        ("others", [suites.other(*each) for each in suites.pairs(suites.OTHERS, seeds)]),
    ]


def _mpc(results: Results, seeds: Sequence[int]) -> Sheet:
    sheet = Sheet("4 Against MPC: the same policy, memory off, its own best setting")
    for suite, jobs in runs_of_suites(seeds):
        whole = Pairs()
        for pipeline, workload in dict.fromkeys((job.pipeline, job.workload) for job in jobs):
            cell = Pairs()
            for job in jobs:
                if (job.pipeline, job.workload) == (pipeline, workload):
                    cell.add(results[job], results[suites.mpc(job, suite)], suites.judged_from_s(job, suite))
            whole.extend(cell)
            if suite == "others":
                sheet.add(f"{pipeline}, {workload}", str(cell), "<= +2 %, +0.3 pt", cell.even)
            else:
                sheet.add(f"{suite}: {pipeline}, {workload}", str(cell))
        if suite == "others":
            sheet.add("others: all", str(whole))
        else:
            sheet.add(f"{suite}: all", str(whole), "better", whole.better)
    return sheet


BARS: Final[Mapping[str, Bar]] = {
    "steady": Bar("steady", _steady_jobs, _steady),
    "prior": Bar("prior", _wrong_jobs, _wrong),
    "bursts": Bar("bursts", _burst_jobs, _bursts),
    "mpc": Bar("mpc", _mpc_jobs, _mpc),
}
