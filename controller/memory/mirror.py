"""The controller's own copy of what it stored: a Redis that is away, full, restarted, flushed or put back to an older copy loses nothing
the controller knows, and one that has another leader by now is left alone."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from controller.experience import Experience
from controller.memory.archive import frontier_of
from controller.memory.copies import Copy, Losses, Standing
from controller.memory.eviction import victims
from controller.memory.keeping import REMEDY, evicting
from controller.memory.store import DEFAULT_CAPACITY, FrontierPoint, Loaded, Store
from controller.memory.waiting import Waiting
from sair.errors import EntryError, MemoryFull, MemoryUnavailable, Superseded
from sair.logs import get_logger

__all__ = ["DEFAULT_WAITING_BYTES", "MirroredMemory"]

_log = get_logger("memory")

DEFAULT_WAITING_BYTES: Final = 64 * 1024 * 1024
"""For journal records that wait for Redis, of all pipelines together: of 1,000 pipelines some two minutes', of ten some three hours'."""

_DAMAGE_LOGGED = 20
_CUT_AT_ONCE = 1_000
_SLOW_S = 0.5
_PAUSES = 5.0
"""A Redis that lets calls wait for so long before they fail is left alone for so many times as long: rounds must not wait with it."""


class MirroredMemory:
    """Memory that never makes the loop wait for Redis: what cannot be written now is kept and written when Redis is back.

    Args:
        store: The Redis behind it.
        capacity: Experiences kept per pipeline.
        waiting_bytes: What journal records may take in this process while they wait, of all pipelines together.
        leads: Whether this process may still act for the pipelines, at this moment.
    """

    def __init__(
        self,
        store: Store,
        *,
        capacity: int = DEFAULT_CAPACITY,
        waiting_bytes: int = DEFAULT_WAITING_BYTES,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self.store = store
        self._capacity = capacity
        self._leads = leads
        self._copies: dict[str, Copy] = {}
        self._waiting = Waiting(waiting_bytes)
        self._failing: dict[str, MemoryUnavailable] = {}
        self.losses = Losses()
        self._ask_again_at = -math.inf
        self._looked = False

    # What is known

    @property
    def available(self) -> bool:
        """Redis took all that it was given last."""
        return not self._failing

    @property
    def unsaved(self) -> int:
        """Experiences that wait for Redis to come back."""
        return sum(len(copy.unsaved) for copy in self._copies.values())

    @property
    def waiting(self) -> int:
        """Journal records that do."""
        return self._waiting.count()

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Those that something is held of."""
        return tuple(sorted(self._copies))

    def standing(self, pipeline: str) -> Standing:
        """How memory stands with a pipeline."""
        copy, problem = self._copies.get(pipeline, Copy()), self._failing.get(pipeline)
        return Standing(
            problem="" if problem is None else str(problem),
            full=isinstance(problem, MemoryFull),
            experiences=len(copy.unsaved),
            records=self._waiting.count(pipeline),
            lost=copy.lost,
        )

    # Reading

    async def load(self, pipeline: str) -> Loaded:
        """Begin to lead a pipeline: claim it and read what Redis knows. With Redis away, an empty memory that is merged once it is back.

        Raises:
            SchemaVersionError: If Redis has another layout.
            Superseded: If another controller leads by now.
        """
        copy = self._copies.setdefault(pipeline, Copy())
        copy.gone = False
        async with copy.writing:
            return await self._load(pipeline, copy)

    async def _load(self, pipeline: str, copy: Copy) -> Loaded:
        if self._left_alone:
            return Loaded(copy.ordered(), copy.state, whole=False)
        asked_at = time.monotonic()
        try:
            await self.store.ensure_schema()
            await self._look_at_policy()
            full = not await self._claim(pipeline, copy)
            limit = await self._cut(pipeline, copy)
            loaded = await self.store.load(pipeline, limit)
        except MemoryUnavailable as error:
            self._failed(pipeline, error, asked_at)
            return Loaded(copy.ordered(), copy.state, whole=False)
        _report_damage(pipeline, loaded.damaged)
        copy.read(loaded.experiences, loaded.state)
        if not full:
            self._failing.pop(pipeline, None)
        return Loaded(copy.ordered(), copy.state, loaded.damaged)

    async def _look_at_policy(self) -> None:
        """Once: what Redis evicts by itself is missing without anybody having decided so."""
        looked, self._looked = self._looked, True
        if not looked and (policy := await evicting(self.store.client)):
            _log.warning(f"Redis evicts keys by itself where it is full: {REMEDY}", maxmemory_policy=policy)

    async def _claim(self, pipeline: str, copy: Copy) -> bool:
        if not self._leads():
            raise Superseded(f"{pipeline} is not led by this controller any more")
        try:
            copy.claimed(await self.store.claim(pipeline, copy.writer))
        except MemoryFull as error:
            # Whoever leads next must be able to read all the same; it claims with the first write that there is room for.
            self._failed(pipeline, error, time.monotonic())
            return False
        return True

    async def _cut(self, pipeline: str, copy: Copy) -> int:
        """Forget what is beyond the capacity, which may have been larger; gives how many experiences are left at most."""
        if (count := await self.store.count(pipeline)) <= self._capacity:
            return self._capacity
        # From all that is there: the frontier's hash is of whoever wrote it last, who may have known only some.
        frontier = frontier_of((await self.store.load(pipeline, count)).experiences)
        entries = await self.store.index(pipeline)
        gone = victims(entries, frontier, self._capacity)
        for start in range(0, len(gone), _CUT_AT_ONCE):
            some = gone[start : start + _CUT_AT_ONCE]
            copy.wrote(await self.store.restore(pipeline, (), {}, frontier, some, writer=copy.writer))
        _log.warning(
            "Redis held more experiences than the capacity; those that taught least are forgotten",
            pipeline=pipeline,
            forgotten=len(gone),
            capacity=self._capacity,
        )
        return len(entries) - len(gone)

    # Writing

    async def save(
        self,
        experiences: Sequence[Experience],
        pipeline: str,
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint] | None,
    ) -> tuple[str, ...]:
        """Keep what rounds gave with state and frontier, and write as much as Redis takes.

        Args:
            experiences: New ones, oldest first; few or none.
            pipeline: ``namespace/name``.
            state: Of the controller.
            frontier: Ids and points; None as long as what Redis has could not be read, which then keeps its own.

        Returns:
            Ids of what was forgotten to make room.
        """
        copy = self._copies.setdefault(pipeline, Copy())
        evicted = copy.take(experiences, state, frontier, self._capacity)
        await self._flush(pipeline, copy)
        return evicted

    async def record(self, pipeline: str, decision: Mapping[str, str]) -> None:
        """Append a journal record, after those that still wait."""
        copy = self._copies.setdefault(pipeline, Copy())
        for shortened in self._waiting.add(pipeline, decision):
            self._lost(shortened, 1)
            if self._waiting.dropped(shortened).records == 1:
                _log.error(
                    "journal records wait for Redis beyond their bound; the oldest are dropped and counted",
                    pipeline=shortened,
                )
        await self._attempt(pipeline, copy, lambda: self._drain(pipeline, copy))

    async def forget(self, pipeline: str) -> None:
        """Hold nothing of a pipeline that is gone any more, once what waits is written."""
        copy = self._copies.get(pipeline)
        if copy is not None:
            copy.gone = True
            await self._flush(pipeline, copy)

    async def _flush(self, pipeline: str, copy: Copy) -> None:
        if not await self._written(pipeline, copy):
            return
        for name, each in list(self._copies.items()):
            # No round waits for what another writes.
            if each.gone and not each.writing.locked() and not await self._written(name, each):
                return

    async def _written(self, pipeline: str, copy: Copy) -> bool:
        if not await self._attempt(pipeline, copy, lambda: self._write(pipeline, copy)):
            return False
        if self._failing.pop(pipeline, None) is not None and not self._failing:
            _log.info("Redis takes everything again; nothing is waiting any more", pipeline=pipeline)
        if copy.gone and not copy.unsaved and not self._waiting.count(pipeline):
            self._drop(pipeline)
        return True

    async def _write(self, pipeline: str, copy: Copy) -> None:
        # The journal first: a state that counts a round which the journal does not tell could not be taken over.
        await self._drain(pipeline, copy)
        if not copy.saved_once:
            return
        # A second time where the first has shown that Redis knows less than it was given.
        for _ in range(2):
            if copy.behind:
                await self._rebuild(pipeline, copy)
            chosen, gone = sorted(copy.unsaved), sorted(copy.evicted)
            fresh = [copy.experiences[name] for name in chosen]
            held = await self.store.restore(pipeline, fresh, copy.state, copy.frontier, gone, writer=copy.writer)
            copy.saved(held, chosen, gone)
            if not copy.behind:
                return

    async def _rebuild(self, pipeline: str, copy: Copy) -> None:
        why, missing = copy.behind, copy.missing
        entries = await self.store.index(pipeline)
        copy.rebuild([each.id for each in entries])
        _log.warning(
            f"Redis does not hold what it was given: {why}. Experiences, frontier and state are written again; "
            "journal records are held by nobody else and stay lost",
            pipeline=pipeline,
            experiences_rebuilt=len(copy.experiences),
            experiences_deleted=len(copy.evicted),
            journal_records_lost=missing,
        )
        if missing:
            self._lost(pipeline, missing)
            await self._append(pipeline, copy, _lost_record(missing, f"Redis did not hold them any more: {why}"))

    async def _drain(self, pipeline: str, copy: Copy) -> None:
        with self._waiting.telling(pipeline) as dropped:
            if dropped.records:
                reason = f"Redis took none for too long; rounds {dropped.first_round} to {dropped.last_round}"
                await self._append(pipeline, copy, _lost_record(dropped.records, reason))
                _log.error(
                    "journal records were dropped while Redis took none",
                    pipeline=pipeline,
                    records=dropped.records,
                    first_round=dropped.first_round,
                    last_round=dropped.last_round,
                )
        while self._waiting.count(pipeline):
            with self._waiting.writing(pipeline) as oldest:
                await self._append(pipeline, copy, oldest)

    async def _append(self, pipeline: str, copy: Copy, record: Mapping[str, str]) -> None:
        copy.wrote(await self.store.append_decision(pipeline, record, writer=copy.writer), records=1)

    async def _attempt(self, pipeline: str, copy: Copy, write: Callable[[], Awaitable[None]]) -> bool:
        """Write; where somebody else has claimed the pipeline, claim it anew if it is still ours, else let go of what waits."""
        async with copy.writing:
            if self._left_alone or self._copies.get(pipeline) is not copy:
                return False
            return await self._attempted(pipeline, copy, write)

    async def _attempted(self, pipeline: str, copy: Copy, write: Callable[[], Awaitable[None]]) -> bool:
        asked_at = time.monotonic()
        for again in (True, False):
            try:
                if copy.loaded and not copy.writer.claim:
                    await self._claim(pipeline, copy)
                await write()
                return True
            except MemoryUnavailable as error:
                self._failed(pipeline, error, asked_at)
                return False
            except Superseded as error:
                if not (again and self._leads()):
                    self._let_go(pipeline, copy, error)
                    return False
                _log.warning(
                    "somebody who does not lead this pipeline has claimed it; it is claimed again",
                    pipeline=pipeline,
                    problem=str(error),
                )
                copy.writer = replace(copy.writer, claim=0)
        return False

    def _let_go(self, pipeline: str, copy: Copy, error: Superseded) -> None:
        records, experiences = self._waiting.clear(pipeline), len(copy.unsaved)
        self.losses = replace(self.losses, refused=self.losses.refused + 1)
        copy.unsaved.clear()
        copy.evicted.clear()
        if copy.gone:
            self._drop(pipeline)
        _log.error(
            "a late write is refused: another controller leads this pipeline by now",
            pipeline=pipeline,
            records=records,
            experiences=experiences,
            problem=str(error),
        )

    def _drop(self, pipeline: str) -> None:
        for held in (self._copies, self._failing):
            held.pop(pipeline, None)
        self._waiting.clear(pipeline)

    def _lost(self, pipeline: str, records: int) -> None:
        self.losses = replace(self.losses, records=self.losses.records + records)
        copy = self._copies.get(pipeline)
        if copy is not None:
            copy.lost += records

    @property
    def _left_alone(self) -> bool:
        return time.monotonic() < self._ask_again_at

    def _failed(self, pipeline: str, error: MemoryUnavailable, asked_at: float) -> None:
        now = time.monotonic()
        if now - asked_at >= _SLOW_S:
            self._ask_again_at = now + _PAUSES * (now - asked_at)
        if not any(type(error) is type(each) for each in self._failing.values()):
            full = isinstance(error, MemoryFull)
            what = "is full: give it more memory, or lower the capacity" if full else "is away"
            _log.warning(
                f"Redis {what}; deciding goes on with what is known, experiences and records wait", problem=str(error)
            )
        self._failing[pipeline] = error


def _report_damage(pipeline: str, damaged: Sequence[EntryError]) -> None:
    for damage in damaged[:_DAMAGE_LOGGED]:
        _log.error(
            "an entry in Redis cannot be read; it stays there and is not used",
            entry=damage.field,
            problem=str(damage),
        )
    if len(damaged) > _DAMAGE_LOGGED:
        _log.error(
            "more entries in Redis cannot be read; sair memory stats counts them",
            pipeline=pipeline,
            entries=len(damaged) - _DAMAGE_LOGGED,
        )


def _lost_record(records: int, reason: str) -> dict[str, str]:
    return {"kind": "lost", "records": str(records), "reason": reason}
