import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.llm.account import Account, Spending
from controller.memory.embedded import embedded_server, free_port
from controller.memory.store import Store
from tests.controller.memory.servers import clustered

PIPELINE = "default/vision"
NOON_S = 1_700_049_600.0
"""2023-11-15T12:00:00Z"""
DAY_S = 86_400.0
KEY = "sair:{default/vision}:spending:2023-11-15"
AWAY = "redis://127.0.0.1:1/0"


@pytest.fixture
async def away() -> AsyncIterator[Store]:
    """A store whose Redis is not there."""
    store = Store.from_url(AWAY)
    yield store
    await store.close()


async def spend(account: Account, tokens: int, dollars: float = 0.0, now_s: float = NOON_S) -> None:
    await account.settle(now_s)
    account.add(now_s, Spending(tokens, dollars))
    await account.settle(now_s)


async def test_what_was_spent_is_there_for_the_next_controller_and_for_redis_cli(store: Store) -> None:
    await spend(Account(PIPELINE, store), 700, 0.25)
    await spend(Account(PIPELINE, store), 300, 0.5)
    later = Account(PIPELINE, store)
    await later.settle(NOON_S)
    assert later.spent(NOON_S) == Spending(1000, 0.75)
    assert later.refusal(NOON_S, 1000, 0.0)
    assert later.refusal(NOON_S, 0, 0.75)
    assert not later.refusal(NOON_S, 1001, 0.76)
    assert await store.client.hgetall(KEY) == {"tokens": "1000", "dollars": "0.75"}
    assert 7 * DAY_S < await store.client.ttl(KEY) <= 8 * DAY_S


async def test_a_budget_is_per_day_and_per_pipeline(store: Store) -> None:
    account = Account(PIPELINE, store)
    await spend(account, 1000, now_s=NOON_S)
    assert account.refusal(NOON_S + DAY_S / 2 - 1, 1000, 0.0)
    assert not account.refusal(NOON_S + DAY_S / 2, 1000, 0.0)
    other = Account("default/speech", store)
    await other.settle(NOON_S)
    assert other.spent(NOON_S) == Spending()


async def test_two_controllers_that_overlap_lose_none_of_each_others_spending(store: Store) -> None:
    accounts = [Account(PIPELINE, store) for _ in range(4)]
    await asyncio.gather(*(spend(account, 10, 0.001) for _ in range(5) for account in accounts))
    assert await store.client.hmget(KEY, ["tokens"]) == ["200"]


async def test_counting_goes_on_while_redis_is_away_and_is_made_up_for_once_it_is_back(
    tmp_path: Path,
) -> None:
    port = free_port()
    async with embedded_server(tmp_path, port=port) as url:
        store = Store.from_url(url)
        account = Account(PIPELINE, store, pause_s=0.0)
        await spend(account, 600)
    await spend(account, 300)
    await spend(account, 100)
    assert account.spent(NOON_S) == Spending(1000)
    assert account.refusal(NOON_S, 1000, 0.0)
    async with embedded_server(tmp_path, port=port):
        await account.settle(NOON_S)
        assert (await store.client.hgetall(KEY))["tokens"] == "1000"
        assert account.spent(NOON_S) == Spending(1000)
        await store.close()


async def test_a_redis_that_was_flushed_is_given_the_count_back(store: Store) -> None:
    account = Account(PIPELINE, store)
    await spend(account, 600, 0.3)
    await store.client.flushall()
    await spend(account, 100, 0.1)
    assert account.spent(NOON_S).tokens == 700
    tokens, dollars = await store.client.hmget(KEY, ["tokens", "dollars"])
    assert int(tokens) == 700
    assert float(dollars) == pytest.approx(0.4)


async def test_a_count_that_was_never_read_leaves_nothing_to_spend_where_there_is_a_limit(away: Store) -> None:
    account = Account(PIPELINE, away)
    await spend(account, 10)
    assert "cannot be read" in account.refusal(NOON_S, 1_000_000, 0.0)
    assert "cannot be read" in account.refusal(NOON_S, 0, 1000.0)
    assert not account.refusal(NOON_S, 0, 0.0)


class Counting(Store):
    """Counts how often it is asked for its version."""

    asked = 0

    async def ensure_schema(self) -> None:
        self.asked += 1
        await super().ensure_schema()


async def test_a_redis_that_is_away_is_asked_seldom() -> None:
    away = Counting.from_url(AWAY)
    assert isinstance(away, Counting)
    account = Account(PIPELINE, away)
    for _ in range(3):
        await account.settle(NOON_S)
    assert away.asked == 1
    await away.close()


@pytest.mark.parametrize("damage", [{"tokens": "many"}, {"dollars": "nan"}, {"dollars": "inf"}, {"tokens": "-5000"}])
async def test_a_damaged_count_is_not_taken_for_nothing(store: Store, damage: dict[str, str]) -> None:
    await store.client.hset(KEY, mapping=damage)
    account = Account(PIPELINE, store)
    await spend(account, 1)
    assert "cannot be read" in account.refusal(NOON_S, 1_000_000, 0.0)


async def test_what_is_added_while_a_write_is_under_way_is_neither_lost_nor_written_twice(store: Store) -> None:
    account = Account(PIPELINE, store)
    await account.settle(NOON_S)
    account.add(NOON_S, Spending(10))
    writing = asyncio.create_task(account.settle(NOON_S))
    await asyncio.sleep(0)
    account.add(NOON_S, Spending(5))
    assert account.spent(NOON_S) == Spending(15)
    await writing
    await account.settle(NOON_S)
    assert account.spent(NOON_S) == Spending(15)
    assert (await store.client.hgetall(KEY))["tokens"] == "15"


@pytest.mark.blocking_allowed  # redis-py's cluster client holds threading locks, that nobody contends for
async def test_the_key_lives_in_the_slot_of_the_pipelines_other_keys(tmp_path: Path) -> None:
    async with clustered(tmp_path) as ports:
        store = Store.from_url(f"redis+cluster://127.0.0.1:{ports[0]}")
        await spend(Account(PIPELINE, store), 5, 0.5)
        later = Account(PIPELINE, store)
        await later.settle(NOON_S)
        assert later.spent(NOON_S) == Spending(5, 0.5)
        await store.close()
