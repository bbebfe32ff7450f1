"""The cluster as a world: pipelines from annotated workloads, metrics from their pods, actions through the API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from controller.cluster import Workload
from controller.cost import Prices, effective_cost
from controller.discovery import Discovery, Found
from controller.granting import granted_of
from controller.observe.histogram import quantile
from controller.observe.series import KEPT_S, PodSeries, StageNow, StageWindow, now_of, peak_of, window_of
from controller.observe.source import Source, Target
from controller.state import (
    Allocation,
    ClusterRoom,
    KnobOutcome,
    Observation,
    PipelineView,
    StageGauge,
    StageObservation,
)
from controller.watching import Watching
from controller.worlds.acting import COMPONENT, Actuator
from controller.worlds.estimated import estimated_service_s
from controller.worlds.latency import end_to_end, entering, finished_per_s
from controller.worlds.room import Rooms
from controller.worlds.standing import Standing, given_cpu, standings
from controller.worlds.sustained import sustained_service_s
from sair.errors import MetricsUnavailable, NotFound
from sair.kube.client import Api
from sair.pipeline import Pipeline
from sair.quantities import GpuRate, Millicores

__all__ = ["COMPONENT", "KubernetesWorld", "WallClock"]

_GAUGE_AGE_S: Final = 6.0
_FRESH_S: Final = 1.0
"""A round asks no pod again that answered so shortly before."""
_FRESH_OF_WINDOW: Final = 0.1
"""The same of a look or a glance, as a part of the time over which it counts arrivals."""


class WallClock:
    """Unix time as it was at the start, carried on by a clock that nobody sets: rounds neither stall nor hurry when the host's does."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ahead_s = wall() - monotonic()

    def now(self) -> float:
        """Unix seconds."""
        return self._monotonic() + self._ahead_s

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(max(0.0, seconds))


