"""The store: every write of a round is one script on one slot, every read is checked field by field."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar, cast

import redis.asyncio as redis
from redis.exceptions import RedisClusterException

from controller.experience import Experience, Outcome
from controller.memory import writing
from controller.memory.codec import from_fields
from controller.memory.connection import close, connect, parse_url
from controller.memory.keys import SCHEMA, SCHEMA_KEY, Keys, pipeline_of
from controller.memory.kinds import misplaced
from controller.memory.writing import FENCED, Held, Writer
from sair.errors import EntryError, MemoryFull, MemoryUnavailable, SchemaVersionError, Superseded

__all__ = ["DEFAULT_CAPACITY", "JOURNAL_BYTES", "NOBODY", "FrontierPoint", "Indexed", "Loaded", "Store", "translated"]

DEFAULT_CAPACITY = 10_000
"""Experiences kept per pipeline unless told otherwise: 3.5 days of rounds every 30 s, 28 MB in Redis."""

JOURNAL_BYTES = 64 * 1024 * 1024
"""Bytes of Redis that a pipeline's journal may take unless told otherwise; 10,000 records of three stages without a model take 47 MB."""

_JOURNAL_LENGTH = 10_000
_BATCH = 500
_LARGEST_EXPERIENCE_BYTES = 1_000_000
"""Ours take about 2 kB; what is larger is not even fetched."""
_LARGEST_STATE_BYTES = 16_000_000
_LONGEST_ID = 200

NOBODY: Final = Writer()
"""Writes as a person does: under no claim."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A point of a frontier and the load bucket whose frontier it is on."""

    outcome: Outcome
    load_bucket: int

    def text(self) -> str:
        """As Redis has it."""
        ratios = {"latency_ratio": self.outcome.latency_ratio, "cost_ratio": self.outcome.cost_ratio}
        return json.dumps({"load_bucket": self.load_bucket, **ratios})


@dataclass(frozen=True, slots=True)
class Indexed:
    """An experience as the indexes have it."""

    id: str
    time_s: float
    surprisal: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """What memory held about one pipeline."""

    experiences: tuple[Experience, ...]
    """Oldest first."""
    state: Mapping[str, str]
    """Fields of ``…:controller``."""
    damaged: tuple[EntryError, ...] = ()
    """Entries that could not be read; they are left in place for a person to look at."""
    whole: bool = True
    """False: Redis could not be read."""


