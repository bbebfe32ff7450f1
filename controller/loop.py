"""The controller's loop: the same against the simulated world and against Kubernetes.

Every 30 s a round per pipeline: observe → conclude the round before → retrieve → probe, model or built-in policy → guardrails →
journal → apply → remember. Every 2 s in between the reflex. Whatever is away (metrics, model, Redis, API server) costs no capacity:
without metrics or room the round holds, without a model the built-in policy decides, without Redis experiences wait.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import msgspec
import numpy as np

from controller import round as rounds
from controller.decision import Decision, Proposal, Situation
from controller.features import context_length
from controller.frontier import point_of
from controller.guardrails import judge
from controller.journal import RoundReport, concluded_record, decision_record, outcome_record
from controller.knowledge import Knowledge, learn, restore, stored
from controller.llm.policy import LlmPolicy, Trace
from controller.memory.mirror import MirroredMemory
from controller.memory.store import FrontierPoint
from controller.menu import Menu
from controller.policies.in_context import decide
from controller.probing import epsilon
from controller.state import HOLD, Action, PipelineView, project_all
from controller.tuning import Tuning
from controller.worlds.base import World
from sair.errors import ApiUnavailable, InvalidInput, MetricsUnavailable, ModelUnavailable, NotFound
from sair.logs import get_logger

__all__ = ["PipelineLoop", "Watcher"]

_log = get_logger("controller")

_STATE_FIELD = "learned_json"


class Watcher(Protocol):
    """Somebody who wants to see every round: a live view, the Pipeline's status."""

    async def round_ended(self, report: RoundReport) -> None:
        """Called after each round, decided or held."""
        ...

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Called after the reflex acted."""
        ...


class PipelineLoop:
    """Scales one pipeline.

    Args:
        key: ``namespace/name``.
        world: Where the pipeline runs.
        memory: Experiences, state and journal.
        tuning: The decision core's parameters.
        model: The language model, None for the built-in policy alone.
        watcher: Sees every round.
        seed: Of the probes and of the menu's order; each pipeline has a stream of its own.
        writer: Tells the experience ids of several writers apart.
    """

    def __init__(
        self,
        key: str,
        world: World,
        memory: MirroredMemory,
        tuning: Tuning,
        *,
        model: LlmPolicy | None = None,
        watcher: Watcher | None = None,
        seed: int = 0,
        writer: str = "0",
    ) -> None:
        self.key = key
        self._world = world
        self._memory = memory
        self._tuning = tuning
        self._model = model
        self._watcher = watcher
        self._rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        self._writer = writer
        self._knowledge: Knowledge | None = None
        self._reflexes: list[tuple[float, Action]] = []
        self._queued: dict[str, float] = {}

    @property
    def knowledge(self) -> Knowledge:
        """What is known of the pipeline now.

        Raises:
            RuntimeError: Before the first round.
        """
        if self._knowledge is None:
            raise RuntimeError("nothing is known before the first round")
        return self._knowledge

    async def run(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Run rounds and the reflex until told to end, or until the pipeline is gone."""
        clock = self._world.clock
        while not ended():
            view = await self._view()
            if view is None:
                _log.info("the pipeline is gone", pipeline=self.key)
                return
            if self._knowledge is None:
                self._knowledge = await self._recall(view)
            next_round = clock.now() + self._tuning.interval_s
            while clock.now() < next_round and not ended():
                await clock.sleep(min(self._tuning.reflex_interval_s, next_round - clock.now()))
                if clock.now() < next_round and view.mode == "auto":
                    await self.reflex(view)
            if not ended():
                # As it is now: mode, SLO and bounds may have changed since the round before.
                await self.round(await self._view() or view)

    async def round(self, view: PipelineView) -> RoundReport:
        """Run one round; never raises for what is away, always ends in a journal record."""
        knowledge = self._knowledge or await self._recall(view)
        report = RoundReport(view, knowledge.learned.round, self._world.clock.now(), tuning=self._tuning)
        report.reflexes, self._reflexes = self._reflexes, []
        try:
            knowledge = await self._observed(knowledge, view, report)
            if view.mode == "off":
                report.problem = "mode is off: observed only"
            else:
                knowledge = await self._decided(knowledge, view, report)
        except (MetricsUnavailable, ApiUnavailable, NotFound) as error:
            report.problem = f"held: {error}"
        if report.decision is None:
            await self._memory.record(self.key, decision_record(report))
        self._knowledge = knowledge
        await self._memory.save(report.experience, self.key, self._state(knowledge), self._frontier(knowledge))
        if self._watcher is not None:
            await self._watcher.round_ended(report)
        return report

    async def reflex(self, view: PipelineView) -> Action:
        """Raise what takes effect at once where a queue builds up; hold where anything is unknown."""
        knowledge = self._knowledge
        if knowledge is None:
            return HOLD
        try:
            gauges = await self._world.gauges(self.key)
            room = await self._world.room(self.key)
            action = rounds.react(knowledge.learned, view, gauges, room, self._tuning, self._queued)
            self._queued = {gauge.name: gauge.queue_depth for gauge in gauges}
            if not action:
                return HOLD
            current = {gauge.name: gauge.allocation for gauge in gauges}
            wanted = project_all(current, action)
            changed = {delta.stage: wanted[delta.stage] for delta in action.deltas}
            await self._world.apply(self.key, changed, reason="reflex: a queue builds up")
        except (MetricsUnavailable, ApiUnavailable, NotFound) as error:
            _log.warning("the reflex holds", pipeline=self.key, problem=str(error))
            return HOLD
        now = self._world.clock.now()
        self._knowledge = rounds.reflexed(knowledge, action, now, self._tuning)
        self._reflexes.append((now, action))
        if self._watcher is not None:
            await self._watcher.reflexed(view, now, action)
        return action

    async def _view(self) -> PipelineView | None:
        while True:
            try:
                views = await self._world.pipelines()
            except ApiUnavailable as error:
                _log.warning("the pipelines cannot be listed; trying again", problem=str(error))
                await self._world.clock.sleep(self._tuning.reflex_interval_s)
                continue
            return next((view for view in views if view.key == self.key), None)

    async def _recall(self, view: PipelineView) -> Knowledge:
        loaded = await self._memory.load(self.key)
        # One of another set of stages would fix the memory's dimension and keep every new one out.
        length = context_length(view)
        experiences = [each for each in loaded.experiences if len(each.context) == length]
        raw = None
        try:
            if _STATE_FIELD in loaded.state:
                raw = msgspec.json.decode(loaded.state[_STATE_FIELD])
            return restore(view, raw, experiences, self._tuning)
        except (InvalidInput, msgspec.DecodeError, TypeError, RecursionError) as error:
            _log.error(
                "the controller's state in Redis cannot be read; starting from the experiences",
                pipeline=self.key,
                problem=str(error),
            )
            return restore(view, None, experiences, self._tuning)

    async def _observed(self, knowledge: Knowledge, view: PipelineView, report: RoundReport) -> Knowledge:
        observation = await self._world.observe(self.key, self._tuning.window_s)
        report.observation = observation
        report.time_s = observation.time_s
        experience = rounds.conclude(knowledge, observation, view, self._tuning, writer=self._writer)
        if experience is not None:
            knowledge, surprisal = learn(knowledge, experience, self._tuning)
            experience = replace(experience, surprisal=surprisal)
            report.experience = experience
            knowledge = replace(knowledge, learned=replace(knowledge.learned, pending=None))
            await self._memory.record(self.key, concluded_record(experience))
        return rounds.observe(knowledge, view, observation, self._tuning)

    async def _decided(self, knowledge: Knowledge, view: PipelineView, report: RoundReport) -> Knowledge:
        assert report.observation is not None  # noqa: S101  # _observed sets it or raises
        room = await self._world.room(self.key)
        situation = Situation(view, report.observation, room, report.time_s)
        report.room, report.learned = room, knowledge.learned
        menu = rounds.candidates(knowledge, situation, self._tuning)
        report.menu = menu
        proposal = await self._proposal(knowledge, menu, report)
        decision = rounds.admit(knowledge, menu, proposal, self._tuning)
        report.decision = decision
        # Before anything is asked of the world: a leader that dies now leaves a trace of what it was about to do.
        await self._memory.record(self.key, decision_record(report))
        if decision.action and view.mode == "auto":
            changed = {delta.stage: decision.after[delta.stage] for delta in decision.action.deltas}
            report.outcomes = await self._world.apply(self.key, changed, reason=_reason(decision))
            await self._memory.record(self.key, outcome_record(report))
        done = decision if view.mode == "auto" else replace(decision, action=HOLD)
        return rounds.applied(knowledge, situation, done, report.outcomes, self._tuning)

    async def _proposal(self, knowledge: Knowledge, menu: Menu, report: RoundReport) -> Proposal:
        probe = rounds.probe(knowledge, menu, self._tuning, self._rng)
        if probe is not None:
            return probe
        if self._model is not None:
            report.trace = Trace()
            try:
                return await self._model.propose(
                    knowledge, menu, lambda action: _refusal(action, menu), self._rng, report.trace
                )
            except ModelUnavailable as error:
                report.fallback = str(error)
                _log.warning("the language model did not decide", pipeline=self.key, problem=str(error))
        return decide(menu)

    def _state(self, knowledge: Knowledge) -> dict[str, str]:
        learned = knowledge.learned
        return {
            "round": str(learned.round),
            "epsilon": f"{epsilon(learned.round, self._tuning):.4f}",
            "last_action": str(learned.last_action),
            "updated_s": repr(self._world.clock.now()),
            _STATE_FIELD: msgspec.json.encode(stored(knowledge)).decode(),
        }

    @staticmethod
    def _frontier(knowledge: Knowledge) -> Mapping[str, FrontierPoint]:
        points = {}
        for experience in knowledge.memory.experiences:
            if point_of(experience.outcome) in knowledge.frontiers.at(experience.load_bucket).points:
                points[experience.id] = FrontierPoint(experience.outcome, experience.load_bucket)
        return points


def _refusal(action: Action, menu: Menu) -> str | None:
    _, verdicts = judge(action, menu.case)
    return next((f"{verdict.rule}: {verdict.reason}" for verdict in verdicts if verdict.outcome == "rejected"), None)


def _reason(decision: Decision) -> str:
    return f"round {decision.round} by {decision.policy}: {decision.action}"
