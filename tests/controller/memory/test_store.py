import pytest
import redis.asyncio as redis

from controller.experience import Outcome
from controller.memory.keys import Keys
from controller.memory.store import FrontierPoint, Store
from sair.errors import MemoryUnavailable, SchemaVersionError, Superseded
from tests.builders import experience

PIPELINE = "default/vision"
FRONTIER = {"0000000001": FrontierPoint(Outcome(0.8, 0.4), 3)}


async def test_what_was_stored_is_loaded_oldest_first(store: Store) -> None:
    stored = [experience(number) for number in (3, 1, 2)]
    await store.restore(PIPELINE, stored, {"round": "3"}, FRONTIER)
    loaded = await store.load(PIPELINE)
    assert [e.round for e in loaded.experiences] == [1, 2, 3]
    assert loaded.state == {"round": "3"}
    assert set(loaded.experiences) == set(stored)


async def test_people_find_the_documented_keys(store: Store, redis_url: str) -> None:
    await store.ensure_schema()
    await store.restore(PIPELINE, [experience(1)], {"epsilon": "0.15"}, FRONTIER)
    await store.append_decision(PIPELINE, {"action": "hold"})
    async with redis.from_url(redis_url, decode_responses=True) as client:
        kinds = {str(key): await client.type(key) async for key in client.scan_iter()}
    assert kinds == {
        "sair:schema": "string",
        "sair:{default/vision}:experience:0000000001": "hash",
        "sair:{default/vision}:experiences": "zset",
        "sair:{default/vision}:rewards": "zset",
        "sair:{default/vision}:surprisals": "zset",
        "sair:{default/vision}:frontier": "hash",
        "sair:{default/vision}:decisions": "stream",
        "sair:{default/vision}:controller": "hash",
        "sair:{default/vision}:writes": "hash",
    }


async def test_storing_a_round_twice_changes_nothing(store: Store) -> None:
    for _ in range(2):
        await store.restore(PIPELINE, [experience(1)], {}, {})
    assert (await store.load(PIPELINE)).experiences == (experience(1),)


async def test_the_most_surprising_rounds_are_found_by_score(store: Store) -> None:
    await store.restore(PIPELINE, [experience(n, surprisal=s) for n, s in ((1, 0.5), (2, 2.0), (3, 1.0))], {}, {})
    assert [name[-1] for name, _score in await store.top(PIPELINE, "surprisals", 2)] == ["2", "3"]


async def test_evicted_rounds_are_gone_from_every_index(store: Store, redis_url: str) -> None:
    await store.restore(PIPELINE, [experience(1), experience(2)], {}, {})
    await store.restore(PIPELINE, [experience(3)], {}, {}, evicted=["0000000001"])
    assert [e.round for e in (await store.load(PIPELINE)).experiences] == [2, 3]
    async with redis.from_url(redis_url, decode_responses=True) as client:
        assert not await client.exists("sair:{default/vision}:experience:0000000001")
        assert await client.zscore("sair:{default/vision}:rewards", "0000000001") is None


async def test_who_does_not_know_the_frontier_forgets_nothing_of_it(store: Store) -> None:
    await store.restore(PIPELINE, [experience(1), experience(2)], {}, FRONTIER)
    await store.restore(PIPELINE, [experience(3)], {}, None, evicted=["0000000001", "0000000002"])
    assert [e.round for e in (await store.load(PIPELINE)).experiences] == [1, 3]
    assert await store.client.hkeys(Keys(PIPELINE).frontier) == ["0000000001"]


async def test_a_damaged_entry_is_reported_and_left_for_a_person_to_look_at(store: Store, redis_url: str) -> None:
    await store.restore(PIPELINE, [experience(1), experience(2)], {}, {})
    key = "sair:{default/vision}:experience:0000000001"
    async with redis.from_url(redis_url, decode_responses=True) as client:
        await client.hset(key, "latency_ratio", "fast")
        loaded = await store.load(PIPELINE)
        assert [e.round for e in loaded.experiences] == [2]
        assert [damage.field for damage in loaded.damaged] == [f"{key} latency_ratio"]
        assert await client.exists(key)


