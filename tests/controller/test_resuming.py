"""A leader dies in the middle of a round; whoever leads next neither repeats the round nor loses it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.decision import Proposal
from controller.knowledge import Knowledge
from controller.llm.policy import LlmPolicy
from controller.loop import PipelineLoop
from controller.memory.connection import connect, parse_url
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.memory.writing import Held
from controller.replay import replay
from controller.simulation.plant import Plant
from controller.simulation.workloads import draw_arrivals, workload_named
from controller.state import HOLD, Action, Allocation, KnobOutcome, PipelineView, Rollback, StageDelta
from controller.tuning import Tuning
from controller.worlds.simulated import SimulatedWorld
from sair.errors import ApiUnavailable
from tests.controller.cuts import Cut, Killed
from tests.controller.histories import history
from tests.controller.scenes import Rounds, setup

KEY = setup().key
# Probes are drawn from a stream that a new leader begins anew: without them two runs can be compared round by round.
TUNING = Tuning(prices=setup().prices, probing=False, reserve=False)
BOTH = Action.of((StageDelta("inference", replicas=1), StageDelta("preprocess", replicas=-1)))
"""One stage up, one down; the load is low enough for either."""


def plant() -> Plant:
    """A pipeline with little to do."""
    series = workload_named("poisson", 0.4 * setup().base_rate_per_s, 900.0, 1)
    return Plant(setup(), draw_arrivals(series, 1), 1)


class Scripted(LlmPolicy):
    """Stands where a language model does and wishes what the test says, by round."""

    def __init__(self, wishes: Mapping[int, Action]) -> None:
        self.wishes = wishes

    async def propose(self, knowledge: Knowledge, *_more: object) -> Proposal:
        return Proposal(self.wishes.get(knowledge.learned.round, HOLD), "llm", "the script says so")


class World(SimulatedWorld):
    """Counts what it is asked for; may die, or be away, in the middle of it."""

    asked = 0
    dies_after: int | None = None
    """How many stages it still changes before whoever asks is killed."""
    away = False
    shown = 0
    """How many rounds it says were decided."""

    async def decided(self, key: str) -> int:
        return self.shown

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        self.asked += 1
        if self.away:
            raise ApiUnavailable("the API server does not answer")
        if self.dies_after is not None:
            await super().apply(key, dict(list(wanted.items())[: self.dies_after]), reason=reason)
            raise Killed
        return await super().apply(key, wanted, reason=reason)


class Redis(Store):
    """A store whose client may be killed before it writes the state."""

    dies = False

    async def restore(self, *arguments: Any, **more: Any) -> Held:
        if self.dies:
            raise Killed
        return await super().restore(*arguments, **more)


class Run:
    """One pipeline whose leaders may be killed."""

    def __init__(self, url: str, began: Plant) -> None:
        self.url = url
        self.world = World([began.copy()])
        self.watcher = Rounds()
        self.leaders = 0
        self.take_office()

    def take_office(self) -> None:
        """A process of its own: nothing of the one before is known but what Redis and the world show."""
        self.leaders += 1
        self.store = Redis(connect(parse_url(self.url)))
        self.loop = PipelineLoop(
            KEY,
            self.world,
            MirroredMemory(self.store),
            TUNING,
            model=Scripted({1: Action.of([StageDelta("inference", gpu_milli=100)]), 2: BOTH}),
            watcher=self.watcher,
            writer=f"w{self.leaders}",
        )

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            await self.world.clock.sleep(30.0)
            await self.loop.round(self.view)

    async def killed_round(self, at: int | None = None) -> int:
        """One round, killed at its n-th wait or by the world; gives how often it waited."""
        await self.world.clock.sleep(30.0)
        cut = Cut(self.loop.round(self.view), at)
        try:
            await cut.run()
        except Killed:
            await self.store.close()
            self.world.dies_after = None
            self.take_office()
        return cut.waits

    async def recall(self, view: PipelineView | None = None) -> None:
        """The moment in which a leader takes over; its own round comes an interval later."""
        await self.loop.recall(view or self.view)

    @property
    def view(self) -> PipelineView:
        return self.world.plants[KEY].view

    @property
    def wished(self) -> dict[str, Allocation]:
        return dict(self.world.plants[KEY].wished)

    async def close(self) -> None:
        await self.world.clock.aclose()
        await self.store.close()


async def told(store: Store) -> dict[str, Counter[int]]:
    """How often the journal tells each kind of each round; of decisions only those that decided."""
    kinds: dict[str, Counter[int]] = {"decision": Counter(), "applied": Counter(), "concluded": Counter()}
    for _id, fields in await store.decisions(KEY, 1000):
        if fields["kind"] != "decision" or "action" in fields:
            kinds[fields["kind"]][int(fields["round"])] += 1
    return kinds


async def changing(store: Store) -> set[int]:
    """The rounds that changed something."""
    records = await store.decisions(KEY, 1000)
    return {int(f["round"]) for _id, f in records if f["kind"] == "decision" and f.get("action", "hold") != "hold"}


async def learned(store: Store) -> dict[str, Any]:
    state = json.loads((await store.load(KEY)).state["learned_json"])
    assert isinstance(state, dict)
    return state


async def ended(store: Store) -> list[tuple[int, str, float]]:
    return [(e.round, str(e.action), e.reward.total) for e in (await store.load(KEY)).experiences]


@pytest.mark.parametrize("before", [1, 2, 3], ids=["one knob", "two stages", "nothing to change"])
async def test_wherever_a_leader_dies_in_a_round_the_next_one_goes_on_as_if_nothing_had_happened(
    redis_url: str, store: Store, before: int
) -> None:
    rounds = before + 2
    whole = Run(redis_url, plant())
    await whole.rounds(before)
    waits = await whole.killed_round()
    applied = whole.wished
    await whole.rounds(1)
    expected, experiences, acting = await learned(store), await ended(store), await changing(store)
    assert acting == {1, 2} & set(range(rounds))
    assert waits >= 4
    await whole.close()
    for at in range(1, waits + 1):
        await store.client.flushall()
        run = Run(redis_url, plant())
        await run.rounds(before)
        await run.killed_round(at)
        await run.recall()
        if (await told(store))["decision"][before]:
            assert run.wished == applied, f"killed at wait {at}"
        else:  # nothing was written ahead: the new leader's own round decides
            await run.loop.round(run.view)
        await run.rounds(1)
        kinds = await told(store)
        assert kinds["decision"] == Counter(range(rounds)), f"killed at wait {at}"
        assert kinds["applied"] == Counter(acting), f"killed at wait {at}"
        assert kinds["concluded"] == Counter(range(rounds - 1)), f"killed at wait {at}"
        assert await learned(store) == expected, f"killed at wait {at}"
        assert await ended(store) == experiences, f"killed at wait {at}"
        await run.close()


async def dead_in(redis_url: str, stages: int, after_s: float = 0.0) -> Run:
    """Round 2 adds a replica of inference and takes one of preprocess; its leader dies when so many of them are done."""
    run = Run(redis_url, plant())
    await run.rounds(2)
    run.world.dies_after = stages
    await run.killed_round()
    await run.world.clock.sleep(after_s)
    return run


async def outcomes(store: Store) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The newest record of what was applied, and each knob of it."""
    record = next(fields for _id, fields in await store.decisions(KEY, 100) if fields["kind"] == "applied")
    return record, {f"{each['stage']} {each['knob']}": each for each in json.loads(record["outcomes_json"])}


