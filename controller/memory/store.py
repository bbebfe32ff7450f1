"""The store: every write of a round is one MULTI/EXEC on one slot, every read is checked field by field."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import redis.asyncio as redis

from controller.experience import Experience, Outcome
from controller.memory.codec import from_fields, to_fields
from controller.memory.keys import SCHEMA, SCHEMA_KEY, Keys, pipeline_of
from sair.errors import EntryError, MemoryUnavailable, SchemaVersionError

__all__ = ["DEFAULT_CAPACITY", "FrontierPoint", "Loaded", "Store"]

DEFAULT_CAPACITY = 10_000
"""Experiences kept per pipeline: 3.5 days of rounds every 30 s, about 15 MB in Redis."""

_JOURNAL_LENGTH = 10_000
_BATCH = 500
_TIMEOUT_S = 2.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A point of a frontier and the load bucket whose frontier it is on."""

    outcome: Outcome
    load_bucket: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What memory held about one pipeline."""

    experiences: tuple[Experience, ...]
    """Oldest first."""
    state: Mapping[str, str]
    """Fields of ``…:controller``."""
    damaged: tuple[EntryError, ...] = ()
    """Entries that could not be read; they are left in place for a person to look at."""


def _translated(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    @functools.wraps(call)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except (redis.RedisError, OSError, TimeoutError) as error:
            raise MemoryUnavailable(f"Redis: {type(error).__name__}: {error}") from error

    return wrapper


class Store:
    """Experiences, frontier, journal and controller state of all pipelines.

    Args:
        client: A Redis client that decodes responses.
    """

    def __init__(self, client: redis.Redis) -> None:
        # redis-py's asynchronous methods are typed as the union of both worlds.
        self._redis = cast(Any, client)

    @classmethod
    def from_url(cls, url: str) -> Store:
        """Connect lazily to ``redis://[user:password@]host:port/db``, or ``rediss://`` for TLS."""
        client = redis.from_url(
            url, decode_responses=True, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        return cls(client)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @_translated
    async def ensure_schema(self) -> None:
        """Claim an empty Redis for this layout, or check that it has it.

        Raises:
            SchemaVersionError: If it has another; names the migration to run.
            MemoryUnavailable: If Redis cannot be reached.
        """
        if await self._redis.set(SCHEMA_KEY, SCHEMA, nx=True):
            return
        found = str(await self._redis.get(SCHEMA_KEY))
        if found != SCHEMA:
            raise SchemaVersionError(found, SCHEMA, f"sair memory migrate --to {SCHEMA}")

    @_translated
    async def restore(
        self,
        pipeline: str,
        experiences: Sequence[Experience],
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint],
        evicted: Iterable[str] = (),
    ) -> None:
        """Write experiences of one pipeline, the controller's state and the frontier, and drop what is evicted.

        Up to 500 experiences go in one transaction; writing one twice changes nothing.
        """
        keys = Keys(pipeline)
        for start in range(0, max(1, len(experiences)), _BATCH):
            batch = experiences[start : start + _BATCH]
            async with self._redis.pipeline(transaction=True) as multi:
                multi.set(SCHEMA_KEY, SCHEMA, nx=True)
                for experience in batch:
                    name = keys.experience(experience.id)
                    multi.delete(name)
                    multi.hset(name, mapping=to_fields(experience))
                    multi.zadd(keys.experiences, {experience.id: experience.time_s})
                    multi.zadd(keys.rewards, {experience.id: experience.reward.total})
                    multi.zadd(keys.surprisals, {experience.id: experience.surprisal})
                if start + _BATCH >= len(experiences):
                    self._finish(multi, keys, state, frontier, tuple(evicted))
                await multi.execute()

    @_translated
    async def save_state(self, pipeline: str, state: Mapping[str, str]) -> None:
        """Write the controller's state alone."""
        await self._redis.hset(Keys(pipeline).controller, mapping=dict(state))

    @_translated
    async def load(self, pipeline: str, limit: int = DEFAULT_CAPACITY) -> Loaded:
        """Read the newest ``limit`` experiences of a pipeline and the controller's state."""
        keys = Keys(pipeline)
        identifiers = (await self._redis.zrevrange(keys.experiences, 0, limit - 1))[::-1]
        experiences: list[Experience] = []
        damaged: list[EntryError] = []
        for start in range(0, len(identifiers), _BATCH):
            batch = identifiers[start : start + _BATCH]
            async with self._redis.pipeline(transaction=False) as many:
                for identifier in batch:
                    many.hgetall(keys.experience(identifier))
                answers = await many.execute()
            for identifier, fields in zip(batch, answers, strict=True):
                try:
                    experiences.append(from_fields(keys.experience(identifier), pipeline, identifier, fields))
                except EntryError as error:
                    damaged.append(error)
        state = await self._redis.hgetall(keys.controller)
        return Loaded(tuple(experiences), state, tuple(damaged))

    @_translated
    async def forget(self, pipeline: str) -> int:
        """Delete everything about a pipeline; gives how many keys there were."""
        names = [key async for key in self._redis.scan_iter(match=_literal(Keys(pipeline).everything), count=1000)]
        for start in range(0, len(names), _BATCH):
            await self._redis.unlink(*names[start : start + _BATCH])
        return len(names)

    @_translated
    async def count(self, pipeline: str) -> int:
        """How many experiences Redis holds of a pipeline."""
        return int(await self._redis.zcard(Keys(pipeline).experiences))

    @_translated
    async def top(self, pipeline: str, by: str, count: int) -> list[tuple[str, float]]:
        """The ids with the highest ``experiences`` (time), ``rewards`` or ``surprisals`` score, highest first."""
        key = {
            "experiences": Keys(pipeline).experiences,
            "rewards": Keys(pipeline).rewards,
            "surprisals": Keys(pipeline).surprisals,
        }[by]
        return [
            (str(name), float(score)) for name, score in await self._redis.zrevrange(key, 0, count - 1, withscores=True)
        ]

    @_translated
    async def pipelines(self) -> tuple[str, ...]:
        """All pipelines that memory knows."""
        found = set()
        async for key in self._redis.scan_iter(match="sair:{*}:controller", count=1000):
            pipeline = pipeline_of(key)
            if pipeline:
                found.add(pipeline)
        return tuple(sorted(found))

    @_translated
    async def append_decision(self, pipeline: str, record: Mapping[str, str]) -> str:
        """Append a record to the pipeline's journal; gives its stream id."""
        identifier = await self._redis.xadd(
            Keys(pipeline).decisions, dict(record), maxlen=_JOURNAL_LENGTH, approximate=True
        )
        return str(identifier)

    @_translated
    async def decisions(self, pipeline: str, count: int) -> list[tuple[str, dict[str, str]]]:
        """The newest records of the journal, newest first, each with its stream id."""
        return [
            (str(name), dict(fields))
            for name, fields in await self._redis.xrevrange(Keys(pipeline).decisions, count=count)
        ]

    @staticmethod
    def _finish(
        multi: Any, keys: Keys, state: Mapping[str, str], frontier: Mapping[str, FrontierPoint], evicted: Sequence[str]
    ) -> None:
        for identifier in evicted:
            multi.delete(keys.experience(identifier))
        for index in (keys.experiences, keys.rewards, keys.surprisals) if evicted else ():
            multi.zrem(index, *evicted)
        if state:
            multi.hset(keys.controller, mapping=dict(state))
        multi.delete(keys.frontier)
        if frontier:
            points = {
                identifier: json.dumps(
                    {
                        "load_bucket": point.load_bucket,
                        "latency_ratio": point.outcome.latency_ratio,
                        "cost_ratio": point.outcome.cost_ratio,
                    }
                )
                for identifier, point in frontier.items()
            }
            multi.hset(keys.frontier, mapping=points)


def _literal(prefix: str) -> str:
    """A MATCH pattern for a prefix: Redis' wildcards in it are escaped."""
    return "".join(f"\\{c}" if c in "*?[]^\\" else c for c in prefix) + "*"
