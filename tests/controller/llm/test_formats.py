"""Which response format a server is asked for: the strictest that it really takes, found in few requests, kept, and looked at again."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from controller.llm.account import Account
from controller.llm.client import ModelClient, Usage
from controller.llm.policy import LlmPolicy, Trace
from controller.llm.prompt import Mode
from controller.llm.settings import ModelSettings
from controller.memory.store import Store
from sair.errors import ModelUnavailable
from tests.controller.scenes import decision_point
from tests.fakes.model_server import MisbehavingServer, Reply, choosing, misbehaving_server, says

HOUR_S = 3600.0
ASK = [{"role": "user", "content": "answer in JSON"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"why": {"type": "string", "maxLength": 9}}}
Request = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def unmetered(_usage: Usage) -> None:
    """Somebody else's bill."""


def settings(url: str, **changes: Any) -> ModelSettings:
    return ModelSettings(**{"base_url": url, "model": "any", "deadline_s": 5.0, **changes})


def kind_of(request: Request) -> str:
    return str(request.get("response_format", {}).get("type", "text"))


def limits_text(request: Request) -> bool:
    return "maxLength" in json.dumps(request.get("response_format", {}))


def is_probe(request: Request) -> bool:
    return "hello" in request["messages"][0]["content"]


def sent_to(server: MisbehavingServer) -> list[str]:
    """In what formats, in order; a schema that limits no text is plain."""
    plain = [kind_of(each) == "json_schema" and not limits_text(each) for each in server.requests]
    return [
        ("probe " if is_probe(each) else "") + ("plain " if without else "") + kind_of(each)
        for each, without in zip(server.requests, plain, strict=True)
    ]


def schema_of(request: Request) -> dict[str, Any]:
    return dict(request["response_format"]["json_schema"]["schema"])


def enforcing_all(request: Request) -> str:
    """What a server answers that holds its model to every format."""
    if not is_probe(request):
        return str(choosing()(request)) if "code of this round" in json.dumps(request) else "{}"
    if kind_of(request) == "json_schema":
        return json.dumps(
            {name: rule.get("enum", ["hello"])[0] for name, rule in schema_of(request)["properties"].items()}
        )
    return '{"word": "hello"}' if kind_of(request) == "json_object" else '"hello"'


def refusing(refused: Callable[[Request], bool], answer: Reply = enforcing_all, status: int = 400) -> Reply:
    def reply(request: Request) -> str | web.StreamResponse | float:
        if refused(request):
            return web.json_response({"error": {"message": "not permitted"}}, status=status)
        return answer(request)

    return reply


def never(kinds: set[str]) -> Callable[[Request], bool]:
    """These formats are taken for no decision; a probe's are."""
    return lambda request: kind_of(request) in kinds and not is_probe(request)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        (limits_text, ["probe json_schema", "probe plain json_schema", "plain json_schema"]),
        (
            lambda request: limits_text(request) and not is_probe(request),
            ["probe json_schema", "json_schema", "plain json_schema"],
        ),
        (never({"json_schema"}), ["probe json_schema", "json_schema", "plain json_schema", "json_object"]),
        (
            never({"json_schema", "json_object"}),
            ["probe json_schema", "json_schema", "plain json_schema", "json_object", "text"],
        ),
    ],
    ids=[
        "refuses maxLength",
        "takes maxLength from the probe alone",
        "takes schemas from the probe alone",
        "takes formats from the probe alone",
    ],
)
async def test_whatever_format_a_server_refuses_the_model_decides_every_round(
    store: Store, refused: Callable[[Request], bool], sent: list[str], status: int
) -> None:
    knowledge, menu = await decision_point()
    async with misbehaving_server(refusing(refused, status=status)) as server:
        policy = LlmPolicy(ModelClient(settings(server.url)), settings(server.url))
        account = Account(knowledge.pipeline, store)
        for seed in range(4):
            trace = Trace()
            proposal = await policy.propose(
                knowledge, menu, lambda _: None, np.random.default_rng(seed), trace, account
            )
            assert (proposal.policy, trace.problem) == ("llm", "")
        await policy.close()
    assert sent_to(server) == [*sent, *[sent[-1]] * 3]


