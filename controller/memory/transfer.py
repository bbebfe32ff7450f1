"""Between Redis and a file: everything out; in again without overwriting what is newer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from controller.experience import Experience
from controller.memory.archive import Archive, frontier_of
from controller.memory.exchange import Archived, parse, updated_s
from controller.memory.store import Loaded, Store
from sair.errors import EntryError, InvalidInput

__all__ = ["EVERYTHING", "Merged", "collect", "merge", "read_file", "replacing"]

EVERYTHING = 1_000_000
"""More experiences than any memory holds; see the setting of the capacity."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of a file's entries of one pipeline."""

    added: int = 0
    repaired: int = 0
    """Took the place of one that could not be read."""
    kept: int = 0
    """Redis had the same one, or a newer one."""
    state: bool = False
    """The controller's state was taken over."""
    decisions: int = 0

    @property
    def changed(self) -> bool:
        """Anything was written."""
        return bool(self.added or self.repaired or self.state or self.decisions)


async def collect(store: Store, pipeline: str, *, journal: bool = True) -> tuple[Archived, tuple[EntryError, ...]]:
    """Everything about one pipeline, and what of it cannot be read."""
    loaded: Loaded = await store.load(pipeline, EVERYTHING)
    archived = Archived({e.id: e for e in loaded.experiences}, loaded.state)
    if journal:
        archived.decisions = [record async for record in Archive(store).journal(pipeline)]
    return archived, loaded.damaged


async def merge(store: Store, pipeline: str, archived: Archived) -> Merged:
    """Take a file's entries over. Doing it twice changes nothing the second time.

    Args:
        store: Where to.
        pipeline: ``namespace/name``.
        archived: Validated entries.
    """
    there = await store.get(pipeline, list(archived.experiences))
    fresh: list[Experience] = []
    repaired = kept = 0
    for identifier, experience in archived.experiences.items():
        old = there[identifier]
        if isinstance(old, Experience) and old.time_s >= experience.time_s:
            kept += 1
            continue
        fresh.append(experience)
        missing = isinstance(old, EntryError) and old.value is None
        repaired += isinstance(old, EntryError) and not missing
    held = await store.load(pipeline, EVERYTHING)
    newer = bool(archived.state) and updated_s(archived.state) > updated_s(held.state)
    if archived.state and not held.state:
        newer = True
    if fresh or newer:
        everything = {e.id: e for e in (*held.experiences, *fresh)}
        frontier = frontier_of(everything.values())
        await store.restore(pipeline, fresh, archived.state if newer else {}, frontier)
    decisions = await Archive(store).extend_journal(pipeline, archived.decisions)
    return Merged(len(fresh) - repaired, repaired, kept, newer, decisions)


@contextlib.asynccontextmanager
async def replacing(path: Path) -> AsyncIterator[TextIO]:
    """A file that takes its place only once it is complete: until then, and if that never is, what was there stays.

    What is there and no plain file, such as a pipe, is written as it is.

    Raises:
        InvalidInput: If it cannot be written.
    """
    try:
        place, part = await asyncio.to_thread(_begun, path)
        file = await asyncio.to_thread(part.open, "w", encoding="utf-8")
        try:
            yield file
            await asyncio.to_thread(_complete, file, part, place)
        finally:
            await asyncio.to_thread(_ended, file, part, place)
    except OSError as error:
        raise InvalidInput("--output", str(path), f"a file that can be written ({error.strerror})") from error


def _begun(path: Path) -> tuple[Path, Path]:
    """The file's place, where no link is followed any more, and beside it, so that it can take its place at once, what is written first."""
    if path.exists() and not path.is_file():
        return path, path
    place = Path(os.path.realpath(path))
    part = place.with_name(f".sair-export-{secrets.token_hex(4)}")
    if place.exists():
        with place.open("a"):
            pass  # what must not be written must not be replaced either
        part.touch(exist_ok=False)
        shutil.copymode(place, part)
    return place, part


def _complete(file: TextIO, part: Path, place: Path) -> None:
    file.flush()
    if part != place:
        os.fsync(file.fileno())
        part.replace(place)


def _ended(file: TextIO, part: Path, place: Path) -> None:
    with contextlib.suppress(OSError):  # what could not be written before cannot be now
        file.close()
    if part != place:
        part.unlink(missing_ok=True)


def read_file(path: Path) -> dict[str, Archived]:
    """Read an export.

    Raises:
        InvalidInput: If the file cannot be read or is no UTF-8.
        EntryError: Names file, line and field of the first malformed line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return parse(path.name, lines, time.time())
    except UnicodeDecodeError as error:
        raise InvalidInput(path.name, str(error), "UTF-8 text") from error
    except OSError as error:
        raise InvalidInput("file", str(path), f"a file that can be read ({error.strerror})") from error
