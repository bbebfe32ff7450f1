"""Redis is away when a leader takes over; once it is back, what the one before left open is finished."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Loaded, Store
from tests.controller.cuts import Killed
from tests.controller.histories import history
from tests.controller.test_resuming import KEY, Run, plant, told


async def test_a_controller_that_starts_without_redis_does_not_write_over_what_redis_knows(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        run = Run(url, plant())
        await run.rounds(4)
    await run.store.close()
    run.take_office()
    await run.rounds(2)
    assert run.watcher.reports[-1].round == 1
    async with embedded_server(tmp_path, port=port):
        await run.rounds(2)
        assert [report.round for report in run.watcher.reports[-2:]] == [4, 5]
        state = (await run.store.load(KEY)).state
        assert state["round"] == "6"
        # The round that the first of them did not live to see the end of is concluded by what the second saw first.
        assert len((await run.store.load(KEY)).experiences) == 4 + 3
        frontier = await run.store.client.hgetall(f"sair:{{{KEY}}}:frontier")
        assert {name.split("-")[1] for name in frontier} == {"w1", "w2"}
        await run.close()


async def left_behind(tmp_path: Path, shown: int, *, untold: bool = False) -> tuple[Run, int]:
    """A leader that died when half of its third round was asked for, and its successor, without Redis; and Redis' port.

    Args:
        tmp_path: Where Redis keeps its data.
        shown: How many rounds the world says were decided.
        untold: It did not come to record how its second round ended.
    """
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        run = Run(url, plant())
        await run.rounds(2)
        run.world.dies_after = 1
        with contextlib.suppress(Killed):
            await run.killed_round()
        if untold:
            [(newest, record), *_] = await run.store.decisions(KEY, 1)
            assert record["kind"] == "concluded"
            await run.store.client.xdel(f"sair:{{{KEY}}}:decisions", newest)
    run.world.shown = shown
    return run, port


@pytest.mark.parametrize(
    ("shown", "untold"),
    [(3, False), (2, False), (3, True)],
    ids=["counted on", "a number taken twice", "an end that was not told"],
)
async def test_once_redis_is_back_the_rounds_of_the_leader_before_are_finished(
    tmp_path: Path, shown: int, untold: bool
) -> None:
    run, port = await left_behind(tmp_path, shown, untold=untold)
    await run.rounds(1)
    assert run.watcher.reports[-1].round == shown
    asked, wished = run.world.asked, run.wished
    async with embedded_server(tmp_path, port=port):
        await run.rounds(1)
        # Rounds were decided since: nothing more is asked for.
        assert (run.world.asked, run.wished) == (asked, wished)
        await run.rounds(1)
        recorded, experiences = await history(run.store)
        dead = next(each for each in recorded if each.round == 2)
        outcomes = {f"{each.stage} {each.knob}": each for each in dead.outcomes() or ()}
        assert outcomes["inference replicas"].granted == outcomes["inference replicas"].wished
        assert outcomes["preprocess replicas"].granted > outcomes["preprocess replicas"].wished
        assert outcomes["preprocess replicas"].reason == "others were decided before it was found"
        assert dead.concluded is not None
        assert (dead.concluded["experience"], dead.concluded["action"]) == (
            "00000002-w2-late",
            "inference: replicas +1",
        )
        identifiers = [each.id for each in experiences]
        first = ["00000000-w1", "00000001-w2-late" if untold else "00000001-w1", "00000002-w2-late"]
        assert identifiers == [*first, *(f"{number:08d}-w2" for number in (shown, max(3, shown + 1)))]
        assert all(each.concluded is not None for each in recorded[:-1])
        frontier = await run.store.client.hgetall(f"sair:{{{KEY}}}:frontier")
        assert frontier.keys() <= set(identifiers)
        await run.close()


async def test_where_redis_is_back_before_the_first_round_the_rest_of_a_decision_is_asked_for(tmp_path: Path) -> None:
    run, port = await left_behind(tmp_path, 0)
    await run.recall()
    before, asked = run.wished, run.world.asked
    async with embedded_server(tmp_path, port=port):
        await run.loop.round(run.view)
        assert run.world.asked == asked + 1
        assert run.wished["preprocess"].replicas == before["preprocess"].replicas - 1
        assert [report.round for report in run.watcher.reports[-2:]] == [2, 3]
        kinds = await told(run.store)
        assert kinds["applied"] == Counter([1, 2])
        assert kinds["concluded"] == Counter([0, 1, 2])
        assert [e.id for e in (await run.store.load(KEY)).experiences][:2] == ["00000000-w1", "00000001-w1"]
        await run.close()


async def test_before_redis_was_read_its_frontier_is_left_as_it_is(redis_url: str, store: Store) -> None:
    run = Run(redis_url, plant())
    await run.rounds(3)
    await run.store.close()
    known = await store.client.hgetall(f"sair:{{{KEY}}}:frontier")
    run.take_office()

    class Blind(MirroredMemory):
        """Redis comes back after it was asked what it knows, and before it is given what a round gave."""

        async def load(self, pipeline: str) -> Loaded:
            return Loaded((), {}, whole=False)

    run.loop._memory = Blind(run.store)
    await run.rounds(2)
    assert known
    assert await store.client.hgetall(f"sair:{{{KEY}}}:frontier") == known
    await run.close()
