"""Memory from one simulated run to the next: a file as ``sair memory export`` writes it, moved to before the run's beginning."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from controller.knowledge import moved_by, restore, stored
from controller.memory.exchange import Archived, header, updated_s, written
from controller.memory.store import Store
from controller.memory.transfer import collect, merge, read_file
from controller.state import PipelineView
from controller.tuning import Tuning
from sair.errors import InvalidInput

__all__ = ["bring", "keep", "moved_before"]

_STATE_FIELD: Final = "learned_json"


async def bring(store: Store, path: Path, view: PipelineView) -> int:
    """Put an earlier run's memory of this pipeline into a store; gives how many experiences that were, 0 without a file.

    Raises:
        InvalidInput: If the file cannot be read, knows nothing of this pipeline, or holds what no controller writes.
    """
    if not await asyncio.to_thread(path.exists):
        return 0
    found = await asyncio.to_thread(read_file, path)
    if view.key not in found:
        raise InvalidInput(
            "--remember", str(path), f"a file that knows {view.key}; it knows {', '.join(found) or 'none'}"
        )
    await merge(store, view.key, moved_before(found[view.key], view))
    return len(found[view.key].experiences)


async def keep(store: Store, path: Path, key: str) -> None:
    """Write what a store knows of a pipeline, without the journal."""
    archived, _ = await collect(store, key, journal=False)
    await asyncio.to_thread(_write, path, header() + "".join(written(key, archived)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def moved_before(archived: Archived, view: PipelineView) -> Archived:
    """What an earlier run learned, its last round one round before time 0.

    Raises:
        InvalidInput: If its state cannot be read or holds a number that cannot be.
    """
    tuning = Tuning()
    times = [each.time_s for each in archived.experiences.values()]
    last = max([*times, updated_s(archived.state)], default=0.0)
    by_s = -(last + tuning.interval_s)
    # An experience is not dated before 1970, simulated time 0: earlier ones stand there, in the order of their rounds.
    experiences = {
        name: replace(each, time_s=max(0.0, each.time_s + by_s)) for name, each in archived.experiences.items()
    }
    state = dict(archived.state)
    if _STATE_FIELD in state:
        try:
            raw = msgspec.json.decode(state[_STATE_FIELD])
        except msgspec.DecodeError as error:
            raise InvalidInput(f"--remember {_STATE_FIELD}", str(error), "what a controller stored") from error
        known = restore(view, raw, [], tuning)
        known = replace(known, learned=moved_by(known.learned, by_s))
        state[_STATE_FIELD] = msgspec.json.encode(stored(known)).decode()
        state["updated_s"] = repr(updated_s(archived.state) + by_s)
    return Archived(experiences, state, [])
