"""What a pipeline's language model used today: counted here at once, and kept in Redis for whoever leads next."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.memory.keys import Keys
from controller.memory.store import Store, translated
from sair.errors import EntryError, SairError
from sair.logs import get_logger

__all__ = ["Account", "Spending"]

_log = get_logger("llm")

_FIELDS: Final = ("tokens", "dollars")
_KEPT_S: Final = 8 * 86_400
"""How long a day's key stays: a week for people to look at."""
_PATIENCE_S: Final = 1.0
"""How long Redis may take; a round must not wait for it."""
_SAME_DOLLARS: Final = 1e-9
"""Dollars below which two sums are the same: they are added up in different orders."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens, in and out, and dollars."""

    tokens: int = 0
    dollars: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(self.tokens + other.tokens, self.dollars + other.dollars)

    def __sub__(self, other: Spending) -> Spending:
        return Spending(max(0, self.tokens - other.tokens), max(0.0, self.dollars - other.dollars))

    def __bool__(self) -> bool:
        return self.tokens > 0 or self.dollars > _SAME_DOLLARS

    def reaches(self, tokens: int, dollars: float) -> bool:
        """A limit is used up; one of 0 is none."""
        return (0 < tokens <= self.tokens) or (0 < dollars <= self.dollars)


class Account:
    """What one pipeline spent, day by day (UTC), as long as one controller leads it.

    What is spent counts here at once and goes to Redis by increments. A write whose answer was lost is written again, so it may count
    twice but never not at all; a Redis that lost its count is given it back; and one that was never read is no proof that anything is
    left: with a limit, nothing is spent until it could be.

    Args:
        pipeline: ``namespace/name``.
        store: The Redis it is kept in.
        pause_s: How long a Redis that failed is left alone, seconds.
    """

    def __init__(self, pipeline: str, store: Store, *, pause_s: float = 10.0) -> None:
        self._keys = Keys(pipeline)
        self._store = store
        self._pause_s = pause_s
        self._day = ""
        self._kept = Spending()
        """What Redis had of today when it was asked last."""
        self._unsaved: dict[str, Spending] = {}
        self._read = False
        self._problem = ""
        self._ask_again_at = -math.inf
        self._exchange = asyncio.Lock()

    def add(self, now_s: float, spent: Spending) -> None:
        """Count at once; ``settle`` writes it.

        Args:
            now_s: Unix time.
            spent: What a call used.
        """
        self._turn(now_s)
        self._unsaved[self._day] = self._unsaved.get(self._day, Spending()) + spent

    def spent(self, now_s: float) -> Spending:
        """Today's sum, as far as it is known."""
        self._turn(now_s)
        return self._kept + self._unsaved.get(self._day, Spending())

    def refusal(self, now_s: float, tokens_per_day: int, dollars_per_day: float) -> str:
        """Why nothing more may be spent today; empty if something may."""
        if self.spent(now_s).reaches(tokens_per_day, dollars_per_day):
            return "today's budget of this pipeline is used up"
        if (tokens_per_day or dollars_per_day) and not self._read:
            return f"what this pipeline spent today cannot be read, so its budget may be used up: {self._problem}"
        return ""

    async def settle(self, now_s: float) -> None:
        """Write what is not written, and read today's sum if it was never read. Takes a second at most; never raises for Redis.

        Args:
            now_s: Unix time.
        """
        self._turn(now_s)
        async with self._exchange:
            if (self._read and not self._unsaved) or time.monotonic() < self._ask_again_at:
                return
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._settle()
            except (SairError, TimeoutError) as error:
                self._ask_again_at = time.monotonic() + self._pause_s
                self._problem = str(error) or f"Redis did not answer within {_PATIENCE_S:g} s"
                _log.warning(
                    "what the language model spent stays uncounted in Redis for now",
                    problem=self._problem,
                    day=self._day,
                )

    def _turn(self, now_s: float) -> None:
        """A new day begins with nothing. Where the day before was known, so is the new one: nobody else leads this pipeline meanwhile."""
        day = dt.datetime.fromtimestamp(now_s, dt.UTC).date().isoformat()
        if day != self._day:
            self._day, self._kept = day, Spending()

    async def _settle(self) -> None:
        if not self._read:
            await self._store.ensure_schema()
            day, kept = self._day, await self._fetched(self._day)
            if day == self._day:
                self._kept = kept
            self._read = True
        for day, written in list(self._unsaved.items()):
            had = self._kept if day == self._day else Spending()
            has = await self._written(day, written)
            self._take_off(day, written)
            if day != self._day:
                continue
            self._kept = has
            lost = had + written - has
            if lost:
                _log.warning(
                    "Redis lost what the language model spent today; writing it back", key=self._keys.spending(day)
                )
                self._unsaved[day] = self._unsaved.get(day, Spending()) + lost
                self._kept = await self._written(day, lost)
                self._take_off(day, lost)

    def _take_off(self, day: str, written: Spending) -> None:
        # Something may have been added while it was being written.
        rest = self._unsaved[day] - written
        if rest:
            self._unsaved[day] = rest
        else:
            del self._unsaved[day]

    @translated
    async def _fetched(self, day: str) -> Spending:
        key = self._keys.spending(day)
        return _parsed(key, await self._store.client.hmget(key, _FIELDS))

    @translated
    async def _written(self, day: str, spent: Spending) -> Spending:
        """Increment; gives the day's sums afterwards."""
        key = self._keys.spending(day)
        async with self._store.client.pipeline(transaction=True) as multi:
            multi.hincrby(key, "tokens", spent.tokens)
            multi.hincrbyfloat(key, "dollars", repr(spent.dollars))
            multi.expire(key, _KEPT_S)
            return _parsed(key, (await multi.execute())[:2])


def _parsed(key: str, values: Sequence[Any]) -> Spending:
    try:
        spending = Spending(*(kind(value or 0) for kind, value in zip((int, float), values, strict=True)))
    except ValueError as error:
        raise EntryError(key, values, "whole tokens and a number of dollars") from error
    if spending.tokens < 0 or not 0 <= spending.dollars < math.inf:
        raise EntryError(key, values, "tokens and dollars of at least 0")
    return spending
