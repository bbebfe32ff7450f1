"""What the controller holds of one pipeline's memory, what of it is still to be written, and whether Redis has what it was given. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controller.experience import Experience
from controller.memory.eviction import Queue, holders
from controller.memory.store import NOBODY, FrontierPoint
from controller.memory.writing import Held, Writer

__all__ = ["Copy", "Losses", "Standing"]


@dataclass(frozen=True, slots=True)
class Losses:
    """What was lost or refused since the start; each only ever grows."""

    records: int = 0
    """Journal records: dropped while Redis was away, or missing from a Redis that lost them."""
    refused: int = 0
    """Writes of a leader that was none any more."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How memory stands with one pipeline."""

    problem: str = ""
    """Why nothing can be written now, empty if it can."""
    full: bool = False
    """Because Redis has no room."""
    experiences: int = 0
    """That wait."""
    records: int = 0
    """Of the journal, that wait."""
    lost: int = 0
    """Of the journal, since this process began with the pipeline."""


@dataclass(slots=True)
class Copy:
    """The working copy of one pipeline. Mutable."""

    experiences: dict[str, Experience] = field(default_factory=dict)
    unsaved: set[str] = field(default_factory=set)
    evicted: set[str] = field(default_factory=set)
    """Ids that Redis may still have."""
    state: Mapping[str, str] = field(default_factory=dict)
    frontier: Mapping[str, FrontierPoint] | None = None
    """None where it is not known: then that in Redis stays as it is."""
    saved_once: bool = False
    """A round was saved."""
    loaded: bool = False
    """What Redis had has been read."""
    gone: bool = False
    """The pipeline was deleted; what waits is still to be written."""
    writer: Writer = NOBODY
    """The claim, and how many writes and records Redis is known to have seen."""
    behind: str = ""
    """Why Redis knows less than it was given, in words; empty if it does not."""
    missing: int = 0
    """Journal records that such a Redis lacks."""
    lost: int = 0
    """Journal records that are lost, ever."""
    queue: Queue = field(default_factory=Queue)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is written or read: by its own loop, or by any once it is gone."""

    def ordered(self) -> tuple[Experience, ...]:
        """All experiences, oldest first."""
        return tuple(sorted(self.experiences.values(), key=lambda experience: (experience.time_s, experience.id)))

    def read(self, experiences: Iterable[Experience], state: Mapping[str, str]) -> None:
        """Take in what Redis has; what is newer here stays."""
        for experience in experiences:
            self.experiences.setdefault(experience.id, experience)
        self.queue = Queue(self.ordered())
        self.state = self.state or state
        self.loaded = True

    def take(
        self,
        experiences: Sequence[Experience],
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint] | None,
        capacity: int,
    ) -> tuple[str, ...]:
        """Take in what rounds gave; gives the ids that were forgotten to make room.

        Args:
            experiences: New ones, oldest first.
            state: Of the controller.
            frontier: Of everything there is; None if that is not known, for Redis could not be read so far.
            capacity: How many may stay.
        """
        self.saved_once, self.state, self.frontier = True, state, frontier
        for experience in experiences:
            self.experiences[experience.id] = experience
            self.unsaved.add(experience.id)
            self.queue.add(experience)
        if frontier is None and len(self.experiences) > capacity:
            kept: Collection[str] = holders(self.experiences.values())
        else:
            kept = frontier or ()
        evicted = self.queue.excess(self.experiences, kept, capacity)
        for identifier in evicted:
            del self.experiences[identifier]
            if identifier in self.unsaved:
                self.unsaved.discard(identifier)  # Redis never had it
            else:
                self.evicted.add(identifier)
        return evicted

    def saved(self, held: Held, written: Collection[str], deleted: Collection[str]) -> None:
        """Some of what waited was written.

        Args:
            held: What was there.
            written: Ids of experiences.
            deleted: Ids that were evicted.
        """
        known = len(self.experiences) - len(self.unsaved)
        self.wrote(held)
        if held.experiences < known and not self.behind:
            self.behind = f"it held {held.experiences} of {known} experiences"
        self.unsaved.difference_update(written)
        self.evicted.difference_update(deleted)

    def wrote(self, held: Held, records: int = 0) -> None:
        """One write more; what was there before it shows whether Redis has what it was given.

        Args:
            held: What was there.
            records: Journal records that this write added.
        """
        known = self.writer
        if held.writes < known.writes:
            what = "it was emptied" if held.writes == 0 else "it was put back to an older copy"
            self.behind = f"{what}, {known.writes - held.writes} writes ago"
            self.missing += max(0, known.records - held.records)
        self.writer = Writer(
            known.claim, max(known.writes, held.writes) + 1, max(known.records, held.records) + records
        )

    def claimed(self, claimed: Writer) -> None:
        """Write under another claim from here on; taking it was a write, too."""
        self.wrote(Held(claimed.writes, claimed.records))
        self.writer = replace(self.writer, claim=claimed.claim)

    def rebuild(self, there: Collection[str]) -> None:
        """All that is known is to be written again, and what an older copy has beyond it to be deleted.

        Args:
            there: Ids that Redis has.
        """
        self.unsaved.update(self.experiences)
        if self.loaded:
            self.evicted.update(name for name in there if name not in self.experiences)
        self.behind, self.missing = "", 0