def translated(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorator: whatever the Redis client raises becomes MemoryUnavailable, or Superseded where a script refused to write."""

    @functools.wraps(call)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except redis.OutOfMemoryError as error:
            raise MemoryFull(f"Redis has no room left (maxmemory): {error}") from error
        except redis.ResponseError as error:
            if FENCED in str(error):
                raise Superseded(f"another controller leads by now: {error}") from error
            raise MemoryUnavailable(f"Redis: {type(error).__name__}: {error}") from error
        except (redis.RedisError, RedisClusterException, OSError, TimeoutError) as error:
            raise MemoryUnavailable(f"Redis: {type(error).__name__}: {error}") from error

    return wrapper


class Store:
    """Experiences, frontier, journal and controller state of all pipelines.

    Args:
        client: A Redis client that decodes responses.
        journal_bytes: What a pipeline's journal may take in Redis.
    """

    def __init__(self, client: redis.Redis, *, journal_bytes: int = JOURNAL_BYTES) -> None:
        # redis-py's asynchronous methods are typed as the union of both worlds.
        self._redis = cast(Any, client)
        self._journal_bytes = journal_bytes

    @classmethod
    def from_url(cls, url: str, *, journal_bytes: int = JOURNAL_BYTES) -> Store:
        """Connect lazily to one server, through Sentinels, or to a cluster; see ``connection.parse_url`` for the forms.

        Raises:
            InvalidInput: If the URL is malformed.
        """
        return cls(connect(parse_url(url)), journal_bytes=journal_bytes)

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
        # Looked at first: a Redis without room refuses to write what is there already.
        found = await self._redis.get(SCHEMA_KEY)
        if found is None and not await self._redis.set(SCHEMA_KEY, SCHEMA, nx=True):
            found = await self._redis.get(SCHEMA_KEY)
        if found not in (None, SCHEMA):
            raise SchemaVersionError(str(found), SCHEMA, f"sair memory migrate --to {SCHEMA}")

    @translated
    async def claim(self, pipeline: str, writer: Writer = NOBODY) -> Writer:
        """Begin to lead a pipeline: whoever wrote under an earlier claim is refused from now on.

        Args:
            pipeline: ``namespace/name``.
            writer: What is known of earlier writes.

        Returns:
            The claim, and what was there before.

        Raises:
            MemoryFull: If Redis has no room even for that.
            MemoryUnavailable: If Redis cannot be reached.
        """
        return await writing.claim(self._redis, Keys(pipeline), writer)

    @translated
    async def restore(
        self,
        pipeline: str,
        experiences: Sequence[Experience],
        state: Mapping[str, str],
        frontier: Mapping[str, FrontierPoint] | None,
        evicted: Iterable[str] = (),
        *,
        writer: Writer = NOBODY,
    ) -> Held:
        """Write experiences of one pipeline, the controller's state and the frontier, and drop what is evicted.

        Up to 500 experiences go in one script, whole or not at all; writing one twice changes nothing. The schema version is written
        before it: in a cluster its key lives in another slot.

        Args:
            pipeline: ``namespace/name``.
            experiences: To be written.
            state: Fields of ``…:controller``.
            frontier: The whole of it; None leaves it as it is, with the experiences that stand on it.
            evicted: Ids to forget.
            writer: Who writes.

        Returns:
            What was there before.

        Raises:
            MemoryFull: If Redis has no room.
            MemoryUnavailable: If Redis cannot be reached, or a key is in the way that is of another type; names it.
            SchemaVersionError: If Redis has another layout.
            Superseded: If somebody claimed the pipeline after the writer.
        """
        await self.ensure_schema()
        keys, before = Keys(pipeline), None
        points = None if frontier is None else {name: point.text() for name, point in frontier.items()}
        for start in range(0, max(1, len(experiences)), _BATCH):
            batch, last = experiences[start : start + _BATCH], start + _BATCH >= len(experiences)
            try:
                held = await writing.written(
                    self._redis,
                    keys,
                    batch,
                    evicted if last else (),
                    state if last else {},
                    points if last else None,
                    writer,
                )
            except redis.ResponseError as error:
                await self.explain(keys, error)
                raise
            before = before or held
        assert before is not None  # noqa: S101  # there is at least one batch
        return before

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
            await self.explain(keys, error)
            raise
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

    async def explain(self, keys: Keys, error: redis.ResponseError) -> None:
        """Redis' WRONGTYPE does not say which key: look, and raise what does."""
        if "WRONGTYPE" in str(error):
            wrong = await misplaced(self._redis, keys)
            raise MemoryUnavailable(f"Redis: WRONGTYPE: {'; '.join(wrong) or error}") from error

    @translated
    async def misplaced(self, pipeline: str) -> tuple[str, ...]:
        """Keys of a pipeline that are of another type than they ought to be, in words."""
        return await misplaced(self._redis, Keys(pipeline))

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
    async def index(self, pipeline: str) -> list[Indexed]:
        """All experiences as the indexes have them, oldest first."""
        keys = Keys(pipeline)
        times = await self._redis.zrange(keys.experiences, 0, -1, withscores=True)
        surprisals = dict(await self._redis.zrange(keys.surprisals, 0, -1, withscores=True))
        return [Indexed(str(name), float(time_s), float(surprisals.get(name, 0.0))) for name, time_s in times]

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
        # Any of them may be alone: an import without a state, a journal, a claim. The pattern leaves out the many hashes of experiences.
        async for key in self._redis.scan_iter(match="sair:{*}:*[rs]", count=1000):
            pipeline = pipeline_of(key)
            if pipeline and key in Keys(pipeline).telling:
                found.add(pipeline)
        return tuple(sorted(found))

    @translated
    async def append_decision(self, pipeline: str, record: Mapping[str, str], *, writer: Writer = NOBODY) -> Held:
        """Append a record to the pipeline's journal; gives what was there before and the record's stream id.

        Raises:
            MemoryFull: If Redis has no room.
            MemoryUnavailable: If Redis cannot be reached, or the journal is no stream.
            Superseded: If somebody claimed the pipeline after the writer.
        """
        keys = Keys(pipeline)
        try:
            return await writing.append(self._redis, keys, record, writer, _JOURNAL_LENGTH, self._journal_bytes)
        except redis.ResponseError as error:
            await self.explain(keys, error)
            raise

    @translated
    async def decisions(self, pipeline: str, count: int) -> list[tuple[str, dict[str, str]]]:
        """The newest records of the journal, newest first, each with its stream id."""
        return [
            (str(name), dict(fields))
            for name, fields in await self._redis.xrevrange(Keys(pipeline).decisions, count=count)
        ]


def _literal(prefix: str) -> str:
    """A MATCH pattern for a prefix: Redis' wildcards in it are escaped."""
    return "".join(f"\\{c}" if c in "*?[]^\\" else c for c in prefix) + "*"
