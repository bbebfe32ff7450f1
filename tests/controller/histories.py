"""Real journals: what the loop wrote about some rounds in the simulated world."""

from __future__ import annotations

from controller.experience import Experience
from controller.loop import PipelineLoop
from controller.memory.keys import Keys
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.memory.transfer import collect
from controller.recorded import RecordedRound, rounds_in
from controller.tuning import Tuning
from tests.controller.scenes import Rounds, setup, simulated

__all__ = ["KEY", "history", "recorded_run"]

KEY = setup().key


async def recorded_run(store: Store, until_s: float = 400.0, workload: str = "burst") -> Rounds:
    """Let the loop run and leave its journal in the store."""
    world, watcher = simulated(workload, max(900.0, until_s)), Rounds()
    loop = PipelineLoop(KEY, world, MirroredMemory(store), Tuning(prices=setup().prices), watcher=watcher)
    await loop.run(lambda: world.clock.now() >= until_s)
    await world.clock.aclose()
    return watcher


async def history(store: Store) -> tuple[tuple[RecordedRound, ...], tuple[Experience, ...]]:
    """The journal's rounds and the experiences, oldest first."""
    archived, damaged = await collect(store, KEY)
    assert not damaged
    rounds, unreadable = rounds_in(Keys(KEY).decisions, archived.decisions)
    assert not unreadable
    return rounds, tuple(archived.experiences.values())
