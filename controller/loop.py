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
from controller.journal import RoundReport, decision_record, outcome_record
from controller.knowledge import Knowledge, stored
from controller.llm.account import Account
from controller.llm.policy import LlmPolicy, Trace
from controller.looking import Looks
from controller.memory.mirror import MirroredMemory
from controller.memory.store import FrontierPoint
from controller.menu import Menu
from controller.policies.in_context import decide
from controller.probing import epsilon
from controller.reacting import Reacting
from controller.recalling import OBSERVED_FIELD, STATE_FIELD, Recalled, delayed, joined, recall
from controller.refusing import objection
from controller.resuming import TakenOver
from controller.rollback import POLICY, kept
from controller.settling import Seen, finish, settle, tell
from controller.state import HOLD, Action, PipelineView, Rollback
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
        self._began_s = -math.inf
        self._first: Seen | None = None
        """What was observed first while that could not be read."""
        self._observed_s = -math.inf
        self._holders = Holders()
        self._reacting = Reacting(key, world, tuning)
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
        report.reflexes, report.rollback = self._reacting.taken(), self._undoing.answer
        knowledge = rounds.reacted(knowledge, report.reflexes, self._tuning)
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
        action = await self._reacting.act(knowledge.learned, view, self._looks.every_s(view))
        now = self._world.clock.now()
        self._knowledge = rounds.reflexed(knowledge, action, now, self._tuning)
        if action and self._watcher is not None:
            await self._watcher.reflexed(view, now, action)
        return action

    async def _roll_back(self, view: PipelineView, request: Rollback) -> None:
        knowledge = self.knowledge
        report = RoundReport(view, knowledge.learned.round, self._world.clock.now(), tuning=self._tuning)
        report.reflexes = list(self._reacting.done)
        if not await self._undoing.carry_out(request, report):
            return
        self._reacting.taken()
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
        self._began_s = self._world.clock.now()
        recalled = await self._read(view, self._writer)
        self._recalled = recalled.whole
        self._hold(recalled.stored.memory.experiences)
        self._knowledge, self._observed_s = recalled.stored, recalled.taken.observed_s
        if recalled.taken.knowledge is not recalled.stored:
            self._knowledge = await self._take_over(recalled.taken, view)

    async def _take_over(self, taken: TakenOver, view: PipelineView, own: Knowledge | None = None) -> Knowledge:
        self._hold(taken.experiences)
        await tell(self._memory, self.key, taken.untold)
        knowledge, report = taken.knowledge, None
        if taken.open is not None:
            knowledge, report = await settle(
                self._world, self._watcher, self._memory, knowledge, taken.open, view, self._tuning
            )
        if own is not None:
            knowledge = replace(knowledge, learned=delayed(knowledge.learned, own.learned))
        await self._save(taken.experiences, knowledge)
        if report is not None and self._watcher is not None:
            await self._watcher.round_ended(report)
        return knowledge

    async def _recall_late(self, own: Knowledge, view: PipelineView) -> Knowledge:
        """Redis was away at the start: once it is back, finish what an earlier leader began, and join what Redis knows with what was
        learned meanwhile."""
        # Rounds may have been counted without knowing of the earlier leader's: its experiences must not be taken for ours.
        writer = f"{self._writer}-late"
        recalled = await self._read(view, writer, self._began_s)
        if not recalled.whole:
            return own
        self._recalled = True
        taken = recalled.taken
        _log.info("Redis is back; what it knows is taken in", pipeline=self.key, rounds=taken.knowledge.learned.round)
        self._hold(recalled.stored.memory.experiences)
        if self._first is None:
            self._observed_s = taken.observed_s
            return await self._take_over(taken, view, own)
        knowledge, experiences = await finish(self._memory, taken, self._first, self._tuning, writer=writer)
        self._hold(experiences)
        knowledge = replace(knowledge, learned=joined(knowledge.learned, own.learned, self._tuning))
        await self._save(experiences, knowledge)
        return knowledge

    async def _read(self, view: PipelineView, writer: str, before_s: float = math.inf) -> Recalled:
        decided = await self._world.decided(self.key)
        return await recall(self._memory, view, self._tuning, writer, decided, before_s)

    def _hold(self, experiences: Iterable[Experience]) -> None:
        for each in experiences:
            self._holders = self._holders.add(each.id, each.load_bucket, each.outcome)

    async def _observed(self, knowledge: Knowledge, view: PipelineView, report: RoundReport) -> Knowledge:
        observation = await self._world.observe(self.key, self._tuning.window_s)
        report.observation = observation
        report.time_s = observation.time_s
        knowledge, report.experience = rounds.take_in(knowledge, view, observation, self._tuning, writer=self._writer)
        self._observed_s = observation.time_s
        if not self._recalled and self._first is None:
            self._first = Seen(view, observation)
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
            proposal = Proposal(HOLD, "hold", f"{moved} changed while the language model was asked")
            if not report.fallback:
                report.discarded = True
                report.fallback = f"the reply came too late: {moved} changed while the model was asked"
                _log.warning("the language model's reply is discarded", pipeline=self.key, problem=report.fallback)
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
        await tell(self._memory, self.key, [report.experience] if report.experience is not None else [])

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
                    knowledge, menu, lambda action: objection(action, menu.case), self._rng, report.trace, self._account
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
                    view = await self._looked(view)
                    watch = await self._looks.watch(view, self._knowledge)
        finally:
            task.cancel()
        return task.result()

    async def _looked(self, view: PipelineView) -> PipelineView:
        """A look of the reflex, at the pipeline as it is now; none while that cannot be known."""
        try:
            view = await self._world.view(self.key) or view
        except ApiUnavailable as error:
            _log.warning("the reflex holds", pipeline=self.key, problem=str(error))
        else:
            await self.reflex(view)
        return view

    async def _save(self, experiences: Sequence[Experience], knowledge: Knowledge) -> None:
        """Keep experiences and state together: a state that counts a round without its experience would lose it."""
        # Before Redis was read its state and its frontier are not ours to write over.
        state = self._state(knowledge) if self._recalled else {}
        frontier = (
            {name: FrontierPoint(outcome, bucket) for name, bucket, outcome in self._holders}
            if self._recalled
            else None
        )
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
