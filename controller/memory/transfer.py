"""Between Redis and a file: everything out; in again without overwriting what is newer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from controller.experience import Experience
from controller.memory.archive import Archive, frontier_of
from controller.memory.exchange import Archived, parse, updated_s
from controller.memory.store import Loaded, Store
from sair.errors import EntryError, InvalidInput

__all__ = ["EVERYTHING", "Merged", "collect", "merge", "read_file"]

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
        frontier = frontier_of(list(everything.values()))
        await store.restore(pipeline, fresh, archived.state if newer else {}, frontier)
    decisions = await Archive(store).extend_journal(pipeline, archived.decisions)
    return Merged(len(fresh) - repaired, repaired, kept, newer, decisions)


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
