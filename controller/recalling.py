"""What a leader begins with: the stored state and experiences, and what the journal tells of the time after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from controller.features import context_length
from controller.knowledge import Knowledge, Learned, restore
from controller.memory.keys import Keys
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Loaded
from controller.peak import record
from controller.plausible import COUNT_MOST
from controller.recorded import RecordedRound, rounds_in
from controller.resuming import TakenOver, take_over, time_of, unsaved
from controller.state import PipelineView
from controller.tuning import Tuning
from sair.errors import InvalidInput, MemoryUnavailable
from sair.logs import get_logger

__all__ = ["OBSERVED_FIELD", "STATE_FIELD", "Recalled", "delayed", "joined", "recall"]

_log = get_logger("controller")

STATE_FIELD: Final = "learned_json"
OBSERVED_FIELD: Final = "observed_s"
"""Fields of the controller's hash: what was learned, and the time of the newest observation in it."""

_TAIL_RECORDS: Final = (12, 200)
"""Journal records read at a takeover: at first a few, more if all of them are news."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What is known at the start."""

    stored: Knowledge
    """As the last save left it."""
    taken: TakenOver
    """With what its leader did after that; its knowledge is ``stored`` itself where there was nothing."""
    whole: bool
    """State, experiences and journal were read. Otherwise nothing may be decided on them as if a leader had done nothing since."""


async def recall(
    memory: MirroredMemory,
    view: PipelineView,
    tuning: Tuning,
    writer: str,
    decided: int = 0,
    before_s: float = math.inf,
) -> Recalled:
    """Read state, experiences and the journal's end; with Redis away, begin with nothing.

    Args:
        memory: Where it is read from.
        view: The pipeline as it is now.
        tuning: As always.
        writer: Part of the ids of experiences.
        decided: How many rounds were decided according to others than the memory. Where that has lost some, their numbers stay taken.
        before_s: When whoever recalls began to lead, the world's seconds: what the journal tells of later is its own.
    """
    loaded = await memory.load(view.key)
    knowledge = _restored(loaded, view, tuning)
    observed_s = _seconds(loaded.state.get(OBSERVED_FIELD, ""))
    recorded: Sequence[RecordedRound] = ()
    whole = loaded.whole
    if whole:
        try:
            for count in _TAIL_RECORDS:
                records = await memory.store.decisions(view.key, count)
                recorded, _ = rounds_in(Keys(view.key).decisions, reversed(records))
                if len(records) < count or len(unsaved(recorded, knowledge.learned.round, observed_s)) < len(recorded):
                    break
        except MemoryUnavailable as error:
            _log.warning("the journal cannot be read", pipeline=view.key, problem=str(error))
            whole = False
    recorded = [each for each in recorded if time_of(each) <= before_s]
    taken = take_over(knowledge, recorded, view, observed_s, tuning, writer=writer)
    for problem in taken.problems:
        _log.error("a round of an earlier leader cannot be taken over", pipeline=view.key, problem=problem)
    if decided > COUNT_MOST:
        _log.error(
            "the Pipeline's status tells of a round that cannot be; it is passed over",
            pipeline=view.key,
            rounds=decided,
        )
    if not taken.knowledge.learned.round < decided <= COUNT_MOST:
        return Recalled(knowledge, taken, whole)
    _log.warning(
        "the memory knows of fewer rounds than were decided; their numbers stay taken",
        pipeline=view.key,
        known=taken.knowledge.learned.round,
        decided=decided,
    )
    counted = _counted(knowledge, decided)
    news = counted if taken.knowledge is knowledge else _counted(taken.knowledge, decided)
    return Recalled(counted, replace(taken, knowledge=news), whole)


def _counted(knowledge: Knowledge, decided: int) -> Knowledge:
    return replace(knowledge, learned=replace(knowledge.learned, round=decided))


def joined(earlier: Learned, own: Learned, tuning: Tuning) -> Learned:
    """What was learned before Redis went away, with what was learned until it came back.

    Args:
        earlier: Out of Redis.
        own: Of the rounds without it; what is pending and what the last action was are its own.
        tuning: Half-lives.
    """
    peaks = earlier.peaks
    for at_s, peak in own.peaks.recent:
        peaks = record(peaks, peak, peak, at_s, tuning)
    return replace(
        own,
        round=max(earlier.round, own.round),
        fits={**own.fits, **earlier.fits},
        ratios={**own.ratios, **earlier.ratios},
        peaks=peaks,
        analogues=earlier.analogues,
        residual=earlier.residual,
    )


def delayed(earlier: Learned, own: Learned) -> Learned:
    """What was learned before Redis went away, where nothing was observed until it came back: what is pending is still to be seen."""
    return replace(
        earlier,
        round=max(earlier.round, own.round),
        frozen_until_s=max(earlier.frozen_until_s, own.frozen_until_s),
        refusals=(*earlier.refusals, *own.refusals),
    )


def _restored(loaded: Loaded, view: PipelineView, tuning: Tuning) -> Knowledge:
    # One of another set of stages would fix the memory's dimension and keep every new one out.
    length = context_length(view)
    experiences = [each for each in loaded.experiences if len(each.context) == length]
    raw = None
    try:
        if STATE_FIELD in loaded.state:
            raw = msgspec.json.decode(loaded.state[STATE_FIELD])
        return restore(view, raw, experiences, tuning)
    except (InvalidInput, msgspec.DecodeError, TypeError, RecursionError) as error:
        _log.error(
            "the controller's state in Redis cannot be read; starting from the experiences",
            pipeline=view.key,
            problem=str(error),
        )
        return restore(view, None, experiences, tuning)


def _seconds(text: str) -> float:
    """A stored time; the beginning of all times where none is stored or it is no number."""
    try:
        value = float(text)
    except ValueError:
        return -math.inf
    return -math.inf if math.isnan(value) else value