@pytest.mark.parametrize("stages", [0, 1, 2])
async def test_what_was_applied_already_is_not_asked_for_again_and_the_rest_is(
    redis_url: str, store: Store, stages: int
) -> None:
    run = await dead_in(redis_url, stages)
    before, asked = run.wished, run.world.asked
    await run.recall()
    record, knobs = await outcomes(store)
    assert (record["round"], record["resumed"]) == ("2", "settled by another controller after 0 s")
    assert run.world.asked == asked + (stages < 2)
    assert all(each["granted"] == each["wished"] for each in knobs.values())
    after = json.loads((await decision(store))["after_json"])
    assert {name: each.replicas for name, each in run.wished.items()} == {n: a["replicas"] for n, a in after.items()}
    assert (run.wished != before) == (stages < 2)
    assert [report.round for report in run.watcher.reports] == [0, 1, 2]
    await run.close()


async def test_on_metrics_that_are_stale_by_now_the_rises_are_made_up_for_and_nothing_falls(
    redis_url: str, store: Store
) -> None:
    run = await dead_in(redis_url, 0, after_s=45.0)
    before = run.wished
    await run.recall()
    _, knobs = await outcomes(store)
    assert run.wished["inference"].replicas == before["inference"].replicas + 1
    assert run.wished["preprocess"] == before["preprocess"]
    refused = knobs["preprocess replicas"]
    assert refused["granted"] == before["preprocess"].replicas
    assert refused["reason"].startswith("fresh metrics: metrics are 45 s old")
    # The cluster has refused nothing: the next round may raise what it likes.
    assert run.loop.knowledge.learned.refusals == ()
    await run.close()


