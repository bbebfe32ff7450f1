"""Recorded rounds decided again, offline, by another policy or with other parameters.

The world stays as it was recorded: each round is offered what it saw then, and learns what was then done and how it ended, so that
a difference is one round's difference and does not grow into the next. What a whole run would have come to needs the simulator.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

import msgspec

from controller import round as rounds
from controller.decision import Decision, Proposal, Situation
from controller.experience import Experience
from controller.features import context_length
from controller.journal import fingerprint
from controller.knowledge import Knowledge, begin, restore, stored
from controller.memory.codec import LARGEST
from controller.menu import Menu
from controller.policies.hold import hold
from controller.policies.in_context import decide
from controller.recorded import RecordedRound
from controller.rollback import POLICY
from controller.state import HOLD, Action, Observation, PipelineView, difference
from controller.tuning import Tuning
from sair.errors import EntryError, InvalidInput

__all__ = ["POLICIES", "Comparison", "Replay", "Skipped", "parse_changes", "replay", "tuned"]

Policy = Callable[[Menu], Proposal]

POLICIES: Final[Mapping[str, Policy]] = {
    "in-context": decide,
    "hold": lambda menu: hold(menu, "replayed with the policy that changes nothing"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One round, then and now. What is predicted of both rests on the same model, that of the replay."""

    round: int
    arrivals_per_s: float
    policy: str
    """Who decided then."""
    done: Action
    would: Action
    reason: str
    done_p99_s: float | None
    would_p99_s: float | None
    done_cost_per_hour: float | None
    would_cost_per_hour: float | None
    faithful: bool | None
    """The learned state was rebuilt exactly as it was; None where parameters were changed or none was recorded."""

    @property
    def differs(self) -> bool:
        """Another action would be taken."""
        return self.done != self.would


