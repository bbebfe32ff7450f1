"""Who scales which pipelines, where several controllers share them: shards by namespace, spread evenly over those that live. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

__all__ = ["MEMBERS", "Members", "fair_share", "layout_of", "lease_of", "shard_of", "surplus"]

MEMBERS: Final = "sair.dev/members"
"""Annotation on the common Lease: a number per controller that grows while it lives, as JSON."""
_MOST_MEMBERS: Final = 64
_MOST_CHARACTERS: Final = 16_000


def shard_of(namespace: str, shards: int) -> int:
    """The shard a namespace's pipelines belong to, the same everywhere and for ever: of 0 to shards − 1."""
    return int.from_bytes(hashlib.sha256(namespace.encode()).digest()[:8], "big") % shards


def lease_of(name: str, shard: int) -> str:
    """The Lease of one shard."""
    return f"{name}-{shard}"


def layout_of(shards: int) -> str:
    """What stands as holder in the common Lease, the same for all who divide the pipelines in the same way: nobody else may act."""
    return f"shards-{shards}"


def fair_share(shards: int, members: Collection[str], me: str) -> int:
    """How many shards one of several controllers holds: they differ by one at most, and none is left over.

    Args:
        shards: How many there are.
        members: Identities of those that live; ``me`` counts whether or not it is among them.
        me: Whose share.
    """
    everybody = sorted({*members, me})
    least, more = divmod(shards, len(everybody))
    return least + (everybody.index(me) < more)


def surplus(held: Collection[int], share: int) -> tuple[int, ...]:
    """Which of the shards held to give away."""
    return tuple(sorted(held)[share:])


@dataclass(frozen=True, slots=True)
class Members:
    """Who lives, judged by one's own clock alone: those whose number was seen to grow within the last so many seconds."""

    numbers: Mapping[str, int]
    seen_s: Mapping[str, float]
    """When each number was first seen, local seconds."""

    @classmethod
    def none(cls) -> Members:
        """Nobody was seen yet."""
        return cls({}, {})

    def see(self, text: object, now: float) -> Members:
        """Take in what the annotation says; what makes no sense counts as nobody.

        Args:
            text: Its value, if any.
            now: Local time, seconds.
        """
        found = _numbers(text)
        seen = {
            name: self.seen_s[name] if self.numbers.get(name) == number and name in self.seen_s else now
            for name, number in found.items()
        }
        return Members(found, seen)

    def living(self, now: float, within_s: float) -> frozenset[str]:
        """Those that live."""
        return frozenset(name for name, at in self.seen_s.items() if now - at < within_s)

    def written(self, me: str, now: float, within_s: float) -> str:
        """The annotation to write: those that live, and oneself one further."""
        living = self.living(now, within_s)
        kept = {name: number for name, number in self.numbers.items() if name in living}
        return msgspec.json.encode({**kept, me: self.numbers.get(me, 0) + 1}).decode()

    def without(self, me: str) -> str:
        """The annotation to write when one leaves."""
        return msgspec.json.encode({name: number for name, number in self.numbers.items() if name != me}).decode()


def _numbers(text: object) -> dict[str, int]:
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        return {}
    try:
        found: dict[str, Any] = msgspec.json.decode(text, type=dict[str, int])
    except (msgspec.MsgspecError, RecursionError):
        return {}
    return found if len(found) <= _MOST_MEMBERS else {}
