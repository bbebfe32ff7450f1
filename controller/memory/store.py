"""The store: every write of a round is one MULTI/EXEC on one slot, every read is checked field by field."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import redis.asyncio as redis
from redis.exceptions import RedisClusterException

from controller.experience import Experience, Outcome
from controller.memory.codec import from_fields, to_fields
from controller.memory.connection import close, connect, parse_url
from controller.memory.keys import SCHEMA, SCHEMA_KEY, Keys, pipeline_of
from sair.errors import EntryError, MemoryUnavailable, SchemaVersionError

__all__ = ["DEFAULT_CAPACITY", "FrontierPoint", "Loaded", "Store", "translated"]

DEFAULT_CAPACITY = 10_000
"""Experiences kept per pipeline: 3.5 days of rounds every 30 s, about 15 MB in Redis."""

_JOURNAL_LENGTH = 10_000
_BATCH = 500
_LARGEST_EXPERIENCE_BYTES = 1_000_000
"""Ours take about 2 kB; what is larger is not even fetched."""
_LARGEST_STATE_BYTES = 16_000_000
_LONGEST_ID = 200

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


def translated(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorator: whatever the Redis client raises becomes MemoryUnavailable."""

    @functools.wraps(call)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except (redis.RedisError, RedisClusterException, OSError, TimeoutError) as error:
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
        """Connect lazily to one server, through Sentinels, or to a cluster; see ``connection.parse_url`` for the forms.

        Raises:
            InvalidInput: If the URL is malformed.
        """
        return cls(connect(parse_url(url)))

    @property
    def client(self) -> Any:
        """The Redis client."""
        return self._redis

    async def close(self) -> None:
        """Close the connections."""
        await close(self._redis)

    @translated
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

    @translated
    async def restore(
        self,
        pipeline: str,
        experiences: Sequence[Experience],
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint],
        evicted: Iterable[str] = (),
    ) -> None:
        """Write experiences of one pipeline, the controller's state and the frontier, and drop what is evicted.

        Up to 500 experiences go in one transaction; writing one twice changes nothing. The schema version is written before it:
        in a cluster its key lives in another slot.

        Raises:
            MemoryUnavailable: If Redis cannot be reached, or a key is in the way that is of another type; names it.
            SchemaVersionError: If Redis has another layout.
        """
        await self.ensure_schema()
        keys = Keys(pipeline)
        for start in range(0, max(1, len(experiences)), _BATCH):
            batch = experiences[start : start + _BATCH]
            async with self._redis.pipeline(transaction=True) as multi:
                for experience in batch:
                    name = keys.experience(experience.id)
                    multi.delete(name)
                    multi.hset(name, mapping=to_fields(experience))
                    multi.zadd(keys.experiences, {experience.id: experience.time_s})
                    multi.zadd(keys.rewards, {experience.id: experience.reward.total})
                    multi.zadd(keys.surprisals, {experience.id: experience.surprisal})
                if start + _BATCH >= len(experiences):
                    self._finish(multi, keys, state, frontier, tuple(evicted))
                try:
                    await multi.execute()
                except redis.ResponseError as error:
                    raise await self._explained(keys, error) from error

    @translated
    async def save_state(self, pipeline: str, state: Mapping[str, str]) -> None:
        """Write the controller's state alone."""
        await self._redis.hset(Keys(pipeline).controller, mapping=dict(state))

    @translated
    async def load(self, pipeline: str, limit: int = DEFAULT_CAPACITY) -> Loaded:
        """Read the newest ``limit`` experiences of a pipeline and the controller's state.

        Raises:
            MemoryUnavailable: If Redis cannot be reached, or the index is no sorted set.
        """
        keys = Keys(pipeline)
        try:
            identifiers = (await self._redis.zrevrange(keys.experiences, 0, limit - 1))[::-1]
        except redis.ResponseError as error:
            raise await self._explained(keys, error) from error
        experiences: list[Experience] = []
        damaged: list[EntryError] = []
        for start in range(0, len(identifiers), _BATCH):
            for read in await self._read(pipeline, identifiers[start : start + _BATCH]):
                if isinstance(read, Experience):
                    experiences.append(read)
                else:
                    damaged.append(read)
        state = await self._fetch([keys.controller], _LARGEST_STATE_BYTES)
        if isinstance(state[0], EntryError):
            damaged.append(state[0])
        return Loaded(tuple(experiences), {} if isinstance(state[0], EntryError) else state[0], tuple(damaged))

    @translated
    async def get(self, pipeline: str, identifiers: Sequence[str]) -> dict[str, Experience | EntryError]:
        """Some experiences by id; an EntryError for each that is not there or cannot be read."""
        found: dict[str, Experience | EntryError] = {}
        for start in range(0, len(identifiers), _BATCH):
            batch = identifiers[start : start + _BATCH]
            found |= zip(batch, await self._read(pipeline, batch), strict=True)
        return found

    async def _read(self, pipeline: str, identifiers: Sequence[str]) -> list[Experience | EntryError]:
        keys = Keys(pipeline)
        names = [keys.experience(identifier) for identifier in identifiers]
        found: list[Experience | EntryError] = []
        for identifier, name, fields in zip(
            identifiers, names, await self._fetch(names, _LARGEST_EXPERIENCE_BYTES), strict=True
        ):
            if isinstance(fields, EntryError):
                found.append(fields)
            elif len(identifier) > _LONGEST_ID:
                found.append(EntryError(f"{keys.experiences} id", identifier, f"at most {_LONGEST_ID} characters"))
            elif not fields:
                found.append(EntryError(f"{keys.experiences} {identifier[:_LONGEST_ID]}", None, f"a hash at {name}"))
            else:
                try:
                    found.append(from_fields(name, pipeline, identifier, fields))
                except EntryError as error:
                    found.append(error)
        return found

    async def _fetch(self, names: Sequence[str], largest_bytes: int) -> list[dict[str, str] | EntryError]:
        """Some hashes, each only if it is one and not larger than it may be."""
        async with self._redis.pipeline(transaction=False) as many:
            for name in names:
                many.memory_usage(name, samples=0)
            sizes = await many.execute(raise_on_error=False)
        small = [
            name for name, size in zip(names, sizes, strict=True) if not isinstance(size, int) or size <= largest_bytes
        ]
        answers: dict[str, Any] = {}
        if small:
            async with self._redis.pipeline(transaction=False) as many:
                for name in small:
                    many.hgetall(name)
                answers = dict(zip(small, await many.execute(raise_on_error=False), strict=True))
        found: list[dict[str, str] | EntryError] = []
        for name, size in zip(names, sizes, strict=True):
            answer = answers.get(name)
            if name not in answers:
                found.append(EntryError(f"{name} size", f"{size} bytes", f"at most {largest_bytes} bytes"))
            elif isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
                found.append(EntryError(f"{name} type", await self._redis.type(name), "a hash"))
            elif isinstance(answer, Exception):
                raise answer
            else:
                found.append(dict(answer or {}))
        return found

    async def _explained(self, keys: Keys, error: redis.ResponseError) -> MemoryUnavailable:
        """Redis' WRONGTYPE does not say which key: look."""
        kinds = {
            keys.experiences: "zset",
            keys.rewards: "zset",
            keys.surprisals: "zset",
            keys.frontier: "hash",
            keys.decisions: "stream",
            keys.controller: "hash",
        }
        if "WRONGTYPE" not in str(error):
            return MemoryUnavailable(f"Redis: {type(error).__name__}: {error}")
        wrong = []
        for name, expected in kinds.items():
            found = str(await self._redis.type(name))
            if found not in (expected, "none"):
                wrong.append(f"{name} is a {found}, not a {expected}")
        return MemoryUnavailable(f"Redis: WRONGTYPE: {'; '.join(wrong) or error}")

    @translated
    async def forget(self, pipeline: str) -> int:
        """Delete everything about a pipeline; gives how many keys there were."""
        names = await self.keys(pipeline)
        for start in range(0, len(names), _BATCH):
            await self._redis.unlink(*names[start : start + _BATCH])
        return len(names)

    @translated
    async def keys(self, pipeline: str) -> list[str]:
        """The names of all keys of a pipeline."""
        found = self._redis.scan_iter(match=_literal(Keys(pipeline).everything), count=1000)
        return sorted({str(key) async for key in found})

    @translated
    async def count(self, pipeline: str) -> int:
        """How many experiences Redis holds of a pipeline."""
        return int(await self._redis.zcard(Keys(pipeline).experiences))

    @translated
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

    @translated
    async def pipelines(self) -> tuple[str, ...]:
        """All pipelines that memory knows."""
        found = set()
        async for key in self._redis.scan_iter(match="sair:{*}:controller", count=1000):
            pipeline = pipeline_of(key)
            if pipeline:
                found.add(pipeline)
        return tuple(sorted(found))

    @translated
    async def append_decision(self, pipeline: str, record: Mapping[str, str]) -> str:
        """Append a record to the pipeline's journal; gives its stream id."""
        keys = Keys(pipeline)
        try:
            identifier = await self._redis.xadd(keys.decisions, dict(record), maxlen=_JOURNAL_LENGTH, approximate=True)
        except redis.ResponseError as error:
            raise await self._explained(keys, error) from error
        return str(identifier)

    @translated
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
