"""What people do with a memory and the controller's loop never does: measure it, walk its whole journal, cut it, add to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis

from controller.experience import Experience
from controller.memory.eviction import holders
from controller.memory.keys import SCHEMA_KEY, Keys
from controller.memory.store import FrontierPoint, Store, translated

__all__ = ["Archive", "Size", "frontier_of"]

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Size:
    """What a pipeline takes in Redis."""

    keys: int
    memory_bytes: int
    journal_records: int


class Archive:
    """A store as a person sees it.

    Args:
        store: The Redis behind it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._redis: Any = store.client

    @translated
    async def schema(self) -> str | None:
        """Version of the layout that Redis has, None for an empty one."""
        found = await self._redis.get(SCHEMA_KEY)
        return None if found is None else str(found)

    @translated
    async def size(self, pipeline: str) -> Size:
        """Keys and bytes of a pipeline, by MEMORY USAGE over every key, and the length of its journal."""
        names = await self.store.keys(pipeline)
        total = 0
        for start in range(0, len(names), _PAGE):
            async with self._redis.pipeline(transaction=False) as many:
                for name in names[start : start + _PAGE]:
                    many.memory_usage(name, samples=0)
                total += sum(size for size in await many.execute() if size)
        journal = Keys(pipeline).decisions
        records = int(await self._redis.xlen(journal)) if await self._redis.type(journal) == "stream" else 0
        return Size(len(names), total, records)

    async def journal(self, pipeline: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """All records of the journal, oldest first, with their stream ids.

        Raises:
            MemoryUnavailable: If Redis cannot be reached, or the key is no stream.
        """
        after = "-"
        while True:
            page = await self._page(pipeline, after)
            for identifier, fields in page:
                yield identifier, fields
            if len(page) < _PAGE:
                return
            after = f"({page[-1][0]}"

    @translated
    async def _page(self, pipeline: str, after: str) -> list[tuple[str, dict[str, str]]]:
        keys = Keys(pipeline)
        try:
            records = await self._redis.xrange(keys.decisions, min=after, count=_PAGE)
        except redis.ResponseError as error:
            await self.store.explain(keys, error)
            raise
        return [(str(identifier), dict(fields)) for identifier, fields in records]

    @translated
    async def extend_journal(self, pipeline: str, records: Sequence[tuple[str, Mapping[str, str]]]) -> int:
        """Append records that are newer than the journal's newest; gives how many that were.

        Args:
            pipeline: ``namespace/name``.
            records: Stream ids and fields, oldest first.
        """
        name = Keys(pipeline).decisions
        newest = await self._redis.xrevrange(name, count=1)
        last = _stream_id(newest[0][0]) if newest else (0, 0)
        fresh = [(identifier, fields) for identifier, fields in records if _stream_id(identifier) > last]
        for start in range(0, len(fresh), _PAGE):
            async with self._redis.pipeline(transaction=True) as multi:
                for identifier, fields in fresh[start : start + _PAGE]:
                    multi.xadd(name, dict(fields), id=identifier)
                await multi.execute()
        return len(fresh)

    @translated
    async def remove(self, pipeline: str, identifiers: Sequence[str]) -> None:
        """Delete experiences and their places in every index, up to 500 in one transaction."""
        keys = Keys(pipeline)
        for start in range(0, len(identifiers), _PAGE):
            batch = identifiers[start : start + _PAGE]
            async with self._redis.pipeline(transaction=True) as multi:
                for identifier in batch:
                    multi.delete(keys.experience(identifier))
                for index in (keys.experiences, keys.rewards, keys.surprisals):
                    multi.zrem(index, *batch)
                await multi.execute()


def frontier_of(experiences: Iterable[Experience]) -> dict[str, FrontierPoint]:
    """The points that are on the frontier of their load bucket, from the experiences alone: what Redis says of it is not trusted."""
    return {name: FrontierPoint(each.outcome, each.load_bucket) for name, each in holders(experiences).items()}


def _stream_id(text: str) -> tuple[int, int]:
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)
