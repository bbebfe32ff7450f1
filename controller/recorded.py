"""The journal read back: rounds put together from their records, every field checked where it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from controller.applying import Reflex
from controller.decision import Verdict
from controller.experience import RewardTerms
from controller.knowledge import Learned
from controller.memory.codec import LARGEST, allocations_from_json
from controller.state import Allocation, ClusterRoom, KnobOutcome, Observation, PipelineView
from sair.errors import EntryError, InvalidInput

__all__ = ["Offer", "RecordedRound", "Retrieved", "rounds_in"]

T = TypeVar("T")

Record = Mapping[str, str]

_LARGEST_CHARACTERS: Final = 1_000_000


class Retrieved(msgspec.Struct, frozen=True):
    """An experience that was remembered."""

    id: str
    score: float
    similarity: float


class OfferedDigest(msgspec.Struct, frozen=True):
    """What was predicted of an offered action; see ``menu.Digest``."""

    p99_s: float | None
    cost_per_hour: float | None
    reward: float | None
    uncertainty: float | None
    support: float
    safe: bool


class Offer(msgspec.Struct, frozen=True):
    """One line of the menu."""

    action: str
    origin: str
    digest: OfferedDigest
    leads_to_usd: float | None = None
    """Absent in records of before there were exchanges."""


@dataclass(frozen=True, slots=True)
class RecordedRound:
    """A decision record and what followed it. Each reader raises EntryError with the record's key, id and field."""

    key: str
    """Of the stream, or the name of the file."""
    identifier: str
    """Id of the decision record in the stream."""
    round: int
    decision: Record
    applied: Record | None = None
    concluded: Record | None = None

    def text(self, field: str, record: Record | None = None) -> str:
        """A field as it stands, empty if there is none."""
        value = (self.decision if record is None else record).get(field, "")
        if len(value) > _LARGEST_CHARACTERS:
            raise self.error(field, value, f"at most {_LARGEST_CHARACTERS} characters")
        return value

    def number(self, field: str, record: Record | None = None) -> float | None:
        """A finite number, None if there is none."""
        value = self.text(field, record)
        if not value:
            return None
        try:
            parsed = float(value)
        except ValueError as error:
            raise self.error(field, value, "a number") from error
        if not abs(parsed) <= LARGEST:
            raise self.error(field, value, f"a finite number of at most {LARGEST:g}")
        return parsed

    def json(self, field: str, kind: type[T], record: Record | None = None) -> T | None:
        """A JSON field, None if there is none."""
        value = self.text(field, record)
        if not value:
            return None
        try:
            return msgspec.json.decode(value, type=kind)
        except (ValueError, TypeError, InvalidInput, msgspec.MsgspecError, RecursionError) as error:
            raise self.error(field, value, f"what SAIR writes there ({error})") from error

    def error(self, field: str, value: object, allowed: str) -> EntryError:
        """The error about a field of this round."""
        return EntryError(f"{self.key} {self.identifier} {field}", value, allowed)

    @property
    def time_s(self) -> float:
        """When it was decided, in the world's seconds."""
        return self.number("time_s") or 0.0

    @property
    def decided(self) -> bool:
        """A decision was made, not only an observation."""
        return "action" in self.decision

    def observation(self) -> Observation | None:
        """What was seen."""
        return self.json("observation_json", Observation)

    def view(self) -> PipelineView | None:
        """Stages, bounds, SLO and budget as they were."""
        return self.json("view_json", PipelineView)

    def room(self) -> ClusterRoom | None:
        """What the cluster could hold."""
        return self.json("room_json", ClusterRoom)

    def learned(self) -> Learned | None:
        """What was known, where the record is a checkpoint."""
        return self.json("learned_json", Learned)

    def tuning(self) -> dict[str, Any]:
        """Parameters that were not at their defaults."""
        return self.json("tuning_json", dict[str, Any]) or {}

    def allocations(self, field: str) -> dict[str, Allocation] | None:
        """``before_json`` or ``after_json``."""
        value = self.text(field)
        if not value:
            return None
        try:
            return allocations_from_json(value)
        except (ValueError, TypeError, InvalidInput, msgspec.MsgspecError, RecursionError) as error:
            raise self.error(field, value, "stages with replicas, cpu_m, memory_mi, gpu_milli") from error

    def outcomes(self) -> list[KnobOutcome] | None:
        """What became of each wished knob; None if nothing was applied."""
        return None if self.applied is None else self.json("outcomes_json", list[KnobOutcome], self.applied)

    def answers(self) -> list[KnobOutcome] | None:
        """What the world itself said, where that is not all of the outcomes."""
        return None if self.applied is None else self.json("answers_json", list[KnobOutcome], self.applied)

    def retrieved(self) -> list[Retrieved]:
        """The experiences that were remembered, best first."""
        return self.json("retrieved_json", list[Retrieved]) or []

    def menu(self) -> list[Offer]:
        """What was offered."""
        return self.json("menu_json", list[Offer]) or []

    def shown(self) -> list[str] | None:
        """Ids of the experiences that the language model saw; None if it was not asked."""
        return self.json("shown_json", list[str])

    def refusals(self) -> list[Verdict]:
        """Why answers of the language model could not be used."""
        return self.json("refusals_json", list[Verdict]) or []

    def verdicts(self) -> list[Verdict]:
        """What each guardrail said."""
        return self.json("verdicts_json", list[Verdict]) or []

    def reflexes(self) -> list[Reflex]:
        """What the reflex did since the round before."""
        return self.json("reflex_json", list[Reflex]) or []

    def reward(self) -> RewardTerms | None:
        """The reward's terms, None while the round was not concluded."""
        return None if self.concluded is None else self.json("reward_json", RewardTerms, self.concluded)


def rounds_in(
    key: str, records: Iterable[tuple[str, Record]]
) -> tuple[tuple[RecordedRound, ...], tuple[EntryError, ...]]:
    """Put rounds together. A number may occur twice: a round that held is decided again under the same number, and a leader who could
    not read the journal may have counted otherwise. What followed belongs to the one of its time, where it says one.

    A decision that was written twice, because the answer to the first attempt was lost, is one.

    Args:
        key: Of the stream, for error messages.
        records: Stream ids and fields, oldest first.

    Returns:
        The rounds, oldest first, and what could not be read.
    """
    found: list[RecordedRound] = []
    newest: dict[int, int] = {}
    at: dict[tuple[int, str], int] = {}
    damaged: list[EntryError] = []
    for identifier, fields in records:
        kind, number = fields.get("kind", ""), fields.get("round", "")
        if kind == "lost":
            continue  # says how many records are missing here: nothing of a round
        if kind not in ("decision", "applied", "concluded"):
            damaged.append(EntryError(f"{key} {identifier} kind", kind, "decision, applied, concluded or lost"))
        elif not (number.isascii() and number.isdigit() and len(number) <= 12):
            damaged.append(EntryError(f"{key} {identifier} round", number, "a whole number of rounds"))
        elif kind == "decision":
            moment = int(number), fields.get("time_s", "")
            if moment in at and found[at[moment]].decision == fields:
                continue
            newest[int(number)] = at[moment] = len(found)
            found.append(RecordedRound(key, identifier, int(number), fields))
        elif int(number) in newest:
            place = at.get((int(number), fields.get("time_s", "")), newest[int(number)])
            old = found[place]
            found[place] = replace(old, applied=fields) if kind == "applied" else replace(old, concluded=fields)
    return tuple(found), tuple(damaged)
