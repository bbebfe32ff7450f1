"""The menu: 6 to 10 candidate actions that the guardrails have already let through, each with its digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controller.decision import Situation
from controller.experience import Outcome
from controller.frontier import GLOBAL, load_bucket
from controller.guardrails import Case, breached
from controller.knowledge import Knowledge
from controller.peak import lasting_rate
from controller.planning import NOTHING, Plan, exchange, violation
from controller.refusing import admitted
from controller.retrieval import Prediction, Recollection
from controller.reward import foresaw, outcome_of, reward_terms
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    GPU_STEPS_MOST,
    HOLD,
    Action,
    StageDelta,
    project_all,
)
from controller.tuning import Tuning

__all__ = ["Candidate", "Digest", "Menu", "compose"]

_RECOLLECTED_MOST: Final = 3
_PLANNED_MOST: Final = 4


@dataclass(frozen=True, slots=True)
class Digest:
    """What is known and predicted of a candidate."""

    p99_s: float
    """Predicted at the present rate with the replicas that are ready, seconds."""
    p99_later_s: float
    """The same once every replica of it is ready."""
    cost_per_hour: float
    reward: float
    """Model's prediction plus what rounds like this one deviated from it."""
    uncertainty: float
    """Standard deviation of that."""
    support: float
    """How many experiences speak for it, by weight."""
    last_outcome: Outcome | None
    """Of the nearest experience with the same action, None if there is none near."""
    safe: bool
    """Predicted to keep P99, utilisation and reserve at the recent peak with the replicas that are ready."""
    violation: float
    """By how much it misses them; 0 if safe."""
    violation_later: float
    """The same once every replica of it is ready, at the rate that lasts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of the menu."""

    number: int
    action: Action
    origin: str
    """exchange, plan, memory, bottleneck, release or hold."""
    digest: Digest
    leads_to_usd: float | None = None
    """Of an exchange: $/h once it is through."""


@dataclass(frozen=True, slots=True)
class Menu:
    """What may be chosen from, and what it was made of."""

    candidates: tuple[Candidate, ...]
    """Numbered from 0 in their order; a prompt shuffles them."""
    recollections: tuple[Recollection, ...]
    """The experiences to show, best first."""
    plan: Plan | None
    """Where the built-in policy wants to go; None while a stage was never measured."""
    bottleneck: str | None
    case: Case

    def __getitem__(self, number: int) -> Candidate:
        return self.candidates[number]

    @property
    def hold(self) -> Candidate:
        """The candidate that changes nothing."""
        return next(each for each in self.candidates if not each.action)

    def find(self, action: Action) -> Candidate | None:
        """The candidate with this action."""
        return next((each for each in self.candidates if each.action == action), None)

    @property
    def safe(self) -> tuple[int, ...]:
        """Numbers of those that change something, are predicted safe, and cost at most a tenth more than holding."""
        ceiling = 1.1 * self.hold.digest.cost_per_hour
        return tuple(
            each.number
            for each in self.candidates
            if each.action and each.digest.safe and each.digest.cost_per_hour <= ceiling
        )


def compose(
    knowledge: Knowledge,
    case: Case,
    plan: Plan | None,
    planned: Iterable[Action],
    recollections: tuple[Recollection, ...],
    context: tuple[float, ...],
    hot: str | None,
    tuning: Tuning,
) -> Menu:
    """Put the menu together: steps of the plan, remembered actions, single knobs at the bottleneck, releases elsewhere, hold.

    Every action passes the guardrails first and is offered as they left it; equal ones are offered once.
    Rises that were refused lately are not offered.
    """
    offered: dict[Action, str] = {}

    def offer(action: Action, origin: str) -> bool:
        left, _ = admitted(action, case)
        if left and left not in offered:
            offered[left] = origin
            return True
        return False

    room_left = max(2, tuning.menu_max - 1)
    for action in planned:
        if sum(origin == "plan" for origin in offered.values()) < _PLANNED_MOST:
            offer(action, "plan")
    swap = plan and exchange(case.model, case.current, plan, case.situation.latency_limit_s, case.situation.room)
    if (
        swap
        and not any(each.on(swap.stage).replicas < 0 for each in offered)
        and admitted(swap.action, case)[0] == swap.action
    ):
        offered[swap.action] = "exchange"
    remembered = 0
    for each in recollections:
        if remembered < _RECOLLECTED_MOST and each.experience.action and len(offered) < room_left:
            remembered += offer(each.experience.action, "memory")
    for action, origin in _single_knobs(case, hot):
        if len(offered) >= room_left:
            break
        offer(action, origin)
    chosen = [*list(offered.items())[:room_left], (HOLD, "hold")]
    digests = _digests(knowledge, case, [action for action, _ in chosen], context, hot, tuning)
    candidates = tuple(
        Candidate(number, action, origin, digest, swap.cost_per_hour if swap and origin == "exchange" else None)
        for number, ((action, origin), digest) in enumerate(zip(chosen, digests, strict=True))
    )
    return Menu(candidates, recollections, plan, hot, case)


