"""The controller's loop: the same against the simulated world and against Kubernetes.

Every 30 s a round per pipeline: observe → conclude the round before → retrieve → probe, model or built-in policy → guardrails →
journal → apply → remember. In between, every two SLOs or so, the reflex. Whatever is away (metrics, model, Redis, API server) costs no
capacity: without metrics or room the round holds, without a model the built-in policy decides, without Redis experiences wait.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from controller import round as rounds
from controller.asking import ask
from controller.decision import Proposal, Situation
from controller.experience import Experience
from controller.frontier import Holders
from controller.guardrails import refusal
from controller.journal import RoundReport, concluded_record, decision_record, outcome_record
from controller.knowledge import Knowledge, stored
from controller.llm.account import Account
from controller.llm.policy import LlmPolicy, Trace
from controller.looking import Looks
from controller.memory.mirror import MirroredMemory
from controller.memory.store import FrontierPoint
from controller.menu import Menu
from controller.policies.in_context import decide
from controller.probing import epsilon
from controller.recalling import OBSERVED_FIELD, STATE_FIELD, Recalled, joined, recall
from controller.reflex import Queues, react, wakes
from controller.resuming import Open, remainder, settled
from controller.rollback import POLICY, kept
from controller.state import HOLD, Action, PipelineView, Rollback, project_all
from controller.tuning import Tuning
from controller.undoing import Undoing
from controller.watcher import Watcher
from controller.worlds.base import World
from sair.errors import ApiUnavailable, MetricsUnavailable, ModelUnavailable, NotFound
from sair.logs import get_logger

__all__ = ["PipelineLoop"]

_log = get_logger("controller")

_RETRY_S: Final = 1.0


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
        pipelines: How many there are in this process: the more, the less often the reflex looks at each.
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
        pipelines: Callable[[], int] = lambda: 1,
    ) -> None:
        self.key = key
        self._world = world
        self._memory = memory
        self._tuning = tuning
        self._model = model
        self._account = Account(key, memory.store)
        self._watcher = watcher
        self._rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        self._writer = writer
        self._looks = Looks(key, world, tuning, pipelines)
        self._knowledge: Knowledge | None = None
        self._recalled = False
        """What Redis knows has been read."""
        self._observed_s = -math.inf
        self._holders = Holders()
        self._reflexes: list[tuple[float, Action]] = []
        self._queues = Queues()
        self._undoing = Undoing(world, memory, tuning, watcher)

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
                await self._memory.forget(self.key)
                return
            if self._knowledge is None:
                await self.recall(view)
            next_round = clock.now() + self._tuning.interval_s
            while clock.now() < next_round and not ended():
                await self._looks.next(view, self._knowledge, next_round)
                # As it is now: mode, SLO and bounds may have changed, and a rollback does not wait for the next round.
                view = await self._view() or view
                if (request := self._undoing.wanted(view)) is not None:
                    await self._roll_back(view, request)
                elif clock.now() < next_round:
                    await self.reflex(view)
            if not ended():
                await self.round(view)

    async def round(self, view: PipelineView) -> RoundReport:
        """Run one round; never raises for what is away, always ends in a journal record."""
        if self._knowledge is None:
            await self.recall(view)
        knowledge = self.knowledge
        if not self._recalled:
            knowledge = await self._recall_late(knowledge, view)
        report = RoundReport(view, knowledge.learned.round, self._world.clock.now(), tuning=self._tuning)
        report.reflexes, self._reflexes = self._reflexes, []
        report.rollback = self._undoing.answer
        try:
            knowledge = await self._observed(knowledge, view, report)
            if view.mode == "off":
                report.problem = "mode is off: observed only"
            else:
                knowledge = await self._decided(knowledge, view, report)
        except MetricsUnavailable as error:
            report.problem, report.missing = f"held: {error}", "metrics"
        except (ApiUnavailable, NotFound) as error:
            report.problem, report.missing = f"held: {error}", "cluster"
        if report.decision is None:
            await self._told(report)
        self._knowledge = knowledge
        await self._save([report.experience] if report.experience is not None else [], knowledge)
        if self._watcher is not None:
            await self._watcher.round_ended(report)
        return report

    async def reflex(self, view: PipelineView) -> Action:
        """Raise what takes effect at once where a queue builds up; hold where anything is unknown, or somebody wants it held."""
        knowledge = self._knowledge
        if knowledge is None or view.mode != "auto" or view.held(self._world.clock.now()):
            return HOLD
        try:
            gauges = await self._world.gauges(self.key, self._looks.every_s(view))
            queued = self._queues.seen(self._world.clock.now(), gauges)
            if not wakes(knowledge.learned, view, gauges, self._tuning):
                return HOLD
            room = await self._world.room(self.key)
            action = react(knowledge.learned, view, gauges, room, self._tuning, queued)
            if not action:
                return HOLD
            current = {gauge.name: gauge.allocation for gauge in gauges}
            wanted = project_all(current, action)
            changed = {delta.stage: wanted[delta.stage] for delta in action.deltas}
            await self._world.apply(self.key, changed, reason="reflex: a queue builds up, or a known burst begins")
        except (MetricsUnavailable, ApiUnavailable, NotFound) as error:
            _log.warning("the reflex holds", pipeline=self.key, problem=str(error))
            return HOLD
        self._queues.changed()
        now = self._world.clock.now()
        self._knowledge = rounds.reflexed(knowledge, action, now, self._tuning)
        self._reflexes.append((now, action))
        if self._watcher is not None:
            await self._watcher.reflexed(view, now, action)
        return action

    async def _roll_back(self, view: PipelineView, request: Rollback) -> None:
        knowledge = self.knowledge
        report = RoundReport(view, knowledge.learned.round, self._world.clock.now(), tuning=self._tuning)
        report.reflexes = self._reflexes
        if not await self._undoing.carry_out(request, report):
            return
        self._reflexes = []
        self._knowledge = rounds.undone(knowledge, report.round, report.time_s, self._tuning)
        await self._save([], self._knowledge)
        if self._watcher is not None:
            await self._watcher.round_ended(report)

    async def _view(self) -> PipelineView | None:
        while True:
            try:
                return await self._world.view(self.key)
            except ApiUnavailable as error:
                _log.warning("the pipeline cannot be looked at; trying again", problem=str(error))
                await self._world.clock.sleep(_RETRY_S)

    async def recall(self, view: PipelineView) -> None:
        """Begin with what is stored, and with what an earlier leader did after its last save: its last decision is settled.

        Args:
            view: The pipeline as it is now.
        """
        recalled = await self._read(view)
        self._recalled = recalled.whole
        taken = recalled.taken
        self._observed_s = taken.observed_s
        self._hold((*recalled.stored.memory.experiences, *taken.experiences))
        self._knowledge = recalled.stored
        if taken.knowledge is recalled.stored:
            return
        for each in taken.untold:
            await self._memory.record(self.key, concluded_record(each))
        knowledge, report = taken.knowledge, None
        if taken.open is not None:
            knowledge, report = await self._settled(knowledge, taken.open, view)
        self._knowledge = knowledge
        await self._save(taken.experiences, knowledge)
        if report is not None and self._watcher is not None:
            await self._watcher.round_ended(report)

    async def _recall_late(self, knowledge: Knowledge, view: PipelineView) -> Knowledge:
        """Redis was away at the start: join what it knows, once it is back, with what was learned meanwhile."""
        recalled = await self._read(view)
        if not recalled.whole:
            return knowledge
        self._recalled = True
        taken = recalled.taken
        self._hold((*recalled.stored.memory.experiences, *taken.experiences))
        _log.info("Redis is back; what it knows is taken in", pipeline=self.key, rounds=taken.knowledge.learned.round)
        learned = joined(taken.knowledge.learned, knowledge.learned, self._tuning)
        return replace(taken.knowledge, learned=learned)

    async def _read(self, view: PipelineView) -> Recalled:
        decided = await self._world.decided(self.key)
        return await recall(self._memory, view, self._tuning, self._writer, decided)

    def _hold(self, experiences: Iterable[Experience]) -> None:
        for each in experiences:
            self._holders = self._holders.add(each.id, each.load_bucket, each.outcome)

    async def _settled(self, knowledge: Knowledge, waiting: Open, view: PipelineView) -> tuple[Knowledge, RoundReport]:
        """Ask for what is missing of a decision whose leader is gone, and record what became of it."""
        decision, clock = waiting.decision, self._world.clock
        while True:
            try:
                current, room = await self._world.allocations(self.key), await self._world.room(self.key)
                break
            except ApiUnavailable as error:
                _log.warning("an earlier leader's decision cannot be settled yet", problem=str(error))
                await clock.sleep(_RETRY_S)
        rest = remainder(waiting, current, view, room, knowledge, clock.now(), self._tuning)
        report = RoundReport(waiting.situation.view, decision.round, decision.time_s, decision=decision)
        report.observation, report.tuning = waiting.situation.observation, self._tuning
        report.resumed = f"settled by another controller after {max(0.0, clock.now() - decision.time_s):.0f} s"
        answers = await ask(self._world, self._watcher, report, rest.action, project_all(current, rest.action))
        report.outcomes = settled(decision, current, rest, answers)
        report.answers = () if report.unreachable else answers
        await self._memory.record(self.key, outcome_record(report))
        _log.info(
            "took over a round",
            pipeline=self.key,
            round=decision.round,
            action=str(decision.action),
            now=str(rest.action),
        )
        knowledge = rounds.applied(
            knowledge, waiting.situation, decision, report.outcomes, self._tuning, answers=report.answers
        )
        return knowledge, report

    async def _observed(self, knowledge: Knowledge, view: PipelineView, report: RoundReport) -> Knowledge:
        observation = await self._world.observe(self.key, self._tuning.window_s)
        report.observation = observation
        report.time_s = observation.time_s
        knowledge, report.experience = rounds.take_in(knowledge, view, observation, self._tuning, writer=self._writer)
        self._observed_s = observation.time_s
        self._hold([report.experience] if report.experience is not None else [])
        return knowledge

    async def _decided(self, knowledge: Knowledge, view: PipelineView, report: RoundReport) -> Knowledge:
        assert report.observation is not None  # noqa: S101  # _observed sets it or raises
        room = await self._world.room(self.key)
        situation = Situation(view, report.observation, room, report.time_s)
        report.room, report.learned = room, knowledge.learned
        menu = rounds.candidates(knowledge, situation, self._tuning)
        report.menu = menu
        # What the reflex goes by while a model thinks.
        self._knowledge = knowledge
        proposal = await self._proposal(knowledge, menu, report)
        knowledge = _as_frozen(knowledge, self._knowledge)
        if report.trace is not None and (moved := await self._moved(situation)):
            report.fallback = f"the reply came too late: {moved} changed while the model was asked"
            _log.warning("the language model's reply is discarded", pipeline=self.key, problem=report.fallback)
            proposal = Proposal(HOLD, "hold", report.fallback)
        decision = rounds.admit(knowledge, menu, proposal, self._tuning)
        report.decision = decision
        # Before anything is asked of the world: whoever leads next finds what was decided and what it rests on.
        await self._told(report)
        if view.mode != "auto":
            return rounds.applied(knowledge, situation, replace(decision, action=HOLD), (), self._tuning)
        if decision.action:
            report.outcomes = await ask(self._world, self._watcher, report, decision.action, decision.after)
            await self._memory.record(self.key, outcome_record(report))
        return rounds.applied(knowledge, situation, decision, report.outcomes, self._tuning, answers=report.answers)

    async def _moved(self, situation: Situation) -> str:
        """What is not any more as the model was told: seconds have passed. Empty if all is."""
        view = await self._world.view(self.key)
        if view is None:
            raise NotFound(f"{self.key} is gone")
        if view != situation.view:
            return "the pipeline's objectives or stages"
        if dict(await self._world.allocations(self.key)) != situation.observation.allocations:
            return "the allocation"
        return ""

    async def _told(self, report: RoundReport) -> None:
        """The round's record first: how the round before ended follows from it, not the other way round."""
        await self._memory.record(self.key, decision_record(report))
        if report.experience is not None:
            await self._memory.record(self.key, concluded_record(report.experience))

    async def _proposal(self, knowledge: Knowledge, menu: Menu, report: RoundReport) -> Proposal:
        if report.view.held(report.time_s):
            return Proposal(HOLD, POLICY, kept(report.view))
        probe = rounds.probe(knowledge, menu, self._tuning, self._rng)
        if probe is not None:
            return probe
        if self._model is not None:
            report.trace = Trace()
            try:
                asked = self._model.propose(
                    knowledge, menu, lambda action: refusal(action, menu.case), self._rng, report.trace, self._account
                )
                return await self._reacting_until(asked, report.view)
            except ModelUnavailable as error:
                report.fallback = str(error)
                _log.warning("the language model did not decide", pipeline=self.key, problem=str(error))
        return decide(menu)

    async def _reacting_until(self, answer: Coroutine[Any, Any, Proposal], view: PipelineView) -> Proposal:
        """Wait for a model, and let the reflex go on as long as the world's time does."""
        clock = self._world.clock
        task, looked_at = asyncio.create_task(answer, name=f"model {self.key}"), clock.now()
        try:
            watch = await self._looks.watch(view, self._knowledge)
            while not (await asyncio.wait({task}, timeout=watch.step_s))[0]:
                waited_s = clock.now() - looked_at
                if waited_s >= watch.every_s or (waited_s > 0 and await self._looks.begins(watch)):
                    looked_at = clock.now()
                    await self.reflex(view)
                    watch = await self._looks.watch(view, self._knowledge)
        finally:
            task.cancel()
        return task.result()

    async def _save(self, experiences: Sequence[Experience], knowledge: Knowledge) -> None:
        """Keep experiences and state together: a state that counts a round without its experience would lose it."""
        # Before Redis was read its state is not ours to write over.
        state = self._state(knowledge) if self._recalled else {}
        frontier = {name: FrontierPoint(outcome, bucket) for name, bucket, outcome in self._holders}
        for evicted in await self._memory.save(experiences, self.key, state, frontier):
            knowledge.memory.remove(evicted)

    def _state(self, knowledge: Knowledge) -> dict[str, str]:
        learned = knowledge.learned
        return {
            "round": str(learned.round),
            "epsilon": f"{epsilon(learned.round, self._tuning):.4f}",
            "last_action": str(learned.last_action),
            "updated_s": repr(self._world.clock.now()),
            OBSERVED_FIELD: repr(self._observed_s),
            STATE_FIELD: msgspec.json.encode(stored(knowledge)).decode(),
        }


def _as_frozen(knowledge: Knowledge, by: Knowledge) -> Knowledge:
    """With what the reflex froze meanwhile."""
    return replace(knowledge, learned=replace(knowledge.learned, frozen_until_s=by.learned.frozen_until_s))
