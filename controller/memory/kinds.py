"""Which type each key of a pipeline has. Redis' WRONGTYPE does not say which key is of another one: this does."""

from __future__ import annotations

from typing import Any

from controller.memory.keys import Keys

__all__ = ["misplaced"]


async def misplaced(client: Any, keys: Keys) -> tuple[str, ...]:
    """What is in the way of a pipeline's memory: each of its keys that is of another type, in words.

    Args:
        client: Of Redis.
        keys: Of the pipeline.
    """
    kinds = {
        keys.experiences: "zset",
        keys.rewards: "zset",
        keys.surprisals: "zset",
        keys.frontier: "hash",
        keys.decisions: "stream",
        keys.controller: "hash",
        keys.writes: "hash",
    }
    async with client.pipeline(transaction=False) as many:
        for name in kinds:
            many.type(name)
        found = await many.execute()
    return tuple(
        f"{name} is a {there}, not a {expected}"
        for (name, expected), there in zip(kinds.items(), map(str, found), strict=True)
        if there not in (expected, "none")
    )
