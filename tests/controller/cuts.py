"""Killing a coroutine where it waits: nothing of it runs any more, as after SIGKILL, and nobody is told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

__all__ = ["Cut", "Killed"]

T = TypeVar("T")

_DEAD: list[object] = []
"""Kept for good: to collect a coroutine is to close it, and closing runs what a dead process would not."""


class Killed(BaseException):
    """The process is gone. No except clause of ours may catch it."""


class Cut(Generic[T]):
    """Await a coroutine up to its n-th wait and never go on; ``run`` does so in a task of its own, whose timers die with it.

    Args:
        coroutine: What is killed.
        at: At which wait, counted from 1; None: never.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], at: int | None) -> None:
        self._coroutine = coroutine
        self._at = at
        self.waits = 0
        """How often it has waited."""

    async def run(self) -> T:
        """Raises Killed where it was killed."""

        async def alone() -> T:
            return await self

        return await asyncio.create_task(alone())

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._coroutine.__await__()
        try:
            waited = next(inner)
            while True:
                self.waits += 1
                if self.waits == self._at:
                    _DEAD.append(inner)
                    raise Killed
                try:
                    answer = yield waited
                except BaseException as error:  # whatever the loop throws in belongs to the coroutine
                    waited = inner.throw(error)
                else:
                    waited = inner.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