def _single_knobs(case: Case, hot: str | None) -> Iterable[tuple[Action, str]]:
    """Rises at the bottleneck; falls elsewhere, the idlest stage first; then rises and falls anywhere."""
    stages = case.situation.view.stages
    busy = {seen.name: max(seen.cpu_utilisation, seen.gpu_utilisation) for seen in case.situation.observation.stages}
    rises = {
        stage.name: [
            StageDelta(stage.name, gpu_milli=GPU_STEP_MILLI)
            if stage.uses_gpu
            else StageDelta(stage.name, cpu=CPU_STEP),
            StageDelta(stage.name, gpu_milli=GPU_STEPS_MOST * GPU_STEP_MILLI)
            if stage.uses_gpu
            else StageDelta(stage.name, replicas=2),
            StageDelta(stage.name, replicas=1),
            *([StageDelta(stage.name, gpu_milli=GPU_STEPS_MOST // 2 * GPU_STEP_MILLI)] if stage.uses_gpu else []),
        ]
        for stage in stages
    }
    falls = {
        stage.name: [
            StageDelta(stage.name, gpu_milli=-GPU_STEP_MILLI)
            if stage.uses_gpu
            else StageDelta(stage.name, cpu=-CPU_STEP),
            StageDelta(stage.name, replicas=-1),
        ]
        for stage in stages
    }
    for delta in rises.get(hot or "", ()):
        yield Action((delta,)), "bottleneck"
    idle_first = sorted((stage.name for stage in stages), key=lambda name: busy.get(name, 0.0))
    for name in idle_first:
        if name != hot:
            for delta in falls[name]:
                yield Action((delta,)), "release"
    for name in idle_first:
        for delta in (*falls[name], *rises[name]):
            yield Action((delta,)), "release" if delta.is_down else "bottleneck"


def _digests(
    knowledge: Knowledge,
    case: Case,
    actions: list[Action],
    context: tuple[float, ...],
    hot: str | None,
    tuning: Tuning,
) -> list[Digest]:
    situation, model, current = case.situation, case.model, case.current
    observation, budget = situation.observation, situation.view.budget_per_hour
    before = outcome_of(observation, budget)
    bucket = GLOBAL if tuning.frontier_scope == "global" else load_bucket(observation.arrivals_per_s)
    frontier = knowledge.frontiers.at(bucket)
    learned = knowledge.memory.predict(context, actions, tuning)
    lasting = min(
        model.arrivals_per_s, tuning.load_margin * lasting_rate(knowledge.learned.peaks, situation.now, tuning)
    )
    digests = []
    for action, lesson in zip(actions, learned, strict=True):
        after = project_all(current, action)
        expected = model.forecast(after, arrivals_per_s=observation.arrivals_per_s, only_ready=True, caution=0.0)
        peak = model.forecast(after, only_ready=True)
        lacking = violation(model, peak, situation.latency_limit_s)
        ratio = min(4.0, expected.p99_s / situation.view.slo_s) if model.complete else before.latency_ratio
        outcome = Outcome(ratio, expected.cost_per_hour / budget)
        terms = reward_terms(outcome, before.latency_ratio, frontier, foresight=foresaw(action, hot), tuning=tuning)
        digests.append(
            Digest(
                p99_s=expected.p99_s,
                p99_later_s=model.forecast(after, arrivals_per_s=observation.arrivals_per_s, caution=0.0).p99_s,
                cost_per_hour=expected.cost_per_hour,
                reward=terms.total + lesson.mean,
                uncertainty=lesson.deviation,
                support=lesson.support,
                last_outcome=_last(knowledge, lesson),
                safe=model.complete and lacking <= NOTHING and not breached(situation),
                violation=lacking,
                violation_later=violation(
                    model, model.forecast(after, arrivals_per_s=lasting), situation.latency_limit_s
                ),
            )
        )
    return digests


def _last(knowledge: Knowledge, lesson: Prediction) -> Outcome | None:
    return None if lesson.nearest is None else knowledge.memory.at(lesson.nearest).outcome


def model_reward(
    situation: Situation, knowledge: Knowledge, p99_s: float, cost_per_hour: float, foresight: bool, tuning: Tuning
) -> float:
    """What the model alone expects as reward: the prior of the kernel mean, stored with the round to learn its residual."""
    observation, budget = situation.observation, situation.view.budget_per_hour
    before = outcome_of(observation, budget)
    bucket = GLOBAL if tuning.frontier_scope == "global" else load_bucket(observation.arrivals_per_s)
    outcome = Outcome(min(4.0, p99_s / situation.view.slo_s), cost_per_hour / budget)
    frontier = knowledge.frontiers.at(bucket)
    return reward_terms(outcome, before.latency_ratio, frontier, foresight=foresight, tuning=tuning).total
