"""Earlier allocations again: the plan, what the guardrails say of it, and how the loop carries it out and keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.cost import Prices
from controller.decision import Proposal
from controller.explain import explain
from controller.knowledge import Knowledge
from controller.llm.policy import LlmPolicy
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.replay import replay
from controller.rollback import plan_rollback, rolled_back
from controller.state import (
    Action,
    Allocation,
    ClusterRoom,
    GpuRoom,
    KnobOutcome,
    Limits,
    NodeRoom,
    PipelineView,
    Rollback,
    StageDelta,
    StageView,
)
from controller.tuning import Tuning
from controller.worlds.simulated import Faults, SimulatedWorld
from sair.errors import ApiUnavailable
from sair.quantities import GpuRate, Mebibytes, Millicores
from tests.builders import allocation
from tests.controller.cuts import Cut, Killed
from tests.controller.histories import history
from tests.controller.scenes import Rounds, setup, simulated

KEY = setup().key


def test_what_differs_is_listed_knob_by_knob_and_all_else_stays() -> None:
    then = {"pre": allocation(2, gpu_milli=None), "inference": allocation(2, gpu_milli=300)}
    now = {"pre": allocation(2, gpu_milli=None), "inference": allocation(4, cpu=1500, gpu_milli=500)}
    plan = plan_rollback(then, now)
    assert [str(change) for change in plan.changes] == [
        "inference: replicas 4 → 2",
        "inference: cpu 1500m → 1000m",
        "inference: gpu_rate 0.5 → 0.3",
    ]
    assert plan.after == then
    assert plan.notes == ()


def test_what_cannot_be_as_it_was_is_named_and_left_alone() -> None:
    then = {"old": allocation(), "same": allocation(), "moved": allocation(2, gpu_milli=300)}
    now = {"new": allocation(), "same": allocation(memory=2048), "moved": allocation(3, gpu_milli=None)}
    plan = plan_rollback(then, now)
    assert [change.knob for change in plan.changes] == ["replicas"]
    assert plan.after == {**now, "moved": allocation(2, gpu_milli=None)}
    assert len(plan.notes) == 4
    for words in ("old does not exist", "new did not exist", "moved was moved from the GPU", "its pod template's"):
        assert any(words in note for note in plan.notes)


def judged_alone(then: Allocation, now: Allocation, *, budget: float = 100.0, limits: Limits = Limits()) -> str:  # noqa: B008
    """What a rollback of one stage is refused for; the card has 0.4 left."""
    view = PipelineView("a/b", (StageView("one", (), True, limits),), slo_s=1.0, budget_per_hour=budget)
    card = GpuRoom(400, Mebibytes(10_000), {"one": now.replicas})
    room = ClusterRoom((NodeRoom("n", Millicores(64_000), Mebibytes(64_000), {"one": now.replicas}, (card,)),))
    request = Rollback("t", 7, None, {"one": then})
    decision = rolled_back(request, view, {"one": now}, room, 9, 0.0, Prices(gpu=10.0))
    assert bool(decision.action) != decision.rejected
    assert decision.after == {"one": now if decision.rejected else then}
    return "; ".join(f"{each.rule}: {each.reason}" for each in decision.verdicts if each.outcome != "pass")


def test_it_goes_the_whole_way_at_once() -> None:
    assert judged_alone(allocation(1, cpu=500, gpu_milli=50), allocation(9, cpu=8000, gpu_milli=900)) == ""
    assert judged_alone(allocation(3, gpu_milli=100), allocation(1, gpu_milli=500)) == ""


def test_every_knob_outside_its_bounds_is_named_and_nothing_is_changed() -> None:
    limits = Limits(replicas_max=3, gpu_milli_min=200)
    said = judged_alone(allocation(4, gpu_milli=100), allocation(2, gpu_milli=200), limits=limits)
    assert (
        said == "bounds: one replicas 4 is outside its bounds, 1 to 3; one gpu_rate 0.1 is outside its bounds, 0.2 to 1"
    )


def test_what_the_cards_have_no_room_for_is_refused() -> None:
    assert judged_alone(allocation(1, gpu_milli=900), allocation(1, gpu_milli=500)) == ""
    assert judged_alone(allocation(1, gpu_milli=950), allocation(1, gpu_milli=500)).startswith("capacity: ")


def test_the_budget_holds_for_what_makes_it_dearer_only() -> None:
    dear, cheap = allocation(2, gpu_milli=600), allocation(2, gpu_milli=400)
    assert judged_alone(dear, cheap, budget=10.0) == "cost cap: $12.07/h is over the budget of $10.00/h"
    assert judged_alone(cheap, dear, budget=5.0) == ""


class Restless(LlmPolicy):
    """Stands where a language model does and wants one more replica in every round."""

    def __init__(self) -> None:
        self.asked = 0

    async def propose(self, knowledge: Knowledge, *_more: object) -> Proposal:
        self.asked += 1
        return Proposal(Action.of([StageDelta("inference", replicas=1)]), "llm", "more is better")


class Asked(SimulatedWorld):
    """A world in which somebody may ask for a rollback."""

    request: Rollback | None = None
    away = False

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        if self.away:
            raise ApiUnavailable("the API server does not answer")
        return await super().apply(key, wanted, reason=reason)

    async def view(self, key: str) -> PipelineView | None:
        view = await super().view(key)
        return replace(view, rollback=self.request) if view else None

    @property
    def wished(self) -> Mapping[str, Allocation]:
        return dict(self.plants[KEY].wished)


class Undo:
    """One pipeline whose policy wants more all the time."""

    def __init__(self, store: Store, faults: Faults | None = None) -> None:
        self.world = Asked(list(simulated(duration_s=2000).plants.values()), faults=faults or Faults())
        self.start = self.world.wished
        self.store = store
        self.take_office()

    def take_office(self) -> None:
        self.watcher, self.model = Rounds(), Restless()
        tuning = Tuning(prices=setup().prices, probing=False)
        memory = MirroredMemory(self.store)
        self.loop = PipelineLoop(KEY, self.world, memory, tuning, model=self.model, watcher=self.watcher)

    async def until(self, time_s: float) -> None:
        await self.loop.run(lambda: self.world.clock.now() >= time_s)

    def ask(self, round_number: int, until_s: float | None) -> None:
        self.world.request = Rollback(f"asked at {self.world.clock.now()}", round_number, until_s, self.start)


async def test_it_is_carried_out_within_seconds_and_kept_until_the_hold_ends(store: Store) -> None:
    undo = Undo(store)
    await undo.until(150)
    assert undo.world.wished["inference"].replicas > undo.start["inference"].replicas + 1
    undo.ask(0, until_s=400)
    asked_s = undo.world.clock.now()
    await undo.until(asked_s + 5)
    assert undo.world.wished == undo.start
    rolled = undo.watcher.reports[-1]
    assert rolled.decision is not None
    assert (rolled.decision.policy, rolled.rollback and rolled.rollback.outcome) == ("rollback", "Done")
    before, reflexes = undo.model.asked, len(undo.watcher.reflexes)
    await undo.until(398)
    assert undo.world.wished == undo.start
    assert undo.model.asked == before, "nobody is asked for what is not applied"
    assert len(undo.watcher.reflexes) == reflexes
    held = [each.decision for each in undo.watcher.reports if each.time_s > rolled.time_s]
    assert len(held) >= 6
    assert all(each and each.held and "held until" in each.reason for each in held)
    await undo.until(500)
    assert undo.world.wished["inference"].replicas > undo.start["inference"].replicas
    assert [report.decision.policy for report in undo.watcher.reports if report.decision].count("rollback") == 1 + len(
        held
    ), "it is carried out once"
    await undo.world.clock.aclose()


async def test_not_even_a_queue_that_builds_up_moves_what_is_held(store: Store) -> None:
    undo = Undo(store)
    await undo.until(100)
    little = {**undo.start, "inference": replace(undo.start["inference"], replicas=1, gpu_rate=GpuRate(100))}
    undo.world.request = Rollback("now", 0, 200, little)
    await undo.until(105)
    assert undo.world.wished == little
    undo.watcher.reflexes.clear()
    await undo.until(190)
    assert undo.world.wished == little
    assert undo.watcher.reflexes == []
    await undo.until(210)
    assert undo.watcher.reflexes, "it would have acted"
    await undo.world.clock.aclose()


async def test_the_journal_tells_it_and_what_comes_after_is_replayed_as_it_was(store: Store) -> None:
    undo = Undo(store)
    await undo.until(150)
    undo.ask(1, until_s=250)
    await undo.until(400)
    await undo.world.clock.aclose()
    rounds, _ = await history(store)
    (rolled,) = [each for each in rounds if each.text("policy") == "rollback" and each.observation() is None]
    assert [each.round for each in rounds] == list(range(len(rounds)))
    assert rolled.outcomes()
    lines = explain(rolled, KEY)
    assert any(line.startswith("Decided by rollback: inference: replicas -") for line in lines)
    again = replay(rounds, ())
    assert [each.reason for each in again.skipped] == ["a rollback that somebody asked for"]
    assert all(each.faithful for each in again.comparisons)


async def test_it_needs_no_metrics(store: Store) -> None:
    undo = Undo(store, Faults(metrics_down=((140, 2000),)))
    await undo.until(139)
    assert undo.world.wished != undo.start
    undo.ask(0, until_s=None)
    await undo.until(145)
    assert undo.world.wished == undo.start
    await undo.until(300)
    assert undo.world.wished == undo.start
    await undo.world.clock.aclose()


async def test_while_the_cluster_cannot_be_asked_it_is_tried_once_an_interval_until_it_can(store: Store) -> None:
    undo = Undo(store)
    await undo.until(150)
    before = undo.world.wished
    undo.ask(0, until_s=None)
    undo.world.away = True
    await undo.until(215)
    assert undo.world.wished == before
    tried = [
        report for report in undo.watcher.reports if report.decision and report.decision.action and report.unreachable
    ]
    assert len(tried) == 3
    assert all(report.rollback is None for report in tried)
    undo.world.away = False
    await undo.until(250)
    assert undo.world.wished == undo.start
    await undo.world.clock.aclose()


async def test_what_is_out_of_bounds_is_refused_whole_and_nothing_is_held(store: Store) -> None:
    undo = Undo(store)
    await undo.until(100)
    wild = {**undo.start, "inference": replace(undo.start["inference"], replicas=500)}
    undo.world.request = Rollback("now", 0, None, wild)
    before = undo.world.wished
    await undo.until(105)
    assert undo.world.wished == before
    refused = undo.watcher.reports[-1].rollback
    assert refused is not None
    assert refused.outcome == "Refused"
    assert "inference replicas 500 is outside its bounds" in refused.message
    await undo.world.clock.aclose()


async def test_in_another_mode_nothing_is_done(store: Store) -> None:
    undo = Undo(store)
    await undo.until(100)
    before = undo.world.wished
    undo.ask(0, until_s=None)
    for plant in undo.world.plants.values():
        plant.view = replace(plant.view, mode="recommend")
    await undo.until(200)
    assert undo.world.wished == before
    await undo.world.clock.aclose()


async def killed_in_it(store: Store, at: int | None) -> tuple[Undo, int]:
    """A rollback whose leader is killed at its n-th wait; gives how often it waited, and the next leader."""
    await store.client.flushall()
    undo = Undo(store)
    await undo.until(150)
    undo.ask(0, until_s=None)
    view = await undo.world.view(KEY)
    assert view is not None
    assert view.rollback is not None
    cut = Cut(undo.loop._roll_back(view, view.rollback), at)
    with contextlib.suppress(Killed):
        await cut.run()
    undo.take_office()
    return undo, cut.waits


async def test_wherever_its_leader_dies_the_next_one_carries_it_out_and_no_round_is_told_twice(store: Store) -> None:
    _, waits = await killed_in_it(store, None)
    assert waits >= 3
    for at in range(1, waits + 1):
        undo, _ = await killed_in_it(store, at)
        await undo.until(undo.world.clock.now() + 95)
        assert undo.world.wished == undo.start
        numbers = [each.round for each in (await history(store))[0]]
        assert numbers == list(range(len(numbers))), f"killed at wait {at}"
        last = undo.watcher.reports[-1].decision
        assert last is not None
        assert last.held
        await undo.world.clock.aclose()


def test_a_share_of_nothing_is_shown_as_none() -> None:
    change = plan_rollback({"a": allocation(1)}, {"a": replace(allocation(1), gpu_rate=GpuRate(7))}).changes[0]
    assert str(change).startswith("a: gpu_rate 0.007 → ")
