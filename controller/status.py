"""Writes what a round saw and decided where people look: the Pipeline's status, Events, and SAIR's own metrics."""

from __future__ import annotations

import datetime as dt

from prometheus_client import CollectorRegistry, Counter, Gauge

from controller.discovery import Found
from controller.journal import RoundReport
from controller.llm.settings import ModelSettings
from controller.memory.mirror import MirroredMemory
from controller.state import Action, PipelineView
from controller.worlds.kubernetes import COMPONENT, KubernetesWorld
from sair.errors import ApiUnavailable, Conflict, NotFound, PermanentError
from sair.kube.client import Api
from sair.kube.events import Recorder, Reference
from sair.kube.patch import apply_status
from sair.kube.resources import PIPELINES
from sair.logs import get_logger
from sair.pipeline import (
    API_VERSION,
    KIND,
    Condition,
    Decision,
    Pipeline,
    PipelineStatus,
    StageStatus,
    parse_pipeline,
    with_condition,
)
from sair.quantities import Millicores, format_memory, format_millicores
from sair.wire import to_builtins

__all__ = ["StatusWriter"]

_log = get_logger(COMPONENT)


class StatusWriter:
    """A Watcher of every round of every pipeline.

    Args:
        api: Client.
        world: For stages, conflicts and wishes.
        recorder: Writes Events.
        memory: Whether Redis is there.
        model: Whether a language model is wanted.
        registry: Where the metrics go.
    """

    def __init__(
        self,
        api: Api,
        world: KubernetesWorld,
        recorder: Recorder,
        memory: MirroredMemory,
        model: ModelSettings,
        registry: CollectorRegistry,
    ) -> None:
        self._api = api
        self._world = world
        self._recorder = recorder
        self._memory = memory
        self._model = model
        labels = ("namespace", "pipeline")
        self._rounds = Counter(
            "sair_controller_rounds", "Rounds by who decided.", (*labels, "policy"), registry=registry
        )
        self._reflexes = Counter("sair_controller_reflexes", "Times the reflex acted.", labels, registry=registry)
        self._p99 = Gauge(
            "sair_pipeline_p99_seconds", "End-to-end P99 latency of the last window.", labels, registry=registry
        )
        self._slo = Gauge("sair_pipeline_slo_seconds", "Upper bound of P99.", labels, registry=registry)
        self._cost = Gauge("sair_pipeline_cost_dollars_per_hour", "Effective cost.", labels, registry=registry)
        self._misses = Counter(
            "sair_pipeline_slo_misses", "Requests later than the SLO, as seen in windows.", labels, registry=registry
        )
        self._unsaved = Gauge(
            "sair_controller_unsaved_experiences", "Experiences that wait for Redis.", registry=registry
        )

    async def round_ended(self, report: RoundReport) -> None:
        """Write the status; a status that cannot be written is written with the next round."""
        namespace, name = report.view.key.split("/")
        self._measure(report, namespace, name)
        found = self._world.found().get(report.view.key)
        if found is None:
            return
        try:
            current = await self._pipeline(namespace, name)
            status = self._status(report, found, current)
            await apply_status(self._api, PIPELINES, namespace, name, to_builtins(status), component=COMPONENT)
        except (ApiUnavailable, Conflict, NotFound, PermanentError) as error:
            _log.warning("the status could not be written", pipeline=report.view.key, problem=str(error))
            return
        self._tell(report, Reference(PIPELINES, name, namespace, current.metadata.uid))

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Count, and tell by Event."""
        namespace, name = view.key.split("/")
        self._reflexes.labels(namespace, name).inc()
        reference = Reference(PIPELINES, name, namespace)
        self._recorder.record(reference, "Reflex", f"a queue builds up: {action}", action="Scaling")

    async def ensure(self, found: Found) -> None:
        """Create the Pipeline object of a pipeline that was discovered."""
        namespace, name = found.view.key.split("/")
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "namespace": namespace}, "spec": {}}
        try:
            await self._api.create(PIPELINES.path(namespace), body, {"fieldManager": f"sair-{COMPONENT}"})
        except Conflict:
            return  # somebody else did
        _log.info("found a pipeline", pipeline=found.view.key, stages=[stage.name for stage in found.view.stages])

    def _measure(self, report: RoundReport, namespace: str, name: str) -> None:
        policy = report.decision.policy if report.decision else "none"
        self._rounds.labels(namespace, name, policy).inc()
        self._slo.labels(namespace, name).set(report.view.slo_s)
        self._unsaved.set(self._memory.unsaved)
        seen = report.observation
        if seen is not None:
            self._cost.labels(namespace, name).set(seen.cost_per_hour)
            self._misses.labels(namespace, name).inc(max(0, seen.missed))
            if seen.p99_s is not None:
                self._p99.labels(namespace, name).set(seen.p99_s)

    async def _pipeline(self, namespace: str, name: str) -> Pipeline:
        return parse_pipeline(await self._api.get(PIPELINES.path(namespace, name)))

    def _status(self, report: RoundReport, found: Found, current: Pipeline) -> PipelineStatus:
        seen, decision, old = report.observation, report.decision, current.status
        last = old.last_decision
        if decision is not None:
            last = Decision(
                round=decision.round,
                time=_iso(decision.time_s),
                policy=decision.policy if report.view.mode == "auto" else f"{decision.policy} (recommended only)",
                action=str(decision.action)[:1000],
                reason=decision.reason[:1000],
            )
        return PipelineStatus(
            observed_generation=current.metadata.generation,
            stages=tuple(self._stage(report, found, stage.name) for stage in found.view.stages),
            bottleneck=decision.bottleneck if decision else old.bottleneck,
            p99_seconds=_rounded(seen.p99_s) if seen else old.p99_seconds,
            slo_seconds=report.view.slo_s,
            arrivals_per_second=_rounded(seen.arrivals_per_s) if seen else old.arrivals_per_second,
            cost_per_hour=_rounded(seen.cost_per_hour) if seen else old.cost_per_hour,
            mode=report.view.mode,
            last_decision=last,
            conditions=self._conditions(report, found, current),
        )

    def _stage(self, report: RoundReport, found: Found, name: str) -> StageStatus:
        view, workload = found.view.stage(name), found.workloads[name]
        seen = report.observation.stage(name) if report.observation else None
        after = report.decision.after.get(name) if report.decision and report.view.mode == "auto" else None
        allocation = after or (seen.allocation if seen else None)
        rate = self._world.wished_rate(found.view.key, name) or (allocation.gpu_rate if allocation else None)
        cpu = self._world.wished_cpu(found.view.key, name)
        return StageStatus(
            name=name,
            after=view.after if view else (),
            workload=f"{workload.kind}/{workload.name}",
            replicas=allocation.replicas if allocation else workload.replicas,
            ready_replicas=seen.ready if seen else 0,
            gpu_rate=str(rate) if rate else None,
            gpu_granted=str(seen.granted) if seen and seen.granted else None,
            cpu=format_millicores(Millicores(cpu or (allocation.cpu if allocation else workload.cpu))),
            memory=format_memory(workload.memory),
            utilisation=_rounded(max(seen.cpu_utilisation, seen.gpu_utilisation)) if seen else None,
            queue_depth=_rounded(seen.queue_depth) if seen else None,
        )

    def _conditions(self, report: RoundReport, found: Found, current: Pipeline) -> tuple[Condition, ...]:
        now, conditions = _iso(report.time_s), tuple(current.status.conditions)

        def set_to(kind: str, holds: bool | None, reason: str, message: str = "") -> None:
            nonlocal conditions
            status = "Unknown" if holds is None else str(holds)
            new = Condition(
                type=kind,  # type: ignore[arg-type]  # one of the literals below
                status=status,  # type: ignore[arg-type]
                reason=reason,
                message=message[:1000],
                last_transition_time=now,
                observed_generation=current.metadata.generation,
            )
            conditions = with_condition(conditions, new)

        seen = report.observation is not None
        set_to("MetricsAvailable", seen, "Scraped" if seen else "ScrapeFailed", "" if seen else report.problem)
        wanted = self._model.configured
        asked = report.trace is not None
        if not wanted:
            set_to("LLMReady", False, "NotConfigured", "the built-in policy decides")
        elif asked:
            set_to(
                "LLMReady", not report.fallback, "ModelFailed" if report.fallback else "ModelAnswered", report.fallback
            )
        set_to(
            "FallbackActive", bool(report.fallback), "ModelFailed" if report.fallback else "NotNeeded", report.fallback
        )
        limited = report.limited
        set_to("ScalingLimited", bool(limited), "NotGranted" if limited else "Granted", limited)
        set_to(
            "Paused",
            report.view.mode != "auto",
            {"auto": "Auto", "off": "Off", "recommend": "Recommend"}[report.view.mode],
        )
        set_to(
            "Conflict", bool(found.conflicts), "Conflicting" if found.conflicts else "None", "; ".join(found.conflicts)
        )
        return conditions

    def _tell(self, report: RoundReport, reference: Reference) -> None:
        if report.decision is not None and report.decision.action:
            note = f"round {report.round} by {report.decision.policy}: {report.decision.action}"
            self._recorder.record(
                reference, "Scaled" if report.view.mode == "auto" else "Recommended", note, action="Scaling"
            )
        if report.limited:
            self._recorder.record(reference, "ScalingLimited", report.limited, action="Scaling", severity="Warning")
        if report.decision is None and report.view.mode != "off":
            self._recorder.record(reference, "Held", report.problem, action="Scaling", severity="Warning")


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
