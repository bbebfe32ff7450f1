"""Writes what a round saw and decided where people look: the Pipeline's status, Events, and SAIR's own metrics."""

from __future__ import annotations

import datetime as dt
import math
from typing import Final, Literal

import msgspec

from controller import judging as judged
from controller.decision import Decision as KnownDecision
from controller.discovery import Found
from controller.journal import RoundReport
from controller.llm.settings import ModelSettings
from controller.memory.mirror import MirroredMemory
from controller.metrics import ControllerMetrics
from controller.rollback import POLICY, kept
from controller.state import Action, PipelineView
from controller.worlds.kubernetes import COMPONENT, KubernetesWorld
from controller.worlds.wishing import change_status
from sair.errors import Conflict, InvalidInput, SairError
from sair.kube.client import Api
from sair.kube.events import Recorder, Reference
from sair.kube.resources import PIPELINES
from sair.logs import get_logger
from sair.pipeline import (
    API_VERSION,
    KIND,
    Condition,
    ConditionType,
    Decision,
    Pipeline,
    PipelineStatus,
    RollbackStatus,
    StageStatus,
    with_condition,
)
from sair.quantities import format_memory, format_millicores, parse_cpu

__all__ = ["StatusWriter"]

_log = get_logger(COMPONENT)

_SENTENCE: Final = 1000
"""Longest text of others (a model, an error) that is put into a status or an Event, characters."""
_PHRASE: Final = 200
"""Longest name of an action, which kubectl shows in a column."""
_PAUSED: Final = {"auto": "Auto", "off": "Off", "recommend": "Recommend"}