class KubernetesWorld:
    """The pipelines of a cluster, for one term of leadership.

    Args:
        api: Client.
        watching: Copies of workloads, pods, nodes and Pipelines.
        scraper: Where the pods' metrics come from.
        prices: What allocations cost.
        clock: The world's time; the scraper's as well.
        may_act: Whether this process leads at this moment.
        owns: Whether the pipelines of a namespace are its own to scale.
        grant_wait_s: How long grants and resizes are waited for before what is missing is recorded as such.
    """

    def __init__(
        self,
        api: Api,
        watching: Watching,
        scraper: Source,
        prices: Prices,
        *,
        clock: WallClock,
        may_act: Callable[[], bool] = lambda: True,
        owns: Callable[[str], bool] = lambda _namespace: True,
        grant_wait_s: float = 2.0,
    ) -> None:
        self.clock = clock
        self._watching = watching
        self._scraper = scraper
        self._prices = prices
        self._owns = owns
        self._actuator = Actuator(api, watching.index, self._newest, clock.now, may_act=may_act, wait_s=grant_wait_s)
        self._seen: dict[tuple[str, str], Allocation] = {}
        """What the loop was told last; its wishes are relative to that."""
        self._copies: tuple[Mapping[str, Any], ...] = ()
        self._found: tuple[Mapping[str, Pipeline], Mapping[str, Found]] | None = None
        """What was found last, and the Pipeline objects that it was found from; beside them, the copies."""
        self._discovery = Discovery()
        self._rooms = Rooms(watching.index)

    def found(self) -> Mapping[str, Found]:
        """All pipelines with their workloads and conflicts.

        Raises:
            ApiUnavailable: While the copies have not been filled.
        """
        self._watching.require_synced()
        watching = self._watching
        copies, pipelines, unreadable = watching.copies(), watching.pipelines.snapshot(), watching.pipelines.malformed
        if self._found is None or any(old is not new for old, new in zip(self._copies, copies, strict=True)):
            workloads = [*watching.deployments.snapshot().values(), *watching.statefulsets.snapshot().values()]
            workloads = [each for each in workloads if self._owns(each.namespace)]
            found = self._discovery.discover(workloads, pipelines, watching.owners(), unreadable)
        elif self._found[0] is not pipelines:
            found = self._discovery.follow(pipelines, unreadable)
        else:
            return self._found[1]
        self._copies, self._found = copies, (pipelines, found)
        return found

    async def view(self, key: str) -> PipelineView | None:
        """One pipeline as it is now, None if it is gone."""
        found = self.found().get(key)
        return found.view if found else None

    async def decided(self, key: str) -> int:
        """How many rounds were decided, as its status says: that outlives Redis and every controller."""
        found = self.found().get(key)
        if found is None:
            return 0
        said = (found.status.last_decision, found.status.rollback)
        return max((each.round + 1 for each in said if each is not None), default=0)

    async def observe(self, key: str, window_s: float) -> Observation:
        """One pipeline over the last ``window_s`` seconds, from a scrape made now and those before it."""
        found, stages = self._pipeline(key)
        await self._scrape(stages.values(), _FRESH_S)
        now, view = self.clock.now(), found.view
        windows = {name: self._window(stage, now, window_s) for name, stage in stages.items()}
        seen = tuple(self._stage_observation(found, stages[each.name], windows[each.name]) for each in view.stages)
        self._seen |= {(key, each.name): each.allocation for each in seen}
        sources = [each.name for each in view.stages if not each.after]
        arrivals = entering(windows[name].arrivals_per_s for name in sources)
        before = self._earlier_arrivals([stages[name] for name in sources], now, window_s)
        # Over the whole round, of which the window is the settled half.
        peak = entering(peak_of(self._series(stages[name]), now, 2 * window_s) for name in sources)
        whole = end_to_end(view, windows)
        done = finished_per_s(view, windows)
        completed = round(done * window_s)
        within = 1.0 if whole.within is None else whole.within
        return Observation(
            pipeline=key,
            time_s=now,
            window_s=window_s,
            age_s=max(0.0, now - min(window.oldest_s for window in windows.values())),
            stages=seen,
            arrivals_per_s=arrivals,
            arrivals_slope=0.0 if before is None else (arrivals - before) / window_s,
            arrivals_peak_per_s=max(arrivals, peak),
            p50_s=whole.p50_s,
            p99_s=whole.p99_s,
            slo_s=view.slo_s,
            goodput_per_s=done * within,
            completed=completed,
            missed=round(completed * (1 - within)),
            cost_per_hour=effective_cost((granted_of(stage) for stage in seen), self._prices),
        )

    async def gauges(self, key: str, window_s: float) -> Sequence[StageGauge]:
        """Queues right now and arrivals over the last ``window_s`` seconds, from a scrape made for it and those before it."""
        found, stages = self._pipeline(key)
        await self._scrape(stages.values(), _FRESH_OF_WINDOW * window_s)
        gauges = []
        for name, stage in stages.items():
            seen = self._now(key, stage, window_s)
            allocation = stage.allocation(self._actuator.wished_rate(found, name))
            self._seen[key, name] = allocation
            gauges.append(StageGauge(name, seen.queue, seen.arrivals_per_s, allocation, len(stage.ready)))
        return gauges

    async def entering(self, key: str, window_s: float) -> float:
        """Requests per second that entered over the last ``window_s`` seconds; only the pods of stages where they enter are asked."""
        found, stages = self._pipeline(key)
        sources = [stages[each.name] for each in found.view.stages if not each.after]
        await self._scrape(sources, _FRESH_OF_WINDOW * window_s)
        return entering(self._now(key, stage, window_s).arrivals_per_s for stage in sources)

    def _now(self, key: str, stage: Standing, window_s: float) -> StageNow:
        now = self.clock.now()
        seen = now_of(self._series(stage), now, window_s)
        if seen is None:
            raise self._unseen(stage)
        # A ready pod that never answered counts as silent for as long as anything is remembered.
        age_s = KEPT_S if self._silent(stage) else now - seen.oldest_s
        if age_s > _GAUGE_AGE_S:
            raise MetricsUnavailable(f"{key} {stage.name}: the newest metrics are {age_s:.0f} s old")
        return seen

    async def room(self, key: str) -> ClusterRoom:
        """What the nodes that matter to it could still hold; pods that wish for more than they were granted count with their wish."""
        found = self.found().get(key)
        return self._rooms.of(self._watching.nodes.snapshot(), key, () if found is None else found.view.stages)

    async def allocations(self, key: str) -> Mapping[str, Allocation]:
        """What each stage is wished to have now, by its workload, its pods and the Pipeline's status."""
        found, stages = self._pipeline(key)
        now = {name: stage.allocation(self._actuator.wished_rate(found, name)) for name, stage in stages.items()}
        self._seen |= {(key, name): allocation for name, allocation in now.items()}
        return now

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        """Ask for allocations; a knob that does not differ from what the loop was told last is left as it is by now."""
        found, stages = self._pipeline(key)
        gone = sorted(wanted.keys() - stages.keys())
        if gone:
            raise NotFound(f"pipeline {key} has no stage {', '.join(gone)} any more")
        base = {
            name: self._seen.get((key, name)) or stages[name].allocation(self._actuator.wished_rate(found, name))
            for name in wanted
        }
        if found.view.mode != "auto":
            return _left_alone(base, wanted, f"mode is {found.view.mode} by now")
        outcomes = await self._actuator.apply(found, stages, base, wanted)
        self._seen |= {(key, name): allocation for name, allocation in wanted.items()}
        return outcomes

    async def settle(self, key: str) -> None:
        """Have pods that came since the last action get what the stage's replicas were given, in a pipeline scaled automatically.

        Raises:
            ApiUnavailable: If the API server cannot be reached.
        """
        found, stages = self._pipeline(key)
        if found.view.mode == "auto":
            await self._actuator.settle(found, stages)

    def forget(self) -> None:
        """Drop what is known of pipelines and pods that are gone."""
        keys = set(self.found())
        self._actuator.forget(keys)
        self._seen = {place: each for place, each in self._seen.items() if place[0] in keys}
        self._scraper.keep_only(pod.key for pod in self._watching.pods.snapshot().values() if pod.alive)

    def exists(self, key: str) -> bool:
        """Whether there is a Pipeline object of that name, readable or not."""
        pipelines = self._watching.pipelines
        return key in pipelines.snapshot() or key in pipelines.malformed

    def wished_rate(self, key: str, stage: str) -> GpuRate | None:
        """The share new pods of a stage are to start with; None where nobody but the user sets it."""
        found = self.found().get(key)
        return self._actuator.wished_rate(found, stage) if found else None

    def wished_cpu(self, key: str, stage: str) -> Millicores | None:
        """The CPU new pods of a stage are to start with; None if the controller never changed it."""
        found = self.found().get(key)
        return self._actuator.wished_cpu(found, stage) if found else None

    def keep_cpu(self, key: str, stages: Iterable[str]) -> None:
        """More CPU is about to be announced in the Pipeline's status; until pods take it, what is wished for stays what it is now."""
        found = self.found().get(key)
        if found is not None:
            self._actuator.keep_cpu(found, stages)

    def _newest(self, workload: Workload) -> Workload:
        kinds = {"Deployment": self._watching.deployments, "StatefulSet": self._watching.statefulsets}
        return kinds[workload.kind].get(f"{workload.namespace}/{workload.name}") or workload

    def _pipeline(self, key: str) -> tuple[Found, dict[str, Standing]]:
        found = self.found().get(key)
        if found is None:
            raise NotFound(f"pipeline {key} does not exist")
        return found, standings(found, self._watching.index.of(key).values())

    async def _scrape(self, stages: Iterable[Standing], fresh_s: float) -> None:
        now = self.clock.now()
        targets = []
        for stage in stages:
            for pod in stage.ready:
                series = self._scraper.series.get(pod.key)
                fresh = series is not None and series.last is not None and now - series.last.time_s < fresh_s
                if pod.host and pod.spec and not fresh:
                    targets.append(Target(pod.key, pod.host, pod.spec.metrics, pod.began_s))
        await self._scraper.scrape(targets)

    def _series(self, stage: Standing) -> dict[str, PodSeries]:
        return {pod.key: self._scraper.series[pod.key] for pod in stage.pods if pod.key in self._scraper.series}

    def _window(self, stage: Standing, now: float, seconds: float) -> StageWindow:
        window = window_of(self._series(stage), now, seconds)
        if window is None:
            raise self._unseen(stage)
        # Requests to a ready pod that never answered a scrape are missing from the sums.
        return replace(window, oldest_s=min(window.oldest_s, now - KEPT_S)) if self._silent(stage) else window

    def _silent(self, stage: Standing) -> bool:
        return any(pod.key not in self._scraper.series for pod in stage.ready)

    def _unseen(self, stage: Standing) -> MetricsUnavailable:
        problems = [self._scraper.problems[pod.key] for pod in stage.ready if pod.key in self._scraper.problems]
        why = f": {problems[0]}" if problems else ""
        return MetricsUnavailable(
            f"stage {stage.name}: fewer than two scrapes of its {len(stage.ready)} ready pods{why}"
        )

    def _earlier_arrivals(self, sources: Sequence[Standing], now: float, seconds: float) -> float | None:
        windows = [window_of(self._series(stage), now - seconds, seconds) for stage in sources]
        known = [window.arrivals_per_s for window in windows if window is not None]
        return entering(known) if len(known) == len(windows) else None

    def _stage_observation(self, found: Found, stage: Standing, window: StageWindow) -> StageObservation:
        allocation = stage.allocation(self._actuator.wished_rate(found, stage.name))
        ready = len(stage.ready)
        cores = sum(given_cpu(pod) for pod in stage.ready) / 1000
        service_s = window.service_s if window.service_s is not None else _estimated(window, ready, cores)
        busy = 0.0 if service_s is None or not ready else window.departures_per_s * service_s / ready
        cpu = busy if window.cpu_cores is None or not cores else window.cpu_cores / cores
        return StageObservation(
            name=stage.name,
            allocation=allocation,
            ready=ready,
            starting=stage.starting,
            granted=stage.granted,
            queue_depth=window.queue,
            queue_slope=window.queue_slope,
            arrivals_per_s=window.arrivals_per_s,
            departures_per_s=window.departures_per_s,
            cpu_utilisation=cpu,
            gpu_utilisation=busy if allocation.gpu_rate else 0.0,
            service_s=sustained_service_s(
                service_s, window.departures_per_s, window.cpu_cores, ready, cores / ready if ready else 0.0
            ),
            service_scv=None,
            p99_s=quantile(window.latency, 0.99),
            mean_batch=window.mean_batch,
            batches=window.batches,
            granted_cpu=stage.granted_cpu,
            gpu_measured=False,
        )


def _estimated(window: StageWindow, ready: int, cores: float) -> float | None:
    """The service time of a stage that exports none."""
    done, used = window.departures_per_s, window.cpu_cores
    cpu_s = used / done / (cores / ready) if used is not None and done > 0 and ready and cores > 0 else None
    queues = (window.queue - window.queue_slope * window.seconds, window.queue)
    return estimated_service_s(window.latency, queues, window.arrivals_per_s, done, ready, cpu_s)


def _left_alone(base: Mapping[str, Allocation], wanted: Mapping[str, Allocation], reason: str) -> list[KnobOutcome]:
    outcomes = []
    for name, want in wanted.items():
        have = base[name]
        pairs = {
            "replicas": (want.replicas, have.replicas),
            "cpu": (want.cpu, have.cpu),
            "memory": (want.memory, have.memory),
            "gpu_rate": (want.gpu_rate.milli if want.gpu_rate else 0, have.gpu_rate.milli if have.gpu_rate else 0),
        }
        outcomes += [KnobOutcome(name, knob, new, old, reason) for knob, (new, old) in pairs.items() if new != old]
    return outcomes
