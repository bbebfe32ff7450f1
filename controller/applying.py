"""What is known once the world was asked, by a round, by the reflex or for a rollback. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from controller.decision import Decision, Situation
from controller.features import context_vector
from controller.granting import granted_action, granted_allocations
from controller.knowledge import Knowledge, Pending, refused
from controller.plausible import plausible_rate
from controller.reflex import freeze
from controller.reward import outcome_of
from controller.state import HOLD, Action, KnobOutcome
from controller.tuning import Tuning

__all__ = ["Reflex", "applied", "reacted", "reflexed", "undone"]


class Reflex(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the reflex did before a round."""

    time_s: float
    action: str
    """As granted; "hold" where nothing was."""
    short: tuple[KnobOutcome, ...] = ()
    """What was not granted in full, and why."""

    @property
    def acted(self) -> bool:
        """Something was granted."""
        return self.action != str(HOLD)


def applied(
    knowledge: Knowledge,
    situation: Situation,
    decision: Decision,
    outcomes: Sequence[KnobOutcome],
    tuning: Tuning,
    *,
    answers: Sequence[KnobOutcome] | None = None,
) -> Knowledge:
    """After the world was asked: the round waits for its outcome, ε decays, what was refused is left alone for a while.

    Args:
        knowledge: Of before.
        situation: Of the decision.
        decision: What was asked for; in recommend mode pass one with HOLD.
        outcomes: What became of each knob.
        tuning: As always.
        answers: What the world itself said of them, if not all of it: what it was never asked for it has not refused.
    """
    observation, learned = situation.observation, knowledge.learned
    granted = granted_action(decision.action, outcomes)
    pending = Pending(
        round=decision.round,
        time_s=situation.now,
        policy=decision.policy,
        context=context_vector(observation, situation.view),
        before=tuple(sorted(granted_allocations(observation).items())),
        action=granted,
        latency_ratio=outcome_of(observation, situation.view.budget_per_hour).latency_ratio,
        arrivals_per_s=plausible_rate(observation.arrivals_per_s),
        predicted_reward=decision.predicted_reward if granted == decision.action else None,
        bottleneck=decision.bottleneck,
    )
    refusals = tuple(each for each in learned.refusals if each.until_round > decision.round + 1)
    learned = replace(
        learned,
        round=decision.round + 1,
        pending=pending,
        last_action=granted,
        refusals=(*refusals, *refused(list(outcomes if answers is None else answers), decision.round)),
    )
    return replace(knowledge, learned=learned)


def reflexed(knowledge: Knowledge, action: Action, now: float, tuning: Tuning) -> Knowledge:
    """After the reflex acted: downward steps are frozen for a while."""
    return replace(knowledge, learned=freeze(knowledge.learned, now, tuning)) if action else knowledge


def reacted(knowledge: Knowledge, reflexes: Iterable[Reflex], tuning: Tuning) -> Knowledge:
    """What the reflex did since the round before, as a round begins with it: downward steps are frozen, and what it was refused is left
    alone for as long as if that round had been refused it.

    Args:
        knowledge: Of before.
        reflexes: Oldest first.
        tuning: As always.
    """
    learned = knowledge.learned
    for each in reflexes if tuning.reflex else ():
        learned = freeze(learned, each.time_s, tuning) if each.acted else learned
        learned = replace(learned, refusals=(*learned.refusals, *refused(list(each.short), learned.round - 1)))
    return replace(knowledge, learned=learned)


def undone(knowledge: Knowledge, number: int, time_s: float, tuning: Tuning) -> Knowledge:
    """After a rollback: it counts as a round, and nobody will see how the one before it would have ended.

    Nothing falls for a while, and the window it fell into is not measured by: knobs have moved in it.

    Args:
        knowledge: Of before.
        number: Of its round.
        time_s: When it was carried out, world time, seconds.
        tuning: As always.
    """
    learned = freeze(knowledge.learned, time_s, tuning)
    return replace(
        knowledge,
        learned=replace(learned, round=max(learned.round, number + 1), pending=None, last_action=HOLD),
    )
