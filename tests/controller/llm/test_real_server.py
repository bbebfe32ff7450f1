"""Against a real llama.cpp server. A 135M model shows that the protocol works; its choices mean nothing."""

import numpy as np
import pytest

from controller.llm.account import Account
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy, Trace
from controller.llm.settings import ModelSettings
from controller.memory.store import Store
from tests.controller.scenes import decision_point

pytestmark = [pytest.mark.llm, pytest.mark.timeout(600)]


def settings(url: str) -> ModelSettings:
    return ModelSettings(base_url=url, model="SmolLM2-135M-Instruct", deadline_s=120.0, max_tokens=200)


async def test_the_probe_finds_that_llama_cpp_enforces_schemas(model_server: str) -> None:
    client = ModelClient(settings(model_server))
    assert await client.probe(lambda _usage: None) == "json_schema"
    await client.close()


async def test_a_real_model_decides_a_round_from_the_menu(model_server: str, store: Store) -> None:
    knowledge, menu = await decision_point(rounds=2)
    policy, trace = LlmPolicy(ModelClient(settings(model_server)), settings(model_server)), Trace()
    proposal = await policy.propose(
        knowledge, menu, lambda _action: None, np.random.default_rng(0), trace, Account(knowledge.pipeline, store)
    )
    await policy.close()
    assert proposal.policy == "llm"
    assert proposal.candidate is not None
    assert menu[proposal.candidate].action == proposal.action
    assert trace.tokens_in > 300
