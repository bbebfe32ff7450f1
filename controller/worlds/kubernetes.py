"""The cluster as a world: pipelines from annotated workloads, metrics from their pods, actions through the API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controller.cluster import NodeState, PodState, ScaleTarget, Workload
from controller.cost import Prices, effective_cost
from controller.discovery import Found, discover
from controller.observe.quantile import quantile, share_below
from controller.observe.scraper import Scraper, Target
from controller.observe.series import PodSeries, StageWindow, window_of
from controller.state import (
    Allocation,
    ClusterRoom,
    GpuRoom,
    KnobOutcome,
    NodeRoom,
    Observation,
    PipelineView,
    StageGauge,
    StageObservation,
)
from controller.watching import Watching
from sair.annotations import GPU_RATE
from sair.errors import Conflict, MetricsUnavailable, NotFound, PermanentError
from sair.kube.client import Api
from sair.kube.patch import merge_patch_annotations, resize_cpu, scale
from sair.kube.resources import DEPLOYMENTS, PODS, STATEFULSETS
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = ["KubernetesWorld", "WallClock"]

COMPONENT: Final = "controller"

_GAUGE_WINDOW_S = 6.0
_GRANT_WAIT_S = 2.0
_POLL_S = 0.05
_FRESH_S = 1.0


class WallClock:
    """Unix time; sleeping is sleeping."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(max(0.0, seconds))


@dataclass(frozen=True, slots=True)
class _Stage:
    workload: Workload
    pods: tuple[PodState, ...]
    """Alive."""

    @property
    def ready(self) -> tuple[PodState, ...]:
        return tuple(pod for pod in self.pods if pod.ready)


