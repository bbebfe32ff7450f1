"""Whether Redis keeps what it is given: one that evicts keys by itself, as caches do, takes memories apart."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import redis.asyncio as redis

__all__ = ["REMEDY", "evicting"]

REMEDY: Final = "set maxmemory-policy noeviction; SAIR bounds its memory by itself"


async def evicting(client: Any) -> str:
    """The policy by which Redis throws keys away where it is full; empty if it does not, or tells this user nothing of it.

    Args:
        client: Of Redis; of a cluster one node is asked.
    """
    with contextlib.suppress(redis.RedisError, OSError):
        told = await client.info("memory")
        policy = str(told.get("maxmemory_policy", ""))
        if int(told.get("maxmemory", 0)) > 0 and policy != "noeviction":
            return policy
    return ""