async def test_a_decision_of_long_ago_is_settled_without_being_applied(redis_url: str, store: Store) -> None:
    run = await dead_in(redis_url, 0, after_s=3600.0)
    before, asked = run.wished, run.world.asked
    await run.recall()
    assert (run.wished, run.world.asked) == (before, asked)
    _, knobs = await outcomes(store)
    assert {each["reason"] for each in knobs.values()} == {"the decision is 3600 s old: the next round decides anew"}
    assert run.loop.knowledge.learned.round == 3
    await run.close()


async def test_a_pipeline_that_was_switched_off_or_bounded_meanwhile_is_not_scaled_for_an_old_decision(
    redis_url: str, store: Store
) -> None:
    run = await dead_in(redis_url, 0)
    before, asked = run.wished, run.world.asked
    await run.recall(replace(run.view, mode="off"))
    assert (run.wished, run.world.asked) == (before, asked)
    await run.close()
    await store.client.flushall()
    run = await dead_in(redis_url, 0)
    stages = tuple(
        replace(s, limits=replace(s.limits, replicas_max=run.wished[s.name].replicas)) for s in run.view.stages
    )
    before = run.wished
    await run.recall(replace(run.view, stages=stages))
    assert run.wished["inference"].replicas == before["inference"].replicas
    _, knobs = await outcomes(store)
    assert knobs["inference replicas"]["reason"].startswith("bounds")
    await run.close()


async def decision(store: Store) -> dict[str, str]:
    """The newest record of what was decided."""
    return next(fields for _id, fields in await store.decisions(KEY, 100) if fields["kind"] == "decision")


async def rewritten(store: Store, **fields: str) -> None:
    """The newest decision, in somebody else's version."""
    newest = await store.decisions(KEY, 2)
    await store.client.xdel(f"sair:{{{KEY}}}:decisions", *(name for name, _record in newest))
    for _name, record in reversed(newest):
        await store.append_decision(KEY, {**record, **(fields if record["kind"] == "decision" else {})})


async def test_a_journal_that_somebody_wrote_scales_nothing_past_bounds_and_grid(redis_url: str, store: Store) -> None:
    run = await dead_in(redis_url, 0)
    wild = json.loads((await decision(store))["after_json"])
    wild["inference"] |= {"replicas": 1000, "gpu_milli": 1000}
    wild["postprocess"] |= {"replicas": 0, "cpu_m": 1}
    await rewritten(store, after_json=json.dumps(wild))
    before = run.wished
    await run.recall()
    for name, old in before.items():
        assert old.replicas - 1 <= run.wished[name].replicas <= old.replicas + 2
        assert run.wished[name].cpu >= old.cpu - 500
    await run.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"after_json": "[" * 1000},
        {"view_json": "{}"},
        {"observation_json": '{"pipeline":"other/pipeline"}'},
        {"predicted_reward": "nan"},
        {"time_s": "-inf"},
        {"room_json": "\x00"},
    ],
)
async def test_a_decision_that_cannot_be_read_is_neither_applied_nor_taken_again(
    redis_url: str, store: Store, fields: dict[str, str]
) -> None:
    run = await dead_in(redis_url, 0)
    await rewritten(store, **fields)
    before = run.wished
    await run.recall()
    assert run.wished == before
    assert run.loop.knowledge.learned.round == 3
    await run.rounds(1)
    assert run.watcher.reports[-1].round == 3
    await run.close()


async def test_the_words_of_another_pipelines_round_are_not_taken_for_this_ones(redis_url: str, store: Store) -> None:
    run = await dead_in(redis_url, 0)
    seen = json.loads((await decision(store))["observation_json"]) | {"pipeline": "other/pipeline"}
    await rewritten(store, observation_json=json.dumps(seen))
    before = run.wished
    await run.recall()
    assert run.wished == before
    await run.close()


async def test_rounds_that_redis_saw_only_in_the_journal_are_all_taken_over(
    tmp_path: Path, redis_url: str, store: Store
) -> None:
    """Redis was away for some rounds; the leader dies while it writes down what waited."""
    reference = Run(redis_url, plant())
    await reference.rounds(5)
    expected = await learned(store)
    await reference.close()
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        run = Run(url, plant())
        await run.rounds(2)
    await run.rounds(2)
    async with embedded_server(tmp_path, port=port):
        await run.world.clock.sleep(30.0)

        run.store.dies = True
        with contextlib.suppress(Killed):
            await Cut(run.loop.round(run.view), None).run()
        await run.store.close()
        run.take_office()
        await run.recall()
        assert run.loop.knowledge.learned.round == 5
        assert await learned(run.store) == expected
        assert [e.round for e in (await run.store.load(KEY)).experiences] == [0, 1, 2, 3]
        assert (await told(run.store))["concluded"] == Counter(range(4))
        await run.close()


