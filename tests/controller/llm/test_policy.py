import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from controller.decision import Proposal, Verdict
from controller.knowledge import Knowledge
from controller.llm.account import Account, Spending
from controller.llm.client import ModelClient, Usage
from controller.llm.policy import Judge, LlmPolicy, Trace
from controller.llm.settings import ModelSettings
from controller.memory.store import Store
from controller.menu import Menu
from controller.state import Action
from sair.errors import ModelUnavailable
from tests.controller.scenes import decision_point
from tests.fakes.model_server import Reply, choosing, misbehaving_server, says

CHOICE = choosing()


@dataclass
class Scene:
    """A question to put, and the Redis that keeps what it cost."""

    knowledge: Knowledge
    menu: Menu
    store: Store


@pytest.fixture
async def scene(store: Store) -> Scene:
    return Scene(*await decision_point(), store)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def agree(_action: Action) -> None:
    return None


async def propose(
    policy: LlmPolicy, scene: Scene, judge: Judge = agree, trace: Trace | None = None, account: Account | None = None
) -> Proposal:
    """As a controller that leads from now on, unless it has an account already."""
    account = account or Account(scene.knowledge.pipeline, scene.store)
    return await policy.propose(scene.knowledge, scene.menu, judge, np.random.default_rng(0), trace or Trace(), account)


def policy_for(url: str, clock: Callable[[], float] | None = None, **changes: Any) -> LlmPolicy:
    settings = ModelSettings(**{"base_url": url, "enforcement": "json_schema", "deadline_s": 1.0, **changes})
    return LlmPolicy(ModelClient(settings), settings, clock=clock or Clock())


async def test_the_models_choice_is_proposed_with_its_rationale_kept_for_people(scene: Scene) -> None:
    trace = Trace()
    async with misbehaving_server(CHOICE) as server:
        policy = policy_for(server.url)
        proposal = await propose(policy, scene, trace=trace)
        await policy.close()
    assert (proposal.policy, proposal.reason) == ("llm", "because")
    assert scene.menu.find(proposal.action) is not None
    assert (trace.tokens_in, trace.tokens_out, len(trace.replies)) == (100, 10, 1)


async def test_a_bad_answer_is_repaired_once(scene: Scene) -> None:
    trace = Trace()
    async with misbehaving_server(
        lambda request: CHOICE(request) if len(server.requests) > 1 else "nonsense"
    ) as server:
        policy = policy_for(server.url)
        assert (await propose(policy, scene, trace=trace)).policy == "llm"
        await policy.close()
    assert [each.rule for each in trace.refusals] == ["schema"]
    assert "could not be used" in server.requests[1]["messages"][-1]["content"]
    assert "nonsense" not in json.dumps(server.requests[1])


@pytest.mark.parametrize(
    "reply",
    [says("nonsense"), says("{}"), says(json.dumps({"choice": 99})), lambda _r: 5.0],
    ids=["text", "empty", "unknown", "late"],
)
async def test_a_model_that_stays_bad_does_not_decide(scene: Scene, reply: Reply) -> None:
    trace = Trace()
    async with misbehaving_server(reply) as server:
        policy = policy_for(server.url)
        with pytest.raises(ModelUnavailable):
            await propose(policy, scene, trace=trace)
        await policy.close()
    assert trace.problem
    assert len(server.requests) <= 2


async def test_a_refusal_of_the_guardrails_costs_the_repair_and_then_somebody_else_decides(scene: Scene) -> None:
    async with misbehaving_server(CHOICE) as server:
        policy = policy_for(server.url)
        with pytest.raises(ModelUnavailable, match="safe descent"):
            await propose(
                policy, scene, judge=lambda _action: Verdict("safe descent", "rejected", "P99 is above the SLO")
            )
        await policy.close()
    assert len(server.requests) == 2


async def test_the_breaker_stops_asking_a_server_that_fails(scene: Scene) -> None:
    clock = Clock()
    async with misbehaving_server(says("nonsense")) as server:
        policy = policy_for(server.url, clock, breaker_failures=2, breaker_pause_s=60.0)
        for _ in range(4):
            with pytest.raises(ModelUnavailable):
                await propose(policy, scene)
        assert len(server.requests) == 4
        clock.now += 61
        server.reply = CHOICE
        assert (await propose(policy, scene)).policy == "llm"
        await policy.close()


async def test_a_budget_that_is_used_up_asks_no_more_until_tomorrow_whoever_leads(scene: Scene) -> None:
    clock = Clock()
    async with misbehaving_server(CHOICE) as server:
        for _ in range(2):
            policy = policy_for(server.url, clock, tokens_per_day=150)
            await propose(policy, scene)
            await policy.close()
        policy = policy_for(server.url, clock, tokens_per_day=150)
        with pytest.raises(ModelUnavailable, match="budget"):
            await propose(policy, scene)
        clock.now += 86_400
        await propose(policy, scene)
        await policy.close()
    assert len(server.requests) == 3


