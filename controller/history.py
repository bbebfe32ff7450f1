"""A pipeline's history as the commands read it: from Redis, or from an export."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from controller.experience import Experience
from controller.memory.console import opened
from controller.memory.keys import Keys
from controller.memory.transfer import collect, read_file
from controller.recorded import RecordedRound, rounds_in
from sair.errors import EntryError, NotFound

__all__ = ["FromFile", "History", "Pipeline", "read_history"]

Pipeline = Annotated[str, typer.Argument(help="namespace/name")]
_SHOWN = 10

FromFile = Annotated[Path | None, typer.Option(help="Read an export of sair memory export instead of Redis.")]


@dataclass(frozen=True, slots=True)
class History:
    """One pipeline's journal and experiences, oldest first."""

    rounds: tuple[RecordedRound, ...]
    experiences: tuple[Experience, ...]
    damaged: tuple[EntryError, ...]

    def numbered(self, number: int | None) -> list[RecordedRound]:
        """The rounds of this number, the newest one for None.

        Raises:
            NotFound: If the journal has none; says what it has.
        """
        wanted = self.rounds[-1].round if number is None else number
        found = [each for each in self.rounds if each.round == wanted]
        if not found:
            raise NotFound(
                f"the journal has no round {wanted}; it has {self.rounds[0].round} to {self.rounds[-1].round}"
            )
        return found


async def read_history(pipeline: str, redis_url: str, from_file: Path | None) -> History:
    """Read a pipeline's history from Redis, or from an export.

    Raises:
        NotFound: If there is none.
        MemoryUnavailable: If Redis cannot be reached.
        InvalidInput: If the file cannot be read or is malformed.
    """
    damaged: tuple[EntryError, ...] = ()
    if from_file is not None:
        everything = await asyncio.to_thread(read_file, from_file)
        if pipeline not in everything:
            raise NotFound(f"{from_file.name} has nothing about {pipeline}; {_known(everything)}")
        key, archived, known = from_file.name, everything[pipeline], tuple(everything)
    else:
        async with opened(redis_url) as store:
            key = Keys(pipeline).decisions
            archived, damaged = await collect(store, pipeline)
            known = () if archived.decisions else await store.pipelines()
    rounds, unreadable = rounds_in(key, archived.decisions)
    if not rounds and unreadable:
        raise NotFound(f"no round of {pipeline} can be read: {unreadable[0]}")
    if not rounds and pipeline in known:
        raise NotFound(f"the journal of {pipeline} is empty")
    if not rounds:
        raise NotFound(f"Redis has nothing about {pipeline}; {_known(known)}")
    ordered = sorted(archived.experiences.values(), key=lambda each: (each.time_s, each.id))
    return History(rounds, tuple(ordered), (*damaged, *unreadable))


def _known(names: Iterable[str]) -> str:
    """The pipelines there are, in words: a name is easily mistyped, and easily written without its namespace."""
    known = sorted(names)
    if not known:
        return "it knows no pipeline yet"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"it knows {', '.join(known[:_SHOWN])}{more}"
