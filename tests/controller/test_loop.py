import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from controller.decision import Proposal
from controller.explain import explain
from controller.journal import RoundReport
from controller.knowledge import Knowledge, Refusal
from controller.llm.client import ModelClient
from controller.llm.policy import Judge, LlmPolicy
from controller.llm.settings import ModelSettings
from controller.looking import Looks, Watch
from controller.loop import PipelineLoop
from controller.memory.keys import Keys
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.menu import Menu
from controller.recorded import rounds_in
from controller.state import HOLD, Action, Allocation, PipelineView, StageDelta
from controller.tuning import Tuning
from controller.worlds.simulated import Faults, SimulatedWorld
from sair.errors import ModelUnavailable
from sair.pipeline import Mode
from tests.controller.scenes import Rounds, setup, simulated
from tests.fakes.model_server import choosing, misbehaving_server, says

KEY = setup().key


async def run(world: SimulatedWorld, store: Store, until_s: float, model: LlmPolicy | None = None) -> Rounds:
    watcher = Rounds()
    loop = PipelineLoop(KEY, world, MirroredMemory(store), Tuning(prices=setup().prices), model=model, watcher=watcher)
    await loop.run(lambda: world.clock.now() >= until_s)
    await world.clock.aclose()
    return watcher


async def test_every_round_ends_in_memory_with_its_outcome(store: Store) -> None:
    watcher = await run(simulated(), store, 300)
    loaded = await store.load(KEY)
    assert len(watcher.reports) == 9
    # The last round still waits for its outcome.
    assert [e.round for e in loaded.experiences] == list(range(8))
    assert loaded.state["round"] == "9"


async def test_the_journal_tells_a_round_before_it_is_applied_and_how_it_ended(store: Store) -> None:
    await run(simulated(), store, 200)
    kinds = [(fields["kind"], fields["round"]) for _id, fields in reversed(await store.decisions(KEY, 100))]
    first = [kind for kind, number in kinds if number == "0"]
    assert first[0] == "decision"
    assert first[-1] == "concluded"
    decided = next(fields for _id, fields in await store.decisions(KEY, 100) if fields["kind"] == "decision")
    assert {verdict["rule"] for verdict in json.loads(decided["verdicts_json"])}
    assert json.loads(decided["menu_json"])


async def test_a_new_controller_goes_on_where_the_last_one_stopped(store: Store) -> None:
    world = simulated()
    await run(world, store, 200)
    watcher = await run(world, store, 400)
    assert watcher.reports[0].round == 6
    rounds = [e.round for e in (await store.load(KEY)).experiences]
    assert rounds == sorted(set(rounds))


_RESTART_S = 910.0
"""In a descent: with and without what was learned it goes on differently."""


async def wished_around(store: Store, *, restart: bool = True, forgets: bool = False) -> list[dict[str, Allocation]]:
    """What the stages are wished to have at every look of a run that a restart may interrupt."""
    await store.client.flushall()
    world, tuning = simulated(duration_s=1200.0), Tuning(prices=setup().prices, probing=False)
    wished: list[dict[str, Allocation]] = []

    def controller() -> PipelineLoop:
        return PipelineLoop(KEY, world, MirroredMemory(store), tuning)

    async def run_until(loop: PipelineLoop, until_s: float) -> None:
        def ended() -> bool:
            if (now := dict(world.plants[KEY].wished)) not in wished[-1:]:
                wished.append(now)
            return world.clock.now() >= until_s

        await loop.run(ended)

    loop = controller()
    await run_until(loop, _RESTART_S)
    if forgets:
        await store.client.flushall()
    await run_until(controller() if restart else loop, _RESTART_S + 3 * tuning.interval_s + 5)
    await world.clock.aclose()
    return wished


async def test_a_restart_takes_no_capacity_away_because_what_was_learned_is_remembered(store: Store) -> None:
    unbroken = await wished_around(store, restart=False)
    assert len(unbroken) > 10

    assert await wished_around(store) == unbroken
    # The same moment, without the memory: what it protects from.
    assert await wished_around(store, forgets=True) != unbroken


@pytest.mark.parametrize(
    "faults",
    [Faults(metrics_down=((150, 400),)), Faults(metrics_stale=((150, 400),)), Faults(api_down=((150, 400),))],
    ids=["metrics down", "metrics stale", "API server down"],
)
async def test_nothing_is_scaled_down_while_something_is_away_and_the_loop_recovers(
    store: Store, faults: Faults
) -> None:
    world = simulated(faults=faults)
    before: dict[str, Allocation] = {}
    watcher = Rounds()
    loop = PipelineLoop(KEY, world, MirroredMemory(store), Tuning(prices=setup().prices), watcher=watcher)

    def ended() -> bool:
        now, wished = world.clock.now(), world.plants[KEY].wished
        if 150 <= now < 400:
            for name, old in before.items():
                assert wished[name].replicas >= old.replicas
                assert wished[name].cpu >= old.cpu
                assert old.gpu_rate is None or (wished[name].gpu_rate or old.gpu_rate) >= old.gpu_rate
            before.update(wished)
        return now >= 600

    await loop.run(ended)
    await world.clock.aclose()
    assert watcher.reports[-1].decision is not None