def of(scene: Scene, pipeline: str) -> Scene:
    """The same scene of another pipeline."""
    learned = replace(scene.knowledge.learned, pipeline=pipeline)
    return replace(scene, knowledge=replace(scene.knowledge, learned=learned))


async def test_calls_of_many_pipelines_are_under_way_at_once_and_never_more_than_allowed(scene: Scene) -> None:
    async with misbehaving_server(CHOICE) as server:
        server.slowly_s = 0.1
        policy = policy_for(server.url, concurrency=3, deadline_s=10.0)
        proposals = await asyncio.gather(*(propose(policy, of(scene, f"ns/p{number}")) for number in range(9)))
        await policy.close()
    assert len(proposals) == 9
    assert server.most_under_way == 3


async def test_waiting_for_a_slot_in_vain_falls_back_and_leaves_the_breaker_closed(scene: Scene) -> None:
    async with misbehaving_server(CHOICE) as server:
        server.slowly_s = 3.0
        # Calls that are cut off are the breaker's business: the first, and one that may have got its slot at the last moment.
        policy = policy_for(server.url, time.time, concurrency=1, deadline_s=0.5, breaker_failures=4)
        scenes = [of(scene, f"ns/p{number}") for number in range(8)]
        outcomes = await asyncio.gather(*(propose(policy, each) for each in scenes), return_exceptions=True)
        assert all(isinstance(each, ModelUnavailable) for each in outcomes)
        waited = [each for each in outcomes if "none of the 1 calls under way ended" in str(each)]
        assert len(waited) >= 4
        server.slowly_s = 0.0
        assert (await propose(policy, of(scene, "ns/next"))).policy == "llm"
        await policy.close()


async def test_one_pipeline_has_one_call_under_way_whatever_the_others_do(scene: Scene) -> None:
    async with misbehaving_server(CHOICE) as server:
        server.slowly_s = 0.2
        policy = policy_for(server.url, deadline_s=10.0)
        twice = [propose(policy, of(scene, "ns/same")) for _ in range(2)]
        first, second, other = await asyncio.gather(
            *twice, propose(policy, of(scene, "ns/other")), return_exceptions=True
        )
        refused, answered = sorted((first, second), key=lambda each: isinstance(each, Proposal))
        assert isinstance(answered, Proposal)
        assert isinstance(other, Proposal)
        assert isinstance(refused, ModelUnavailable)
        assert "still under way" in str(refused)
        assert server.most_under_way == 2
        assert isinstance(await propose(policy, of(scene, "ns/same")), Proposal)
        await policy.close()


async def test_a_probe_counts_against_the_budget_of_the_pipeline_that_began_it(scene: Scene) -> None:
    calls: list[tuple[str, Usage, float]] = []

    def reply(request: dict[str, Any]) -> str | web.StreamResponse | float:
        return '{"stage": "alpha"}' if "hello" in request["messages"][0]["content"] else CHOICE(request)

    trace, account = Trace(), Account(scene.knowledge.pipeline, scene.store)
    async with misbehaving_server(reply) as server:
        settings = ModelSettings(base_url=server.url, dollars_per_million_in=10.0, dollars_per_million_out=100.0)
        policy = LlmPolicy(ModelClient(settings), settings, tally=lambda *call: calls.append(call))
        await propose(policy, scene, trace=trace, account=account)
        await policy.close()
    pipeline = scene.knowledge.pipeline
    assert calls == [
        (pipeline, Usage("probe", 100, 10), 0.002),
        (pipeline, Usage("decision", 100, 10), 0.002),
    ]
    assert (trace.tokens_in, trace.tokens_out, trace.dollars) == (200, 20, 0.004)
    assert account.spent(time.time()) == Spending(220, 0.004)


async def test_a_reply_that_was_made_for_another_pipeline_decides_nothing(scene: Scene) -> None:
    """A gateway that mixes replies up, or takes two questions for the same one."""
    first: list[str] = []

    def mixed_up(request: dict[str, Any]) -> str:
        first.append(str(CHOICE(request)))
        return first[0]

    trace, other = Trace(), of(scene, "ns/other")
    async with misbehaving_server(mixed_up) as server:
        policy = policy_for(server.url)
        assert (await propose(policy, scene)).policy == "llm"
        with pytest.raises(ModelUnavailable, match="round code"):
            await policy.propose(
                other.knowledge,
                other.menu,
                agree,
                np.random.default_rng(1),
                trace,
                Account("ns/other", scene.store),
            )
        await policy.close()
    assert [each.rule for each in trace.refusals] == ["round code", "round code"]