class StatusWriter:
    """A Watcher of every round of every pipeline.

    Args:
        api: Client.
        world: For stages, conflicts and wishes.
        recorder: Writes Events.
        memory: How it stands with each pipeline.
        model: Whether a language model is wanted.
        metrics: Prometheus.
    """

    def __init__(
        self,
        api: Api,
        world: KubernetesWorld,
        recorder: Recorder,
        memory: MirroredMemory,
        model: ModelSettings,
        metrics: ControllerMetrics,
    ) -> None:
        self._api = api
        self._world = world
        self._recorder = recorder
        self._memory = memory
        self._model = model
        self._metrics = metrics
        self._uids: dict[str, str] = {}

    async def round_ended(self, report: RoundReport) -> None:
        """Write the status; a status that cannot be written is written with the next round."""
        key = report.view.key
        namespace, name = key.split("/")
        self._metrics.round(report)
        self._metrics.memory(self._memory)
        try:
            found = self._world.found().get(key)
            if found is None:
                return
            current = await change_status(
                self._api, key, lambda current: self._status(report, found, current), component=COMPONENT
            )
            self._uids[key] = current.metadata.uid
        except SairError as error:
            _log.warning("the status could not be written", pipeline=key, problem=str(error))
        self._tell(report, Reference(PIPELINES, name, namespace, self._uids.get(key, "")))

    async def about_to_act(self, report: RoundReport) -> None:
        """Write what CPU is about to rise to where the webhook and the next leader look for wishes.

        Before the pods are asked, so that whoever leads next never takes for too much what this one has raised already. What falls
        is written once it has fallen. Shares of GPUs are asked for there and nowhere else.
        """
        key, decision = report.view.key, report.decision
        rising = [delta.stage for delta in decision.action.deltas if delta.cpu > 0] if decision is not None else []
        if decision is None or not rising:
            return
        try:
            # What pods refuse does not stay a wish, and is taken out of the status when the round ends.
            self._world.keep_cpu(key, rising)
            await change_status(
                self._api, key, lambda current: _with_rises(current.status, decision), component=COMPONENT
            )
        except SairError as error:
            _log.warning("a rise could not be announced in the status", pipeline=key, problem=str(error))

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Count, and tell by Event."""
        namespace, name = view.key.split("/")
        self._metrics.reflex(view.key)
        reference = Reference(PIPELINES, name, namespace, self._uids.get(view.key, ""))
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

    def forget(self, key: str) -> None:
        """Show no more of a pipeline that is gone."""
        self._uids.pop(key, None)
        self._metrics.forget(key)

    def _status(self, report: RoundReport, found: Found, current: Pipeline) -> PipelineStatus:
        seen, decision, old = report.observation, report.decision, current.status
        last = old.last_decision
        if decision is not None:
            last = Decision(
                round=decision.round,
                time=_iso(decision.time_s),
                policy=decision.policy if report.view.mode == "auto" else f"{decision.policy} (recommended only)",
                action=_said(str(decision.action), _PHRASE),
                reason=_said(decision.reason),
            )
        return PipelineStatus(
            observed_generation=current.metadata.generation,
            stages=tuple(self._stage(report, found, stage.name) for stage in found.view.stages),
            bottleneck=decision.bottleneck if decision else old.bottleneck,
            p99_seconds=_rounded(seen.p99_s) if seen else old.p99_seconds,
            slo_seconds=report.view.slo_s,
            arrivals_per_second=_rounded(seen.arrivals_per_s) if seen else old.arrivals_per_second,
            cost_per_hour=_rounded(seen.cost_per_hour) if seen else old.cost_per_hour,
            # As it is now; the round may have begun under another one.
            mode=found.view.mode,
            last_decision=last,
            rollback=_rollback(report, current),
            conditions=self._conditions(report, found, current),
        )

    def _stage(self, report: RoundReport, found: Found, name: str) -> StageStatus:
        view, workload = found.view.stage(name), found.workloads[name]
        seen = report.observation.stage(name) if report.observation else None
        after = report.decision.after.get(name) if report.decision and report.view.mode == "auto" else None
        allocation = after or (seen.allocation if seen else None)
        key = found.view.key
        rate = self._world.wished_rate(key, name) or (allocation.gpu_rate if allocation else None)
        cpu = self._world.wished_cpu(key, name)
        return StageStatus(
            name=name,
            after=view.after if view else (),
            workload=f"{workload.kind}/{workload.name}",
            replicas=allocation.replicas if allocation else workload.replicas,
            ready_replicas=seen.ready if seen else 0,
            gpu_rate=str(rate) if rate else None,
            gpu_granted=str(seen.granted) if seen and seen.granted else None,
            # Only where the controller changed it: the webhook gives new pods what stands here.
            cpu=format_millicores(cpu) if cpu else None,
            memory=format_memory(workload.memory),
            utilisation=_rounded(max(seen.cpu_utilisation, seen.gpu_utilisation)) if seen else None,
            queue_depth=_rounded(seen.queue_depth) if seen else None,
        )

    def _conditions(self, report: RoundReport, found: Found, current: Pipeline) -> tuple[Condition, ...]:
        now, conditions = _iso(report.time_s), tuple(current.status.conditions)

        def set_to(kind: ConditionType, holds: bool | None, reason: str, message: str = "") -> None:
            nonlocal conditions
            status: Literal["True", "False", "Unknown"] = "Unknown" if holds is None else "True" if holds else "False"
            new = Condition(
                type=kind,
                status=status,
                reason=reason,
                message=_said(message),
                last_transition_time=now,
                observed_generation=current.metadata.generation,
            )
            conditions = with_condition(conditions, new)

        # A rollback looks at no metrics.
        if report.observation is not None or report.decision is None:
            set_to("MetricsAvailable", *judged.metrics(report))
        set_to("MemoryAvailable", *judged.memory(self._memory.standing(report.view.key)))
        if not self._model.configured:
            set_to("LLMReady", False, "NotConfigured", "the built-in policy decides")
            set_to("FallbackActive", False, "NotNeeded")
        elif (asked := judged.asked(report)) is not None:
            set_to("LLMReady", *asked[0])
            set_to("FallbackActive", *asked[1])
        elif not any(each.type == "LLMReady" and each.reason != "NotConfigured" for each in conditions):
            set_to("LLMReady", None, "NotAskedYet")
            set_to("FallbackActive", None, "NotAskedYet")
        # A round that held for want of metrics or cluster says nothing about it.
        if report.decision is not None or not report.missing:
            set_to("ScalingLimited", *judged.limits(report))
        drift = judged.drift(report)
        if drift is not None:
            set_to("ModelDrift", *drift)
        paused = "Conflict" if found.conflicts and found.view.mode == "recommend" else _PAUSED[found.view.mode]
        if found.view.mode == "auto" and _keeps(report, found, self._world.clock.now()):
            set_to("Paused", True, "RolledBack", kept(found.view))
        else:
            set_to("Paused", found.view.mode != "auto", paused)
        conflicts = "; ".join(found.conflicts)
        set_to("Conflict", bool(conflicts), "Conflicting" if conflicts else "None", conflicts)
        return conditions

    def _tell(self, report: RoundReport, reference: Reference) -> None:
        if report.decision is not None and report.decision.action:
            note = _said(f"round {report.round} by {report.decision.policy}: {report.decision.action}")
            reason = "Scaled" if report.view.mode == "auto" else "Recommended"
            self._recorder.record(reference, reason, note, action="Scaling")
        refused = [each for each in report.decision.verdicts if each.outcome == "rejected"] if report.decision else []
        if refused and report.decision is not None and report.decision.policy == POLICY:
            note = _said("; ".join(f"{each.rule}: {each.reason}" for each in refused))
            self._recorder.record(reference, "RollbackRefused", note, action="Scaling", severity="Warning")
        if report.limited:
            self._recorder.record(
                reference, "ScalingLimited", _said(report.limited), action="Scaling", severity="Warning"
            )
        drift = judged.drift(report)
        if drift is not None and drift.status:
            self._recorder.record(reference, "ModelDrift", drift.message, action="Scaling", severity="Warning")
        if report.decision is None and report.view.mode != "off":
            self._recorder.record(reference, "Held", _said(report.problem), action="Scaling", severity="Warning")


def _rollback(report: RoundReport, current: Pipeline) -> RollbackStatus | None:
    """What became of the request that stands there now."""
    wanted = current.spec.rollback
    known = [each for each in (report.rollback, current.status.rollback) if each is not None]
    return next((_shortened(each) for each in known if wanted is not None and each.at == wanted.at), None)


def _shortened(answer: RollbackStatus) -> RollbackStatus:
    return msgspec.structs.replace(answer, message=_said(answer.message))


def _keeps(report: RoundReport, found: Found, now: float) -> bool:
    """A rollback holds everything else; one that was just refused does not."""
    return found.view.held(now) and not (report.rollback is not None and report.rollback.outcome == "Refused")


def _with_rises(status: PipelineStatus, decision: KnownDecision) -> PipelineStatus:
    """A status with those rises of CPU in a decision that go beyond what it says."""
    return msgspec.structs.replace(status, stages=tuple(_raised(stage, decision) for stage in status.stages))


def _raised(stage: StageStatus, decision: KnownDecision) -> StageStatus:
    delta, after = decision.action.on(stage.name), decision.after.get(stage.name)
    if after is None or delta.cpu <= 0 or _millicores(stage.cpu) >= after.cpu:
        return stage
    return msgspec.structs.replace(stage, cpu=format_millicores(after.cpu))


def _millicores(cpu: str | None) -> int:
    try:
        return 0 if cpu is None else parse_cpu(cpu)
    except InvalidInput:
        return 0


def _said(text: str, most: int = _SENTENCE) -> str:
    """Somebody else's text as it may be shown in a terminal: bounded, on one line, without control characters."""
    shown = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