async def test_a_world_that_cannot_be_asked_is_an_outcome_and_the_round_is_over(redis_url: str, store: Store) -> None:
    run = Run(redis_url, plant())
    await run.rounds(2)
    run.world.away = True
    before = run.wished
    await run.rounds(1)
    run.world.away = False
    _, knobs = await outcomes(store)
    assert {each["reason"] for each in knobs.values()} == {"the API server does not answer"}
    assert run.wished == before
    assert run.loop.knowledge.learned.refusals == ()
    await run.rounds(2)
    kinds = await told(store)
    assert kinds["decision"] == Counter(range(5))
    recorded, _ = await history(store)
    again = replay(recorded, (), policy=lambda menu: Proposal(HOLD, "hold"))
    assert all(each.faithful for each in again.comparisons if each.faithful is not None)
    held = next(e for e in (await store.load(KEY)).experiences if e.round == 2)
    assert str(held.action) == "hold"
    await run.close()


@pytest.mark.parametrize(("shown", "number"), [(2, 2), (1, 1), (10**18, 0)], ids=["all", "some", "what cannot be"])
async def test_where_redis_has_lost_everything_rounds_are_numbered_on_from_what_the_world_shows(
    redis_url: str, store: Store, shown: int, number: int
) -> None:
    run = Run(redis_url, plant())
    await run.rounds(2)
    await run.store.close()
    await store.client.flushall()
    run.world.shown = shown
    run.take_office()
    await run.rounds(2)
    assert [report.round for report in run.watcher.reports[-2:]] == [number, number + 1]
    assert [e.round for e in (await store.load(KEY)).experiences] == [number]
    await run.close()


async def test_what_redis_knows_goes_before_a_status_that_is_behind(redis_url: str, store: Store) -> None:
    run = Run(redis_url, plant())
    await run.rounds(3)
    await run.store.close()
    run.world.shown = 2
    run.take_office()
    await run.rounds(1)
    assert run.watcher.reports[-1].round == 3
    await run.close()


async def test_wherever_a_successor_dies_in_taking_over_the_one_after_it_finishes_the_round_once(
    redis_url: str, store: Store
) -> None:
    whole = await dead_in(redis_url, 1)
    counted = Cut(whole.loop.recall(whole.view), None)
    await counted.run()
    await whole.rounds(1)
    expected, applied = await learned(store), whole.wished
    assert counted.waits >= 4
    await whole.close()
    for at in range(1, counted.waits + 1):
        await store.client.flushall()
        run = await dead_in(redis_url, 1)
        with contextlib.suppress(Killed):
            await Cut(run.loop.recall(run.view), at).run()
        await run.store.close()
        run.take_office()
        await run.recall()
        await run.rounds(1)
        kinds = await told(store)
        assert kinds["decision"] == Counter(range(4)), f"killed at wait {at}"
        assert kinds["applied"] == Counter([1, 2]), f"killed at wait {at}"
        assert kinds["concluded"] == Counter(range(3)), f"killed at wait {at}"
        assert await learned(store) == expected, f"killed at wait {at}"
        assert run.wished == applied, f"killed at wait {at}"
        await run.close()


async def test_the_rest_of_a_decision_is_not_asked_for_while_a_rollback_is_kept(redis_url: str, store: Store) -> None:
    run = await dead_in(redis_url, 1)
    before, asked = run.wished, run.world.asked
    await run.recall(replace(run.view, rollback=Rollback("2026-03-01T03:10:00Z", 1, None, {}, done=True)))
    assert (run.wished, run.world.asked) == (before, asked)
    _, knobs = await outcomes(store)
    assert "rolled back" in knobs["preprocess replicas"]["reason"]
    await run.close()


async def test_a_decision_that_was_written_twice_is_taken_over_once(redis_url: str, store: Store) -> None:
    run = await dead_in(redis_url, 1)
    await run.recall()
    expected, experiences = await learned(store), await ended(store)
    await run.close()
    await store.client.flushall()
    run = await dead_in(redis_url, 1)
    await store.client.xadd(f"sair:{{{KEY}}}:decisions", await decision(store))
    await run.recall()
    assert (await learned(store), await ended(store)) == (expected, experiences)
    await run.close()