class KubernetesWorld:
    """The pipelines of a cluster.

    Args:
        api: Client.
        watching: Copies of workloads, pods, nodes and Pipelines.
        scraper: Reads the pods' metrics.
        prices: What allocations cost.
    """

    def __init__(self, api: Api, watching: Watching, scraper: Scraper, prices: Prices) -> None:
        self.clock = WallClock()
        self._api = api
        self._watching = watching
        self._scraper = scraper
        self._prices = prices
        self._wishes: dict[tuple[str, str], GpuRate] = {}
        self._cpu_wishes: dict[tuple[str, str], Millicores] = {}

    def found(self) -> dict[str, Found]:
        """All pipelines with their workloads and conflicts.

        Raises:
            ApiUnavailable: While the copies have not been filled.
        """
        self._watching.require_synced()
        workloads: list[Workload] = [
            *self._watching.deployments.snapshot().values(),
            *self._watching.statefulsets.snapshot().values(),
        ]
        owners: list[ScaleTarget] = list(self._watching.owners())
        return discover(workloads, self._watching.pipelines.snapshot(), owners)

    async def pipelines(self) -> Sequence[PipelineView]:
        """All pipelines there are now."""
        return [found.view for found in self.found().values()]

    async def observe(self, key: str, window_s: float) -> Observation:
        """One pipeline over the last ``window_s`` seconds, from a scrape made now and those before it."""
        found, stages = self._pipeline(key)
        await self._scrape(found, stages)
        now = self.clock.now()
        windows = {name: self._window(name, stage, now, window_s) for name, stage in stages.items()}
        seen = tuple(
            self._stage_observation(view.name, stages[view.name], windows[view.name]) for view in found.view.stages
        )
        sources = [windows[view.name] for view in found.view.stages if not view.after]
        sinks = [windows[name] for name in _sinks(found.view)]
        arrivals = sum(window.arrivals_per_s for window in sources)
        before = self._earlier_arrivals(found.view, stages, now, window_s)
        p50, p99, within = _end_to_end(found.view, windows, sinks)
        done = sum(window.departures_per_s for window in sinks)
        completed = round(done * window_s)
        return Observation(
            pipeline=key,
            time_s=now,
            window_s=window_s,
            age_s=max(0.0, now - min(window.oldest_s for window in windows.values())),
            stages=seen,
            arrivals_per_s=arrivals,
            arrivals_slope=0.0 if before is None else (arrivals - before) / window_s,
            arrivals_peak_per_s=max(arrivals, sum(window.peak_arrivals_per_s for window in sources)),
            p50_s=p50,
            p99_s=p99,
            slo_s=found.view.slo_s,
            goodput_per_s=done * (1.0 if within is None else within),
            completed=completed,
            missed=0 if within is None else round(completed * (1 - within)),
            cost_per_hour=effective_cost((stage.allocation for stage in seen), self._prices),
        )

    async def gauges(self, key: str) -> Sequence[StageGauge]:
        """Queues and arrivals right now, from a scrape made for it."""
        found, stages = self._pipeline(key)
        await self._scrape(found, stages)
        now = self.clock.now()
        gauges = []
        for view in found.view.stages:
            stage = stages[view.name]
            window = self._window(view.name, stage, now, _GAUGE_WINDOW_S)
            if now - window.oldest_s > _GAUGE_WINDOW_S:
                raise MetricsUnavailable(f"{key} {view.name}: the newest metrics are {now - window.oldest_s:.0f} s old")
            gauges.append(
                StageGauge(
                    view.name, window.queue, window.arrivals_per_s, self._allocation(view.name, stage), len(stage.ready)
                )
            )
        return gauges

    async def room(self, key: str) -> ClusterRoom:
        """What the cluster could still hold; pods that wish for more than they were granted count with their wish."""
        self._pipeline(key)
        pods = [pod for pod in self._watching.pods.snapshot().values() if pod.alive and pod.node]
        nodes = []
        for node in self._watching.nodes.snapshot().values():
            if node.schedulable:
                nodes.append(_node_room(node, [pod for pod in pods if pod.node == node.name], key))
        return ClusterRoom(tuple(nodes))

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        """Ask for allocations: CPU and shares on live pods first, because they take effect at once, replicas last."""
        _found, stages = self._pipeline(key)
        outcomes: list[KnobOutcome] = []
        for name, want in wanted.items():
            stage = stages[name]
            have = self._allocation(name, stage)
            if want.cpu != have.cpu:
                outcomes.append(await self._resize(name, stage, want.cpu))
            if want.gpu_rate is not None and want.gpu_rate != have.gpu_rate:
                outcomes.append(await self._rate(key, name, stage, want.gpu_rate))
            if want.memory != have.memory:
                refused = "memory is not changed on live pods"
                outcomes.append(KnobOutcome(name, "memory", want.memory, have.memory, refused))
            if want.replicas != have.replicas:
                outcomes.append(await self._replicas(name, stage, want.replicas))
        return outcomes

    def wished_rate(self, key: str, stage: str) -> GpuRate | None:
        """The share new pods of a stage are to start with; None if the controller never changed it."""
        return self._wishes.get((key, stage))

    def wished_cpu(self, key: str, stage: str) -> Millicores | None:
        """The CPU new pods of a stage are to start with; None if the controller never changed it."""
        return self._cpu_wishes.get((key, stage))

    def _pipeline(self, key: str) -> tuple[Found, dict[str, _Stage]]:
        found = self.found().get(key)
        if found is None:
            raise NotFound(f"pipeline {key} does not exist")
        pods = [pod for pod in self._watching.pods.snapshot().values() if pod.alive and pod.pipeline == key]
        return found, {
            name: _Stage(workload, tuple(pod for pod in pods if pod.stage == name))
            for name, workload in found.workloads.items()
        }

    async def _scrape(self, found: Found, stages: Mapping[str, _Stage]) -> None:
        targets = []
        for stage in stages.values():
            for pod in stage.ready:
                series = self._scraper.series.get(_pod_key(pod))
                fresh = (
                    series is not None and series.last is not None and self.clock.now() - series.last.time_s < _FRESH_S
                )
                if pod.host and pod.spec and not fresh:
                    targets.append(Target(_pod_key(pod), pod.host, pod.spec.metrics))
        await self._scraper.scrape(targets)
        alive = {_pod_key(pod) for pod in self._watching.pods.snapshot().values() if pod.alive}
        self._scraper.keep_only(alive)

    def _series(self, stage: _Stage) -> dict[str, PodSeries]:
        keys = (_pod_key(pod) for pod in stage.pods)
        return {key: self._scraper.series[key] for key in keys if key in self._scraper.series}

    def _window(self, name: str, stage: _Stage, now: float, seconds: float) -> StageWindow:
        window = window_of(self._series(stage), now, seconds)
        if window is None:
            raise MetricsUnavailable(f"stage {name}: fewer than two scrapes of its {len(stage.ready)} ready pods")
        return window

    def _earlier_arrivals(
        self, view: PipelineView, stages: Mapping[str, _Stage], now: float, seconds: float
    ) -> float | None:
        windows = [
            window_of(self._series(stages[each.name]), now - seconds, seconds) for each in view.stages if not each.after
        ]
        known = [window.arrivals_per_s for window in windows if window is not None]
        return sum(known) if len(known) == len(windows) else None

    def _allocation(self, name: str, stage: _Stage) -> Allocation:
        workload = stage.workload
        spec = workload.spec
        rate = None
        if spec is not None and spec.gpu_rate is not None:
            key = f"{workload.namespace}/{spec.pipeline}"
            wishes = [pod.wished for pod in stage.pods if pod.wished is not None]
            rate = self._wishes.get((key, name)) or (max(wishes) if wishes else spec.gpu_rate)
        cpu = max((pod.container_cpu for pod in stage.pods), default=workload.cpu)
        return Allocation(workload.replicas, cpu, workload.memory, rate)

    def _stage_observation(self, name: str, stage: _Stage, window: StageWindow) -> StageObservation:
        allocation = self._allocation(name, stage)
        ready = len(stage.ready)
        granted = [pod.granted for pod in stage.ready if pod.granted is not None]
        busy = 0.0 if window.service_s is None or not ready else window.departures_per_s * window.service_s / ready
        cores = sum(pod.container_cpu for pod in stage.ready) / 1000
        cpu = busy if window.cpu_cores is None or not cores else window.cpu_cores / cores
        return StageObservation(
            name=name,
            allocation=allocation,
            ready=ready,
            starting=max(0, allocation.replicas - ready),
            granted=min(granted) if granted else None,
            queue_depth=window.queue,
            queue_slope=window.queue_slope,
            arrivals_per_s=window.arrivals_per_s,
            departures_per_s=window.departures_per_s,
            cpu_utilisation=cpu,
            gpu_utilisation=busy if allocation.gpu_rate else 0.0,
            service_s=window.service_s,
            service_scv=None,
            p99_s=quantile(window.latency, 0.99),
        )

    async def _replicas(self, name: str, stage: _Stage, replicas: int) -> KnobOutcome:
        workload = stage.workload
        resource = DEPLOYMENTS if workload.kind == "Deployment" else STATEFULSETS
        try:
            await scale(self._api, resource, workload.namespace, workload.name, replicas, component=COMPONENT)
        except (PermanentError, Conflict) as error:
            return KnobOutcome(name, "replicas", replicas, workload.replicas, str(error))
        return KnobOutcome(name, "replicas", replicas, replicas)

    async def _rate(self, key: str, name: str, stage: _Stage, rate: GpuRate) -> KnobOutcome:
        self._wishes[key, name] = rate
        for pod in stage.pods:
            try:
                await merge_patch_annotations(
                    self._api, PODS, pod.namespace, pod.name, {GPU_RATE: str(rate)}, component=COMPONENT, uid=pod.uid
                )
            except (NotFound, Conflict):
                continue  # it is gone: nothing to raise
        return await self._granted(name, stage, rate)

    async def _granted(self, name: str, stage: _Stage, rate: GpuRate) -> KnobOutcome:
        """Wait briefly for the extender's grants; what it has not granted by then is recorded as such."""
        uids = {pod.uid for pod in stage.pods if pod.node}
        deadline = self.clock.now() + _GRANT_WAIT_S
        while True:
            pods = [pod for pod in self._watching.pods.snapshot().values() if pod.uid in uids and pod.alive]
            grants = [pod.granted.milli for pod in pods if pod.granted is not None]
            if all(grant == rate.milli for grant in grants) and len(grants) == len(pods):
                return KnobOutcome(name, "gpu_rate", rate.milli, rate.milli)
            if self.clock.now() >= deadline:
                lowest = min(grants, default=0)
                short = sum(grant != rate.milli for grant in grants) + len(pods) - len(grants)
                return KnobOutcome(
                    name, "gpu_rate", rate.milli, lowest, f"{short} of {len(pods)} replicas wait for their share"
                )
            await asyncio.sleep(_POLL_S)

    async def _resize(self, name: str, stage: _Stage, cpu: Millicores) -> KnobOutcome:
        workload = stage.workload
        key = f"{workload.namespace}/{workload.spec.pipeline}" if workload.spec else ""
        self._cpu_wishes[key, name] = cpu
        problem, least = "", cpu
        for pod in stage.pods:
            try:
                await resize_cpu(
                    self._api,
                    pod.namespace,
                    pod.name,
                    container=workload.container,
                    request=cpu,
                    component=COMPONENT,
                    uid=pod.uid,
                )
            except (NotFound, Conflict):
                continue
            except PermanentError as error:
                problem, least = str(error), min(least, pod.container_cpu)
        return KnobOutcome(name, "cpu", cpu, least, problem)