async def test_a_pipeline_that_is_off_is_observed_and_left_alone(store: Store) -> None:
    await _left_alone(store, "off")


async def test_a_recommendation_is_recorded_and_not_applied(store: Store) -> None:
    watcher = await _left_alone(store, "recommend")
    assert any(report.decision and report.decision.action for report in watcher.reports)
    assert all(e.action.deltas == () for e in (await store.load(KEY)).experiences)


async def _left_alone(store: Store, mode: Mode) -> Rounds:
    world = simulated()
    start = dict(world.plants[KEY].wished)

    class Held(SimulatedWorld):
        async def view(self, key: str) -> PipelineView | None:
            view = await super().view(key)
            return replace(view, mode=mode) if view else None

    held = Held(list(world.plants.values()))
    watcher = await run(held, store, 300)
    assert dict(held.plants[KEY].wished) == start
    assert watcher.reports
    return watcher


async def test_without_redis_decisions_go_on() -> None:
    watcher = await run(simulated(), Store.from_url("redis://127.0.0.1:1/0"), 200)
    assert all(report.decision for report in watcher.reports)


async def test_a_model_that_answers_nonsense_is_replaced_by_the_built_in_policy_and_the_record_says_so(
    store: Store,
) -> None:
    async with misbehaving_server(says("scale down, risk low")) as server:
        settings = ModelSettings(base_url=server.url, enforcement="text", breaker_failures=100)
        model = LlmPolicy(ModelClient(settings), settings)
        watcher = await run(simulated(), store, 200, model)
        await model.close()
    decided = [report for report in watcher.reports if report.decision and report.decision.policy != "probe"]
    assert decided
    assert all(report.decision and report.decision.policy == "in-context" and report.fallback for report in decided)
    newest = (await store.decisions(KEY, 100))[::-1]
    assert any("fallback" in fields for _id, fields in newest)
    assert any(fields.get("reply") for _id, fields in newest)


async def test_a_models_part_in_a_round_is_in_the_record_and_is_told(store: Store) -> None:
    def reply(request: dict[str, Any]) -> str:
        answer = json.loads(str(choosing(rationale="it is hot")(request)))
        return json.dumps(answer | {"bottleneck": "s2"})

    async with misbehaving_server(reply) as server:
        settings = ModelSettings(base_url=server.url, enforcement="text", dollars_per_million_in=50.0)
        model = LlmPolicy(ModelClient(settings), settings)
        watcher = await run(simulated(), store, 400, model)
        await model.close()
    asked = [report for report in watcher.reports if report.trace is not None and report.menu is not None]
    records, _ = rounds_in(Keys(KEY).decisions, reversed(await store.decisions(KEY, 100)))
    by_round = {each.round: each for each in records}
    stage = setup().view.stages[1].name
    for report in asked:
        recorded = by_round[report.round]
        assert recorded.text("model_bottleneck") == stage
        assert recorded.number("dollars") == pytest.approx((100 * 50.0 + 10 * 0.6) / 1e6)
        assert report.menu is not None
        assert recorded.shown() == [each.experience.id for each in report.menu.recollections]
        lines = explain(recorded, KEY)
        assert f"  it takes {stage} for the bottleneck" in lines
        assert any(line.startswith("  it took 110 tokens, $0.0050, ") for line in lines)
    assert any(report.menu is not None and report.menu.recollections for report in asked)
    told = explain(by_round[asked[-1].round], KEY)
    assert any(line.startswith("Remembered") and "shown to the language model" in line for line in told)


