"""How Redis is written: three scripts, each atomic, each refusing whoever has been succeeded, each telling what was there before.

Beside a pipeline's memory stands a small hash, ``…:writes``:

- ``claim``: whoever begins to lead takes the next number and writes under it. A lower one is refused from then on, so that a leader
  that was paused and has a successor by now changes nothing any more. Numbers are Redis' own and not the Lease's: several Leases may
  have governed one pipeline, and one that was deleted begins anew.
- ``writes``: how many writes there were. A writer that knows of more than are there has an older copy before it.
- ``records``: how many journal records were ever appended, which tells how many an older copy lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from controller.experience import Experience
from controller.memory.codec import bounded, to_fields
from controller.memory.keys import Keys

__all__ = ["FENCED", "Held", "Writer", "append", "claim", "written"]

FENCED: Final = "FENCED"
"""What the error of a refused write begins with."""

_PREAMBLE: Final = """
local held = redis.call('HMGET', KEYS[1], 'claim', 'writes', 'records')
for place = 1, 3 do held[place] = tonumber(held[place] or '0') or 0 end
local function refusal(claim)
  if claim > 0 and held[1] > claim then
    return redis.error_reply(string.format('FENCED claim %.0f: %.0f holds', claim, held[1]))
  end
end
local function account(claim, writes, records, more)
  redis.call('HSET', KEYS[1], 'claim', string.format('%.0f', math.max(held[1], claim)),
    'writes', string.format('%.0f', math.max(held[2], writes) + 1),
    'records', string.format('%.0f', math.max(held[3], records) + more))
end
"""
"""Redis refuses a script's first write where it has no room, unless the script has deleted something before. So whatever makes room
comes first: who is at its bounds goes on in a full Redis, who would grow is refused whole."""

_CLAIM: Final = (
    _PREAMBLE
    + """
account(held[1] + 1, tonumber(ARGV[1]), tonumber(ARGV[2]), 0)
return {held[1] + 1, held[2], held[3]}
"""
)

_APPEND: Final = (
    _PREAMBLE
    + """
local claim, most, bytes = tonumber(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local refused = refusal(claim)
if refused then return refused end
-- Besides its text a record takes a few bytes a field, and what the allocator rounds its block up by.
for place = 6, #ARGV do bytes = bytes - #ARGV[place] - 16 end
bytes = bytes - 2048
local size, length = redis.call('MEMORY', 'USAGE', KEYS[2], 'SAMPLES', '0') or 0, redis.call('XLEN', KEYS[2])
while length > 0 and size > bytes do
  length = math.max(0, math.min(length - 1, math.floor(length * bytes / size)))
  redis.call('XTRIM', KEYS[2], 'MAXLEN', length)
  size = redis.call('MEMORY', 'USAGE', KEYS[2], 'SAMPLES', '0')
end
account(claim, tonumber(ARGV[2]), tonumber(ARGV[3]), 1)
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', most, '*', unpack(ARGV, 6))
return {id, held[2], held[3]}
"""
)

_SAVE: Final = (
    _PREAMBLE
    + """
local function set(key, fields)
  local flat = {}
  for field, value in pairs(fields) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
    if #flat >= 2000 then
      redis.call('HSET', key, unpack(flat))
      flat = {}
    end
  end
  if #flat > 0 then redis.call('HSET', key, unpack(flat)) end
end
local given = cjson.decode(ARGV[1])
local refused = refusal(given.claim)
if refused then return refused end
local there = redis.call('ZCARD', KEYS[2])
for place, id in ipairs(given.evicted) do
  -- Who does not know the frontier forgets nothing of it.
  if given.frontier ~= cjson.null or redis.call('HEXISTS', KEYS[6], id) == 0 then
    redis.call('DEL', KEYS[6 + #given.experiences + place])
    for index = 2, 4 do redis.call('ZREM', KEYS[index], id) end
  end
end
account(given.claim, given.writes, 0, 0)
for place, each in ipairs(given.experiences) do
  local key = KEYS[6 + place]
  redis.call('DEL', key)
  set(key, each.fields)
  redis.call('ZADD', KEYS[2], each.time, each.id)
  redis.call('ZADD', KEYS[3], each.reward, each.id)
  redis.call('ZADD', KEYS[4], each.surprisal, each.id)
end
set(KEYS[5], given.state)
if given.frontier ~= cjson.null then
  redis.call('DEL', KEYS[6])
  set(KEYS[6], given.frontier)
end
return {there, held[2], held[3]}
"""
)


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, and what it knows of what was written before; nobody in particular knows nothing and is never refused."""

    claim: int = 0
    writes: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """What was there before a write."""

    writes: int
    records: int
    experiences: int = 0
    """In the index; only a save looks."""
    identifier: str = ""
    """Of the journal record that was appended."""


async def claim(client: Any, keys: Keys, writer: Writer) -> Writer:
    """Take the next claim: whoever held one before is refused from now on. Gives it with what was there before."""
    number, writes, records = await client.eval(_CLAIM, 1, keys.writes, writer.writes, writer.records)
    return Writer(int(number), int(writes), int(records))


async def append(
    client: Any, keys: Keys, record: Mapping[str, str], writer: Writer, most_records: int, most_bytes: int
) -> Held:
    """Append a journal record and let go of the oldest beyond the bounds; the newest always stays.

    Args:
        client: Of Redis.
        keys: Of the pipeline.
        record: Fields.
        writer: Who writes.
        most_records: About how many records may stay.
        most_bytes: How many bytes of Redis they may take.
    """
    flat = [part for pair in record.items() for part in pair]
    arguments = (writer.claim, writer.writes, writer.records, most_records, most_bytes, *flat)
    identifier, writes, records = await client.eval(_APPEND, 2, keys.writes, keys.decisions, *arguments)
    return Held(int(writes), int(records), identifier=str(identifier))


async def written(
    client: Any,
    keys: Keys,
    experiences: Sequence[Experience],
    evicted: Iterable[str],
    state: Mapping[str, str],
    frontier: Mapping[str, str] | None,
    writer: Writer,
) -> Held:
    """Write experiences, state and frontier and delete what is evicted.

    Args:
        client: Of Redis.
        keys: Of the pipeline.
        experiences: A few hundred at most: Redis does nothing else meanwhile.
        evicted: Ids.
        state: Fields of the controller's hash.
        frontier: Fields of the frontier's hash; None leaves it as it is, and what stands in it is not deleted.
        writer: Who writes.
    """
    gone = list(evicted)
    entries = [
        {
            "id": each.id,
            "time": repr(each.time_s),
            "reward": repr(each.reward.total),
            "surprisal": repr(each.surprisal),
            "fields": to_fields(each),
        }
        for each in map(bounded, experiences)
    ]
    given = {
        "claim": writer.claim,
        "writes": writer.writes,
        "experiences": entries,
        "evicted": gone,
        "state": dict(state),
        "frontier": None if frontier is None else dict(frontier),
    }
    indexes = (keys.experiences, keys.rewards, keys.surprisals, keys.controller, keys.frontier)
    names = [keys.writes, *indexes, *(keys.experience(each.id) for each in experiences), *map(keys.experience, gone)]
    there, writes, records = await client.eval(_SAVE, len(names), *names, msgspec.json.encode(given).decode())
    return Held(int(writes), int(records), int(there))