def keywords(schema: dict[str, Any]) -> set[tuple[str, str]]:
    """Of a schema and of its properties, with what they are said of."""
    rules = [schema, *schema["properties"].values()]
    return {(str(rule["type"]), keyword) for rule in rules for keyword in rule}


@pytest.mark.parametrize("mode", ["menu", "free"])
async def test_a_probe_tries_every_keyword_that_decisions_need(store: Store, mode: Mode) -> None:
    knowledge, menu = await decision_point()
    async with misbehaving_server(enforcing_all) as server:
        chosen = settings(server.url, mode=mode)
        policy = LlmPolicy(ModelClient(chosen), chosen)
        account = Account(knowledge.pipeline, store)
        await _refused(policy.propose(knowledge, menu, lambda _: None, np.random.default_rng(0), Trace(), account))
        await policy.close()
    probe, decision, *_ = server.requests
    assert keywords(schema_of(probe)) == keywords(schema_of(decision))
    assert {keyword for _, keyword in keywords(schema_of(probe))} == {
        "type",
        "enum",
        "maxLength",
        "properties",
        "required",
        "additionalProperties",
    }


async def _refused(answer: Any) -> None:
    """Wait for an answer that may be of no use."""
    try:
        await answer
    except ModelUnavailable:
        return


async def test_a_request_that_is_refused_in_every_format_says_nothing_of_the_formats() -> None:
    async with misbehaving_server(refusing(lambda request: "too long" in json.dumps(request))) as server:
        client = ModelClient(settings(server.url))
        with pytest.raises(ModelUnavailable, match=r"refused: .*not permitted"):
            await client.complete([{"role": "user", "content": "too long"}], SCHEMA, 5.0, unmetered)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
    assert sent_to(server) == [
        "probe json_schema",
        "json_schema",
        "plain json_schema",
        "json_object",
        "text",
        "json_schema",
    ]


async def test_a_refusal_that_leaves_no_time_for_the_next_format_is_remembered() -> None:
    def reply(request: Request) -> str | web.StreamResponse | float:
        if not limits_text(request):
            return enforcing_all(request) if len(server.requests) > 2 else 1.0
        return web.json_response({}, status=400)

    async with misbehaving_server(reply) as server:
        client = ModelClient(settings(server.url, enforcement="json_schema"))
        with pytest.raises(ModelUnavailable, match="no reply within"):
            await client.complete(ASK, SCHEMA, 0.3, unmetered)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
    assert sent_to(server) == ["json_schema", "plain json_schema", "plain json_schema"]


async def settled(client: ModelClient) -> None:
    """Until no probe is under way."""
    probes = [task for task in asyncio.all_tasks() if "probe" in task.get_name()]
    await asyncio.gather(*probes, return_exceptions=True)
    assert client.enforcement is not None


async def test_a_server_that_learnt_a_stricter_format_is_found_out_within_an_hour_and_decides_meanwhile() -> None:
    clock, old = Clock(), refusing(lambda request: kind_of(request) == "json_schema")
    async with misbehaving_server(old) as server:
        client = ModelClient(settings(server.url), clock=clock)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        server.reply = enforcing_all
        clock.now += HOUR_S - 1
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        clock.now += 1
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await settled(client)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
    probes = ["probe json_schema", "probe plain json_schema", "probe json_object"]
    assert sent_to(server)[:5] == [*probes, "json_object", "json_object"]
    assert sorted(sent_to(server)[5:7]) == ["json_object", "probe json_schema"]
    assert sent_to(server)[7:] == ["json_schema"]