def _pod_key(pod: PodState) -> str:
    return f"{pod.namespace}/{pod.name}/{pod.uid}"


def _sinks(view: PipelineView) -> list[str]:
    upstream = {name for stage in view.stages for name in stage.after}
    return [stage.name for stage in view.stages if stage.name not in upstream]


def _end_to_end(
    view: PipelineView, windows: Mapping[str, StageWindow], sinks: Sequence[StageWindow]
) -> tuple[float | None, float | None, float | None]:
    """P50, P99 and the share within the SLO, from the last stage's own histogram of the whole pipeline where there is one.

    Otherwise the stages' quantiles are summed along the slowest path, which is exact for constant delays and else too high: too
    much capacity is the safe side.
    """
    own = [window.pipeline for window in sinks if window.pipeline.counts and window.pipeline.counts[-1] > 0]
    if own:
        worst = max(own, key=lambda each: quantile(each, 0.99) or 0.0)
        return quantile(worst, 0.5), quantile(worst, 0.99), share_below(worst, view.slo_s)
    p50, p99 = (
        _along(view, {name: quantile(window.latency, q) for name, window in windows.items()}) for q in (0.5, 0.99)
    )
    within = None if p99 is None else min((share_below(w.latency, view.slo_s) or 0.0) for w in windows.values())
    return p50, p99, within


