"""Against a real llama.cpp server. A 135M model shows that the protocol works; its choices mean nothing."""

import time

import numpy as np
import pytest

from controller.decision import Verdict
from controller.llm.account import Account
from controller.llm.client import ModelClient, Usage
from controller.llm.policy import LlmPolicy, Trace
from controller.llm.settings import ModelSettings
from controller.memory.store import Store
from controller.state import Action
from sair.errors import ModelUnavailable
from tests.controller.scenes import decision_point

pytestmark = [pytest.mark.llm, pytest.mark.timeout(600)]


def settings(url: str) -> ModelSettings:
    # Little is shown: on two cores most of the time goes into reading the prompt.
    return ModelSettings(
        base_url=url,
        model="SmolLM2-135M-Instruct",
        deadline_s=300.0,
        max_tokens=120,
        experience_tokens=0,
        temperature=0.0,
    )


async def test_the_probe_finds_that_llama_cpp_enforces_schemas(model_server: str) -> None:
    used: list[Usage] = []
    client = ModelClient(settings(model_server))
    assert await client.probe(used.append) == "json_schema"
    await client.close()
    assert [usage.purpose for usage in used] == ["probe"]
    assert used[0].tokens_in > 10


async def test_a_real_model_decides_a_round_from_the_menu_after_its_first_answer_was_refused(
    model_server: str, store: Store
) -> None:
    knowledge, menu = await decision_point(rounds=2, menu_max=4)
    policy, trace = LlmPolicy(ModelClient(settings(model_server)), settings(model_server)), Trace()

    def refuse_the_first(_action: Action) -> Verdict | None:
        return None if trace.refusals else Verdict("safe descent", "rejected", "P99 is above the SLO")

    account = Account(knowledge.pipeline, store)
    proposal = await policy.propose(knowledge, menu, refuse_the_first, np.random.default_rng(0), trace, account)
    await policy.close()
    assert proposal.policy == "llm"
    assert proposal.candidate is not None
    assert menu[proposal.candidate].action == proposal.action
    assert (len(trace.replies), len(trace.refusals)) == (2, 1)
    # Whatever was wrong with the first, the code of the round was repeated in both.
    assert trace.refusals[0].rule != "round code"
    assert trace.tokens_in > 600
    assert account.spent(time.time()).tokens == trace.tokens_in + trace.tokens_out


async def test_a_real_model_that_has_no_time_does_not_decide(model_server: str, store: Store) -> None:
    knowledge, menu = await decision_point(rounds=2, menu_max=4)
    hurried = ModelSettings(
        base_url=model_server, model="SmolLM2-135M-Instruct", deadline_s=0.05, enforcement="json_schema"
    )
    policy, trace = LlmPolicy(ModelClient(hurried), hurried), Trace()
    began_s = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"no reply within|no time was left"):
        await policy.propose(
            knowledge,
            menu,
            lambda _action: None,
            np.random.default_rng(0),
            trace,
            Account(knowledge.pipeline, store),
        )
    assert time.monotonic() - began_s < 5.0
    await policy.close()
    assert not trace.replies
    assert trace.tokens_in > 100
