"""The whole loop with a real llama.cpp server: who decided is told as it was, whatever the model said and when it is gone."""

from __future__ import annotations

import json

import pytest

from controller.guardrails import RULES
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy
from controller.llm.settings import ModelSettings
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.tuning import Tuning
from tests.controller.scenes import Rounds, setup, simulated

pytestmark = [pytest.mark.llm, pytest.mark.long, pytest.mark.timeout(900)]

KEY = setup().key


async def run(store: Store, settings: ModelSettings, rounds: int) -> tuple[Rounds, list[dict[str, str]]]:
    """Rounds of a pipeline whose policy is the model; gives what the journal tells of the decisions, oldest first."""
    world, watcher = simulated(), Rounds()
    model = LlmPolicy(ModelClient(settings), settings)
    tuning = Tuning(prices=setup().prices, probing=False)
    loop = PipelineLoop(KEY, world, MirroredMemory(store), tuning, model=model, watcher=watcher)
    await loop.run(lambda: len(watcher.reports) >= rounds)
    await world.clock.aclose()
    await model.close()
    return watcher, [f for _id, f in reversed(await store.decisions(KEY, 100)) if f["kind"] == "decision"]


async def test_rounds_that_a_real_model_decides_are_told_with_model_prompt_reply_and_verdicts(
    store: Store, model_server: str
) -> None:
    settings = ModelSettings(
        base_url=model_server, model="SmolLM2-135M-Instruct", deadline_s=180.0, max_tokens=200, breaker_failures=100
    )
    watcher, records = await run(store, settings, 3)
    assert [record["round"] for record in records] == ["0", "1", "2"]
    for report, record in zip(watcher.reports, records, strict=True):
        assert record["model"]
        assert len(record["prompt_sha256"]) >= 16
        assert [each["rule"] for each in json.loads(record["verdicts_json"])] == [rule.name for rule in RULES]
        # Whoever decided: the record and the round agree, and a fallback is never called the model's decision.
        assert report.decision is not None
        assert record["policy"] == report.decision.policy
        assert (record["policy"] == "llm") == ("fallback" not in record)
        if record["policy"] == "llm":
            assert report.menu is not None
            assert report.decision.candidate is not None
            assert report.menu[report.decision.candidate].action == report.decision.wished
            assert json.loads(record["reply"].split("\n---\n")[-1])
    assert any(record["policy"] == "llm" for record in records)
    assert {e.policy for e in (await store.load(KEY)).experiences} <= {"llm", "in-context"}


async def test_when_the_server_is_gone_the_breaker_stops_asking_and_no_round_is_called_the_models(store: Store) -> None:
    settings = ModelSettings(
        base_url="http://127.0.0.1:9/v1", model="gone", enforcement="json_schema", breaker_failures=2
    )
    watcher, records = await run(store, settings, 4)
    assert {record["policy"] for record in records} == {"in-context"}
    assert all(record["fallback"] for record in records)
    assert [("circuit breaker is open" in record["fallback"]) for record in records] == [False, False, True, True]
    assert [bool(report.trace and report.trace.prompt_hash) for report in watcher.reports] == [True, True, False, False]
