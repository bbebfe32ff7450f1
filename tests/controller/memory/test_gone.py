import asyncio
from pathlib import Path

from controller.memory.copies import Losses
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from tests.builders import experience
from tests.controller.memory.telling import PIPELINE, Logs, journal


async def test_a_pipeline_that_is_gone_is_held_no_longer_than_until_it_is_written(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store)
        for name in ("a/kept", "a/gone", "a/late"):
            await memory.save([experience(1)], name, {"round": "1"}, {})
        await memory.forget("a/gone")
        assert len(memory.pipelines) == 2
    await memory.record("a/late", {"kind": "decision", "round": "2"})
    await memory.save([experience(2)], "a/late", {"round": "2"}, {})
    await memory.forget("a/late")
    assert "a/late" in memory.pipelines
    assert (memory.unsaved, memory.waiting) == (1, 1)
    async with embedded_server(tmp_path, port=port):
        await memory.save([experience(2)], "a/kept", {"round": "2"}, {})
        held: tuple[str, ...] = memory.pipelines
        assert held == ("a/kept",)
        assert memory.available
        assert [e.round for e in (await store.load("a/late")).experiences] == [1, 2]
        assert len(await store.decisions("a/late", 9)) == 1
        await store.close()


async def test_what_waits_of_a_gone_pipeline_is_written_once_by_whichever_of_the_others_comes_first(
    tmp_path: Path, logs: Logs
) -> None:
    numbers = ["2", "3", "4", "5"]
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store)
        names = ("a/one", "a/two", "a/three")
        for name in (*names, PIPELINE):
            await memory.save([experience(1)], name, {"round": "1"}, {})
    for number in numbers:
        await memory.record(PIPELINE, {"kind": "decision", "round": number})
    await memory.forget(PIPELINE)
    async with embedded_server(tmp_path, port=port):
        await asyncio.gather(*(store.client.ping() for _ in range(6)))
        await asyncio.gather(*(memory.save([experience(2)], name, {"round": "2"}, {}) for name in names))
        assert [each["round"] for each in await journal(store)] == numbers
        assert not [each for each in logs if "does not hold what it was given" in each["event"]]
        assert (memory.pipelines, memory.waiting, memory.losses) == (tuple(sorted(names)), 0, Losses())
        await store.close()


async def test_a_pipeline_that_comes_back_while_it_is_written_for_the_last_time_loses_nothing(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store)
        for name in ("a/one", PIPELINE):
            await memory.load(name)
            await memory.save([experience(1)], name, {"round": "1"}, {})
    for number in range(5):
        await memory.record(PIPELINE, {"kind": "decision", "round": str(number)})
    await memory.forget(PIPELINE)
    async with embedded_server(tmp_path, port=port):
        await asyncio.gather(*(store.client.ping() for _ in range(3)))

        async def come_back() -> None:
            await memory.load(PIPELINE)
            await memory.record(PIPELINE, {"kind": "decision", "round": "5"})
            await memory.save([experience(2)], PIPELINE, {"round": "2"}, {})

        await asyncio.gather(memory.save([experience(2)], "a/one", {"round": "2"}, {}), come_back())
        assert [each["round"] for each in await journal(store)] == ["0", "1", "2", "3", "4", "5"]
        assert [each.round for each in (await store.load(PIPELINE)).experiences] == [1, 2]
        assert (memory.unsaved, memory.waiting, memory.losses) == (0, 0, Losses())
        await store.close()