def _along(view: PipelineView, latencies: Mapping[str, float | None]) -> float | None:
    """The slowest path; None as soon as a stage on it finished nothing."""
    until: dict[str, float] = {}
    for stage in view.stages:
        latency = latencies[stage.name]
        if latency is None:
            return None
        until[stage.name] = latency + max((until[name] for name in stage.after), default=0.0)
    return max(until.values(), default=None)


def _node_room(node: NodeState, pods: Sequence[PodState], key: str) -> NodeRoom:
    mine = [pod for pod in pods if pod.pipeline == key and pod.stage]
    gpus = []
    for index, card in enumerate(node.cards):
        on_card = [pod for pod in pods if pod.gpu_index == index]
        taken = sum(
            max(pod.granted.milli if pod.granted else 0, pod.wished.milli if pod.wished else 0) for pod in on_card
        )
        memory = sum(pod.spec.gpu_memory or 0 for pod in on_card if pod.spec)
        held = _count([pod for pod in mine if pod.gpu_index == index])
        gpus.append(GpuRoom(max(0, 1000 - taken), Mebibytes(max(0, card.memory_mi - memory)), held))
    return NodeRoom(
        node.name,
        Millicores(max(0, node.cpu - sum(pod.cpu for pod in pods))),
        Mebibytes(max(0, node.memory - sum(pod.memory for pod in pods))),
        _count(mine),
        tuple(gpus),
    )


def _count(pods: Sequence[PodState]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pod in pods:
        if pod.stage:
            counts[pod.stage] = counts.get(pod.stage, 0) + 1
    return counts