class Slow(LlmPolicy):
    """A model during whose answer something else happens."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        settings = ModelSettings(base_url="http://127.0.0.1:9/v1")
        super().__init__(ModelClient(settings), settings)
        self._meanwhile = meanwhile

    async def propose(self, knowledge: Knowledge, menu: Menu, *_: object) -> Proposal:
        await self._meanwhile()
        changing = next((each for each in menu.candidates if each.action), menu.hold)
        return Proposal(changing.action, "llm", "it looked right then", changing.number)


async def scaled_by_somebody(world: SimulatedWorld) -> None:
    now = (await world.allocations(KEY))["preprocess"]
    more = replace(now, replicas=now.replicas % 10 + 1)
    await world.apply(KEY, {"preprocess": more}, reason="somebody else")


async def held_rounds(world: SimulatedWorld, store: Store, model: Slow, until_s: float) -> list[RoundReport]:
    """Those in which the model was asked: all of them held."""
    watcher = await run(world, store, until_s, model)
    await model.close()
    asked = [report for report in watcher.reports if report.decision and report.decision.policy != "probe"]
    assert asked
    assert {(each.decision.policy, each.decision.action) for each in asked if each.decision} == {("hold", HOLD)}
    return asked


async def test_a_models_reply_is_discarded_where_the_state_has_moved_meanwhile(store: Store) -> None:
    world = simulated()
    for report in await held_rounds(world, store, Slow(lambda: scaled_by_somebody(world)), 200):
        assert report.fallback == "the reply came too late: the allocation changed while the model was asked"
        assert report.discarded


async def test_where_the_state_has_moved_while_a_model_failed_the_failure_is_told(store: Store) -> None:
    world = simulated()

    async def scaled_and_unanswered() -> None:
        await scaled_by_somebody(world)
        raise ModelUnavailable("no answer within 20 s")

    for report in await held_rounds(world, store, Slow(scaled_and_unanswered), 100):
        assert report.decision is not None
        assert report.decision.reason == "the allocation changed while the language model was asked"
        assert (report.fallback, report.discarded) == ("no answer within 20 s", False)


async def test_a_models_reply_counts_where_nothing_has_moved(store: Store) -> None:
    model = Slow(partial(asyncio.sleep, 0))
    watcher = await run(simulated(), store, 200, model)
    await model.close()
    assert any(
        report.decision and report.decision.policy == "llm" and report.decision.action for report in watcher.reports
    )


async def looks_while_thinking(
    store: Store, tuning: Tuning, looks: Callable[[SimulatedWorld], Looks] | None = None
) -> list[bool]:
    """Runs until a model has decided once; for each look of the reflex, whether the model was thinking."""
    world, thinking, looked = simulated(), False, []

    async def think() -> None:
        nonlocal thinking
        thinking = True
        await world.clock.sleep(4.0)
        await asyncio.sleep(1.2)
        thinking = False

    class Loop(PipelineLoop):
        async def reflex(self, view: PipelineView) -> Action:
            looked.append(thinking)
            return await super().reflex(view)

    model, watcher = Slow(think), Rounds()
    tuning = replace(tuning, prices=setup().prices, probing=False)
    loop = Loop(KEY, world, MirroredMemory(store), tuning, model=model, watcher=watcher)
    if looks is not None:
        loop._looks = looks(world)
    await loop.run(lambda: bool(watcher.reports))
    await world.clock.aclose()
    await model.close()
    return looked


async def test_the_reflex_goes_on_while_a_model_thinks(store: Store) -> None:
    looked = await looks_while_thinking(store, Tuning(reflex_interval_s=0.5))
    assert looked.count(True) >= 1
    assert looked.count(False) >= 10


@pytest.mark.parametrize("begins", [True, False])
async def test_a_known_burst_that_begins_while_a_model_thinks_is_met(store: Store, begins: bool) -> None:
    class Glances(Looks):
        async def watch(self, view: PipelineView, knowledge: Knowledge | None) -> Watch:
            return Watch(10.0, 0.1, 1.0)

        async def begins(self, watch: Watch) -> bool:
            return begins

    # No look is due before the model has answered.
    looked = await looks_while_thinking(store, Tuning(), lambda world: Glances(KEY, world, Tuning(), lambda: 1))
    assert any(looked) == begins


async def test_what_is_changed_of_a_pipeline_while_a_model_thinks_holds_for_the_reflex_at_once(store: Store) -> None:
    thinking, seen = False, []

    class World(SimulatedWorld):
        async def view(self, key: str) -> PipelineView | None:
            view = await super().view(key)
            return replace(view, mode="off", budget_per_hour=0.01) if view is not None and thinking else view

    world = World(list(simulated().plants.values()))

    async def think() -> None:
        nonlocal thinking
        thinking = True
        await world.clock.sleep(6.0)
        await asyncio.sleep(1.2)

    class Loop(PipelineLoop):
        async def reflex(self, view: PipelineView) -> Action:
            if thinking:
                seen.append((view.mode, view.budget_per_hour))
            return await super().reflex(view)

    model, watcher = Slow(think), Rounds()
    tuning = Tuning(prices=setup().prices, probing=False)
    loop = Loop(KEY, world, MirroredMemory(store), tuning, model=model, watcher=watcher)
    await loop.run(lambda: bool(watcher.reports))
    await world.clock.aclose()
    await model.close()
    assert set(seen) == {("off", 0.01)}


async def test_a_model_is_told_at_once_that_it_wishes_for_what_was_refused_lately(store: Store) -> None:
    raised, said = Action((StageDelta("inference", gpu_milli=100),)), []

    class Repeating(LlmPolicy):
        async def propose(self, knowledge: Knowledge, menu: Menu, judge: Judge, *_: object) -> Proposal:
            said.append(judge(raised))
            return Proposal(HOLD, "llm")

    settings = ModelSettings(base_url="http://127.0.0.1:9/v1")
    world, model = simulated(), Repeating(ModelClient(settings), settings)
    tuning = Tuning(prices=setup().prices, probing=False)
    loop = PipelineLoop(KEY, world, MirroredMemory(store), tuning, model=model)
    view = world.plants[KEY].view
    for refusals in ((), (Refusal("inference", "gpu_rate", 3),)):
        await world.clock.sleep(30.0)
        await loop.recall(view)
        learned = replace(loop.knowledge.learned, refusals=refusals)
        loop._knowledge = replace(loop.knowledge, learned=learned)
        await loop.round(view)
    await world.clock.aclose()
    await model.close()
    assert [each and each.rule for each in said] == [None, "repetition"]
