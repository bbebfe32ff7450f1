from dataclasses import replace

import redis.asyncio as redis

from controller.experience import Outcome
from controller.memory.archive import Archive, frontier_of
from controller.memory.exchange import Archived, header, parse, written
from controller.memory.store import Store
from controller.memory.transfer import collect, merge
from tests.builders import experience
from tests.controller.histories import KEY, recorded_run

PIPELINE = "default/vision"


async def test_a_memory_moves_to_another_redis_whole(store: Store, redis_url: str) -> None:
    await recorded_run(store, 300)
    before, damaged = await collect(store, KEY)
    frontier = await store.client.hgetall(f"sair:{{{KEY}}}:frontier")
    assert not damaged
    text = [header(), *written(KEY, before)]
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    found = parse("f", text, now_s=4e9)
    first = await merge(store, KEY, found[KEY])
    assert (first.added, first.decisions, first.state) == (len(before.experiences), len(before.decisions), True)
    assert (await collect(store, KEY))[0] == before
    assert await store.client.hgetall(f"sair:{{{KEY}}}:frontier") == frontier
    again = await merge(store, KEY, found[KEY])
    assert (again.added, again.repaired, again.decisions, again.state) == (0, 0, 0, False)
    assert again.kept == len(before.experiences)


async def test_what_redis_has_newer_stays_and_what_is_damaged_there_is_repaired(store: Store) -> None:
    newer = replace(experience(1), time_s=1_700_009_999.0, policy="llm")
    await store.restore(PIPELINE, [newer, experience(2)], {"updated_s": "50", "round": "9"}, {})
    await store.client.hset("sair:{default/vision}:experience:0000000002", "round", "many")
    old = Archived({e.id: e for e in map(experience, (1, 2, 3))}, {"updated_s": "40", "round": "1"})
    merged = await merge(store, PIPELINE, old)
    assert (merged.added, merged.repaired, merged.kept, merged.state) == (1, 1, 1, False)
    loaded = await store.load(PIPELINE)
    assert set(loaded.experiences) == {newer, experience(2), experience(3)}
    assert loaded.state["round"] == "9"
    assert (await merge(store, PIPELINE, Archived(state={"updated_s": "60", "round": "10"}))).state
    assert (await store.load(PIPELINE)).state["round"] == "10"


async def test_a_long_journal_is_walked_page_by_page_in_order(store: Store) -> None:
    records = [(f"{number}-0", {"kind": "decision", "round": str(number)}) for number in range(1, 1203)]
    archive = Archive(store)
    assert await archive.extend_journal(PIPELINE, records) == 1202
    assert [record async for record in archive.journal(PIPELINE)] == records
    assert await archive.extend_journal(PIPELINE, [*records, ("5000-0", {"kind": "decision"})]) == 1


async def test_the_frontier_that_follows_from_experiences_has_no_dominated_point() -> None:
    good, worse = experience(1), experience(2)
    worse = replace(worse, outcome=replace(worse.outcome, latency_ratio=0.9, cost_ratio=0.5))
    elsewhere = replace(worse, id="3", load_bucket=7)
    assert frontier_of([good, worse, elsewhere]).keys() == {good.id, "3"}


def test_the_frontier_is_of_rounds_that_served_somebody() -> None:
    idle = experience(1, arrivals_per_s=0.0, outcome=Outcome(0.0, 0.1), load_bucket=0)
    served, slower = (
        experience(number, outcome=Outcome(ratio, 0.4), load_bucket=0) for number, ratio in ((2, 0.5), (3, 0.9))
    )
    assert list(frontier_of([idle, served, slower])) == [served.id]