async def test_a_server_that_still_takes_the_probes_schema_alone_loses_no_round_to_being_looked_at_again() -> None:
    clock = Clock()
    async with misbehaving_server(refusing(never({"json_schema"}))) as server:
        client = ModelClient(settings(server.url), clock=clock)
        for _ in range(40):
            await client.complete(ASK, SCHEMA, 5.0, unmetered)
            await settled(client)
            clock.now += HOUR_S / 10
        await client.close()
    sent = sent_to(server)
    assert sent.count("json_object") == 40
    assert sent.count("probe json_schema") <= 4
    assert len(sent) <= 40 + 4 * 3


async def test_a_second_look_that_fails_changes_nothing_and_is_not_repeated_at_once() -> None:
    clock = Clock()
    async with misbehaving_server(refusing(lambda request: kind_of(request) == "json_schema")) as server:
        client = ModelClient(settings(server.url), clock=clock)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        server.reply = refusing(is_probe, status=500)
        clock.now += HOUR_S
        for _ in range(3):
            await client.complete(ASK, SCHEMA, 5.0, unmetered)
            await settled(client)
        assert client.enforcement == "json_object"
        await client.close()
    assert sent_to(server).count("probe json_schema") == 2


async def test_a_format_that_was_set_is_tried_again_after_an_hour_and_no_other() -> None:
    clock = Clock()
    async with misbehaving_server(refusing(lambda request: kind_of(request) == "json_object")) as server:
        client = ModelClient(settings(server.url, enforcement="json_object"), clock=clock)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        server.reply = enforcing_all
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        clock.now += HOUR_S
        for _ in range(2):
            await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
    assert sent_to(server) == ["json_object", "text", "text", "json_object", "json_object"]


def without_json(request: Request) -> bool:
    """As JSON modes are known to."""
    return kind_of(request) == "json_object" and "json" not in json.dumps(request["messages"]).lower()


async def test_a_json_mode_that_refuses_requests_which_do_not_name_json_is_found() -> None:
    reply = refusing(lambda request: kind_of(request) == "json_schema" or without_json(request))
    async with misbehaving_server(reply) as server:
        client = ModelClient(settings(server.url))
        assert await client.probe(unmetered) == "json_object"
        await client.close()


@pytest.mark.parametrize("text", ['"hello"', "hello", "", '```json\n"hello"\n```'])
async def test_a_model_that_does_as_the_probe_says_is_held_to_no_format(text: str) -> None:
    async with misbehaving_server(says(text)) as server:
        client = ModelClient(settings(server.url))
        assert await client.probe(unmetered) == "text"
        await client.close()


async def test_a_json_mode_that_also_allows_lists_is_one() -> None:
    async with misbehaving_server(says('["hello"]')) as server:
        client = ModelClient(settings(server.url))
        assert await client.probe(unmetered) == "json_object"
        await client.close()


async def test_a_model_that_thinks_first_has_as_many_tokens_for_the_probe_as_for_a_decision() -> None:
    async with misbehaving_server(
        lambda request: enforcing_all(request) if request["max_tokens"] >= 1500 else ""
    ) as server:
        client = ModelClient(settings(server.url, max_tokens=2000))
        assert await client.probe(unmetered) == "json_schema"
        await client.close()


@pytest.mark.parametrize(
    ("silent", "found"),
    [({"json_schema"}, "json_object"), ({"json_schema", "json_object"}, "text"), ({"json_object"}, "json_schema")],
)
async def test_a_format_that_is_answered_with_nothing_is_not_enforced(silent: set[str], found: str) -> None:
    async with misbehaving_server(
        lambda request: "" if kind_of(request) in silent else enforcing_all(request)
    ) as server:
        client = ModelClient(settings(server.url))
        assert await client.probe(unmetered) == found
        await client.close()


async def test_a_reply_whose_tokens_went_into_thinking_names_the_setting() -> None:
    thought: dict[str, Any] = {
        "model": "any",
        "choices": [{"finish_reason": "length", "message": {"content": None, "reasoning_content": "hm"}}],
    }
    async with misbehaving_server(lambda _request: web.json_response(thought)) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        with pytest.raises(ModelUnavailable, match="empty: all of SAIR_LLM_MAX_TOKENS"):
            await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
