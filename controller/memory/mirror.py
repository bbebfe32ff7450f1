"""The controller's own copy of what it stored: a Redis that is away, restarted or flushed loses nothing the controller knows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.experience import Experience
from controller.memory.eviction import Queue
from controller.memory.store import DEFAULT_CAPACITY, FrontierPoint, Loaded, Store
from sair.errors import MemoryUnavailable
from sair.logs import get_logger

__all__ = ["MirroredMemory"]

_log = get_logger("memory")

_PENDING_DECISIONS = 2_000
_DAMAGE_LOGGED = 20
_SLOW_S = 0.5
_PAUSES = 5.0
"""A Redis that lets calls wait for so long before they fail is left alone for so many times as long: rounds must not wait with it."""


@dataclass(slots=True)
class _Pipeline:
    experiences: dict[str, Experience] = field(default_factory=dict)
    unsaved: set[str] = field(default_factory=set)
    evicted: set[str] = field(default_factory=set)
    state: Mapping[str, str] = field(default_factory=dict)
    frontier: Mapping[str, FrontierPoint] = field(default_factory=dict)
    decisions: deque[Mapping[str, str]] = field(default_factory=deque)
    loaded: bool = False
    queue: Queue = field(default_factory=Queue)


class MirroredMemory:
    """Memory that never makes the loop wait for Redis: what cannot be written now is kept and written when Redis is back.

    Args:
        store: The Redis behind it.
        capacity: Experiences kept per pipeline.
    """

    def __init__(self, store: Store, *, capacity: int = DEFAULT_CAPACITY) -> None:
        self.store = store
        self._capacity = capacity
        self._pipelines: dict[str, _Pipeline] = {}
        self.dropped_decisions = 0
        """Journal records lost because Redis was away for longer than 2,000 records of one pipeline."""
        self.available = True
        self._ask_again_at = -math.inf

    async def load(self, pipeline: str) -> Loaded:
        """Read what Redis knows; with Redis away, an empty memory that is merged once Redis is back.

        Raises:
            SchemaVersionError: If Redis has another layout.
        """
        mirror = self._mirror(pipeline)
        if self._left_alone:
            return Loaded(self._ordered(mirror), mirror.state)
        asked_at = time.monotonic()
        try:
            await self.store.ensure_schema()
            loaded = await self.store.load(pipeline, self._capacity)
        except MemoryUnavailable as error:
            self._went_away(error, asked_at)
            return Loaded(tuple(mirror.experiences.values()), mirror.state)
        self.available = True
        for damage in loaded.damaged[:_DAMAGE_LOGGED]:
            _log.error(
                "an entry in Redis cannot be read; it stays there and is not used",
                entry=damage.field,
                problem=str(damage),
            )
        if len(loaded.damaged) > _DAMAGE_LOGGED:
            _log.error(
                "more entries in Redis cannot be read; sair memory stats counts them",
                pipeline=pipeline,
                entries=len(loaded.damaged) - _DAMAGE_LOGGED,
            )
        for experience in loaded.experiences:
            mirror.experiences.setdefault(experience.id, experience)
        mirror.queue = Queue(self._ordered(mirror))
        mirror.state = mirror.state or loaded.state
        mirror.loaded = True
        return Loaded(self._ordered(mirror), mirror.state, loaded.damaged)

    async def save(
        self,
        experience: Experience | None,
        pipeline: str,
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint],
    ) -> tuple[str, ...]:
        """Keep a round's experience (None if the round gave none) with state and frontier, and write as much as Redis takes.

        Returns:
            Ids of what was forgotten to make room.
        """
        mirror = self._mirror(pipeline)
        mirror.state, mirror.frontier = state, frontier
        if experience is not None:
            mirror.experiences[experience.id] = experience
            mirror.unsaved.add(experience.id)
            mirror.queue.add(experience)
        evicted = mirror.queue.excess(mirror.experiences, frontier, self._capacity)
        for identifier in evicted:
            del mirror.experiences[identifier]
            mirror.unsaved.discard(identifier)
            mirror.evicted.add(identifier)
        await self._flush(pipeline, mirror)
        return evicted

    async def record(self, pipeline: str, decision: Mapping[str, str]) -> None:
        """Append a journal record, after those that still wait."""
        mirror = self._mirror(pipeline)
        if len(mirror.decisions) >= _PENDING_DECISIONS:
            mirror.decisions.popleft()
            self.dropped_decisions += 1
            _log.error("Redis has been away too long: the oldest waiting journal record is lost", pipeline=pipeline)
        mirror.decisions.append(decision)
        if self._left_alone:
            return
        asked_at = time.monotonic()
        try:
            await self._drain(pipeline, mirror)
        except MemoryUnavailable as error:
            self._went_away(error, asked_at)

    @property
    def unsaved(self) -> int:
        """Experiences that wait for Redis to come back."""
        return sum(len(mirror.unsaved) for mirror in self._pipelines.values())

    @property
    def _left_alone(self) -> bool:
        return time.monotonic() < self._ask_again_at

    async def _flush(self, pipeline: str, mirror: _Pipeline) -> None:
        if self._left_alone:
            return
        asked_at = time.monotonic()
        try:
            known = len(mirror.experiences) - len(mirror.unsaved)
            held = await self.store.count(pipeline)
            if held < known:
                _log.warning(
                    "Redis lost experiences; writing back what the controller knows",
                    pipeline=pipeline,
                    held=held,
                    known=known,
                )
                mirror.unsaved.update(mirror.experiences)
            chosen = [mirror.experiences[name] for name in sorted(mirror.unsaved)]
            # The journal first: a state that counts a round which the journal does not tell could not be taken over.
            await self._drain(pipeline, mirror)
            await self.store.restore(pipeline, chosen, mirror.state, mirror.frontier, sorted(mirror.evicted))
            mirror.unsaved.clear()
            mirror.evicted.clear()
        except MemoryUnavailable as error:
            self._went_away(error, asked_at)
            return
        if not self.available:
            _log.info("Redis is back; nothing is waiting any more", pipeline=pipeline)
        self.available = True

    async def _drain(self, pipeline: str, mirror: _Pipeline) -> None:
        while mirror.decisions:
            await self.store.append_decision(pipeline, mirror.decisions[0])
            mirror.decisions.popleft()

    def _went_away(self, error: MemoryUnavailable, asked_at: float) -> None:
        now = time.monotonic()
        if now - asked_at >= _SLOW_S:
            self._ask_again_at = now + _PAUSES * (now - asked_at)
        if self.available:
            _log.warning("Redis is away; deciding goes on with what is known, experiences wait", problem=str(error))
        self.available = False

    def _mirror(self, pipeline: str) -> _Pipeline:
        return self._pipelines.setdefault(pipeline, _Pipeline())

    @staticmethod
    def _ordered(mirror: _Pipeline) -> tuple[Experience, ...]:
        return tuple(sorted(mirror.experiences.values(), key=lambda experience: (experience.time_s, experience.id)))