@dataclass(frozen=True, slots=True)
class Skipped:
    """A round that could not be decided again."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """All rounds, oldest first."""

    comparisons: tuple[Comparison, ...]
    skipped: tuple[Skipped, ...]

    @property
    def different(self) -> int:
        """In how many rounds another action would be taken."""
        return sum(each.differs for each in self.comparisons)


def parse_changes(settings: Iterable[str]) -> dict[str, str]:
    """Read ``name=value`` pairs; nested names have a dot, such as ``prices.gpu=3``.

    Raises:
        InvalidInput: If a pair has no ``=`` or names no parameter.
    """
    changes = {}
    known = _parameters()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInput("--set", setting, "name=value")
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or sorted(known)
            raise InvalidInput("--set", name, f"a parameter such as {', '.join(near)}")
        changes[name] = value
    return changes


def tuned(plain: Mapping[str, Any], changes: Mapping[str, str]) -> Tuning:
    """The parameters of a recorded round with some changed.

    Args:
        plain: Those that were not at their defaults, as recorded.
        changes: As ``parse_changes`` gives them.

    Raises:
        InvalidInput: Names a parameter that has no such value.
    """
    tuning = _converted("tuning_json", plain)
    for name, value in changes.items():
        first, _, second = name.partition(".")
        old = getattr(tuning, first)
        new: Any = None if value == "none" else value
        try:
            tuning = _converted(f"--set {name}", msgspec.to_builtins(tuning) | {first: _nested(old, second, new)})
        except InvalidInput as error:
            raise InvalidInput("--set", f"{name}={value}", error.allowed) from error
    return tuning


def replay(
    recorded: Sequence[RecordedRound],
    experiences: Sequence[Experience],
    *,
    policy: Policy = decide,
    changes: Mapping[str, str] | None = None,
) -> Replay:
    """Decide recorded rounds again.

    Args:
        recorded: Oldest first. It begins at the first round that carries the learned state; without one, at the first with nothing learned.
        experiences: Of the pipeline; those of rounds before the first one replayed are its memory.
        policy: Chooses from each menu; the guardrails have their say as always.
        changes: Parameters to change, as ``parse_changes`` gives them.
    """
    changed = changes or {}
    tuned({}, changed)
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    start = next((place for place, each in enumerate(recorded) if "learned_json" in each.decision), 0)
    skipped += [
        Skipped(each.round, "before the first record that carries what was learned") for each in recorded[:start]
    ]
    knowledge: Knowledge | None = None
    for place, each in enumerate(recorded[start:], start):
        repeated = place + 1 < len(recorded) and recorded[place + 1].round == each.round
        try:
            knowledge, comparison = _again(knowledge, each, experiences, policy, changed, repeated)
        except (EntryError, InvalidInput) as error:
            skipped.append(Skipped(each.round, str(error)))
        except (ValueError, ArithmeticError, LookupError) as error:
            # Numbers that no controller wrote: the record is not to be trusted, the others are.
            skipped.append(Skipped(each.round, f"it cannot be computed: {type(error).__name__}: {error}"))
        else:
            if comparison is None:
                skipped.append(Skipped(each.round, _why_not(each)))
            else:
                comparisons.append(comparison)
    return Replay(tuple(comparisons), tuple(skipped))


def _why_not(each: RecordedRound) -> str:
    if each.decided and each.text("policy") == POLICY:
        return "a rollback that somebody asked for"
    return each.text("problem")[:200] or "nothing was decided then"


def _again(
    knowledge: Knowledge | None,
    each: RecordedRound,
    experiences: Sequence[Experience],
    policy: Policy,
    changes: Mapping[str, str],
    repeated: bool,
) -> tuple[Knowledge | None, Comparison | None]:
    view, observation = each.view(), each.observation()
    if view is None or observation is None:
        if knowledge is not None:
            tuning = tuned(each.tuning(), changes)
            knowledge = (
                rounds.undone(knowledge, each.round, each.time_s, tuning)
                if each.decided
                else rounds.reacted(knowledge, each.reflexes(), tuning)
            )
        return knowledge, None
    tuning = tuned(each.tuning(), changes)
    if knowledge is None:
        knowledge = _begun(each, view, observation, experiences, tuning)
    else:
        knowledge = _observed(knowledge, each, view, observation, tuning)
    faithful = _faithful(knowledge, each, changes)
    if faithful is False:
        checkpoint = each.learned()
        if checkpoint is not None:
            knowledge, faithful = replace(knowledge, learned=checkpoint), True
    room = each.room()
    if not each.decided or room is None:
        return knowledge, None
    situation = Situation(view, observation, room, observation.time_s)
    menu = rounds.candidates(knowledge, situation, tuning)
    would = rounds.admit(knowledge, menu, policy(menu), tuning)
    done = _done(knowledge, menu, each, tuning)
    if not repeated:
        granted = done if view.mode == "auto" else replace(done, action=HOLD)
        knowledge = rounds.applied(knowledge, situation, granted, each.outcomes() or (), tuning, answers=each.answers())
    comparison = Comparison(
        round=each.round,
        arrivals_per_s=observation.arrivals_per_s,
        policy=done.policy,
        done=done.action,
        would=would.action,
        reason=would.reason,
        done_p99_s=done.predicted_p99_s,
        would_p99_s=would.predicted_p99_s,
        done_cost_per_hour=done.predicted_cost_per_hour,
        would_cost_per_hour=would.predicted_cost_per_hour,
        faithful=faithful,
    )
    return knowledge, comparison


def _begun(
    each: RecordedRound,
    view: PipelineView,
    observation: Observation,
    experiences: Sequence[Experience],
    tuning: Tuning,
) -> Knowledge:
    learned = each.learned()
    if learned is None:
        return rounds.observe(_at_round(begin(view), each.round), view, observation, tuning)
    length = context_length(view)
    earlier = [
        e for e in experiences if e.round < each.round and e.time_s < observation.time_s and len(e.context) == length
    ]
    known = restore(view, stored(replace(begin(view), learned=learned)), earlier, tuning)
    return replace(known, learned=learned)


def _at_round(knowledge: Knowledge, number: int) -> Knowledge:
    return replace(knowledge, learned=replace(knowledge.learned, round=number))


def _observed(
    knowledge: Knowledge, each: RecordedRound, view: PipelineView, observation: Observation, tuning: Tuning
) -> Knowledge:
    return rounds.take_in(rounds.reacted(knowledge, each.reflexes(), tuning), view, observation, tuning)[0]


def _faithful(knowledge: Knowledge, each: RecordedRound, changes: Mapping[str, str]) -> bool | None:
    recorded = each.text("learned_sha256")
    return None if changes or not recorded else recorded == fingerprint(knowledge.learned)


def _done(knowledge: Knowledge, menu: Menu, each: RecordedRound, tuning: Tuning) -> Decision:
    """The recorded decision with what this model predicts of it."""
    before, after = each.allocations("before_json"), each.allocations("after_json")
    if before is None or after is None or before.keys() != after.keys():
        raise each.error("after_json", each.text("after_json"), "the stages of before_json")
    action = difference(before, after, sorted(before))
    decision = rounds.admit(knowledge, menu, Proposal(action, each.text("policy")), tuning)
    return replace(decision, wished=action, action=action, before=before, after=after)


def _parameters() -> dict[str, None]:
    names: dict[str, None] = {}
    for each in fields(Tuning):
        value = getattr(Tuning(), each.name)
        if is_dataclass(value):
            names |= {f"{each.name}.{inner.name}": None for inner in fields(value)}
        else:
            names[each.name] = None
    return names


def _nested(old: Any, name: str, value: Any) -> Any:
    return msgspec.to_builtins(old) | {name: value} if name else value


def _converted(field: str, plain: Mapping[str, Any]) -> Tuning:
    try:
        tuning = msgspec.convert(dict(plain), Tuning, strict=False)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidInput(field, dict(plain), f"a value of the parameter's type ({error})") from error
    for name in _parameters():
        value = msgspec.to_builtins(tuning)
        for part in name.split("."):
            value = value[part]
        if isinstance(value, int | float) and name != "least_reward" and not 0 <= value <= LARGEST:
            raise InvalidInput(f"{field} {name}", value, "a finite number of 0 or more")
    return tuning