async def test_a_memory_of_another_schema_is_refused_with_the_migration_to_run(store: Store, redis_url: str) -> None:
    async with redis.from_url(redis_url) as client:
        await client.set("sair:schema", "99")
    with pytest.raises(SchemaVersionError, match="sair memory migrate --to 1"):
        await store.ensure_schema()


async def test_a_key_of_another_type_is_an_unavailable_memory_not_a_crash(store: Store, redis_url: str) -> None:
    async with redis.from_url(redis_url) as client:
        await client.set("sair:{default/vision}:experiences", "oops")
    with pytest.raises(MemoryUnavailable, match="WRONGTYPE"):
        await store.load(PIPELINE)


async def test_a_redis_that_is_not_there_is_an_unavailable_memory() -> None:
    away = Store.from_url("redis://127.0.0.1:1/0")
    with pytest.raises(MemoryUnavailable):
        await away.load(PIPELINE)
    await away.close()


async def test_the_newest_rounds_are_loaded_when_there_are_too_many(store: Store) -> None:
    await store.restore(PIPELINE, [experience(number) for number in range(1_200)], {}, {})
    assert [e.round for e in (await store.load(PIPELINE, 700)).experiences] == list(range(500, 1_200))


async def test_every_pipeline_that_memory_knows_is_listed(store: Store) -> None:
    await store.restore("a/x", [], {"round": "1"}, {})
    await store.restore("b/y", [], {"round": "1"}, {})
    assert await store.pipelines() == ("a/x", "b/y")


async def test_the_journal_gives_the_newest_record_first(store: Store) -> None:
    for number in range(3):
        await store.append_decision(PIPELINE, {"round": str(number)})
    assert [fields["round"] for _name, fields in await store.decisions(PIPELINE, 2)] == ["2", "1"]


async def test_a_forgotten_pipeline_leaves_nothing_and_takes_nothing_of_others_with_it(store: Store) -> None:
    for name in ("a/x", "a/x*", "a/xy"):
        await store.restore(name, [experience(1)], {"round": "1"}, {})
    await store.forget("a/x*")
    assert await store.pipelines() == ("a/x", "a/xy")


async def test_the_journal_is_bounded_in_bytes_and_the_newest_records_stay(redis_url: str) -> None:
    bound = 200_000
    store = Store.from_url(redis_url, journal_bytes=bound)
    for number in range(300):
        await store.append_decision(PIPELINE, {"round": str(number), "reply": "x" * (100 + 37 * number)})
        if number % 50 == 49:
            assert await store.client.memory_usage(Keys(PIPELINE).decisions, samples=0) <= bound
    rounds = [int(fields["round"]) for _, fields in await store.decisions(PIPELINE, 1_000)]
    assert rounds == list(range(299, 299 - len(rounds), -1))
    # As many as fit, not merely one.
    assert len(rounds) > 10
    await store.append_decision(PIPELINE, {"round": "300", "reply": "x" * 1_000_000})
    assert [fields["round"] for _, fields in await store.decisions(PIPELINE, 9)] == ["300"]
    await store.close()


async def test_who_was_succeeded_changes_nothing_any_more(store: Store) -> None:
    first = await store.claim(PIPELINE)
    await store.restore(PIPELINE, [experience(1)], {"round": "1"}, FRONTIER, writer=first)
    second = await store.claim(PIPELINE)
    with pytest.raises(Superseded):
        await store.restore(PIPELINE, [experience(2)], {"round": "2"}, {}, ["0000000001"], writer=first)
    with pytest.raises(Superseded):
        await store.append_decision(PIPELINE, {"round": "2"}, writer=first)
    loaded = await store.load(PIPELINE)
    assert ([e.round for e in loaded.experiences], loaded.state) == ([1], {"round": "1"})
    assert await store.decisions(PIPELINE, 9) == []
    await store.append_decision(PIPELINE, {"round": "3"}, writer=second)
    assert len(await store.decisions(PIPELINE, 9)) == 1
