import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from controller.llm.client import ModelBusy, ModelClient, Usage
from controller.llm.settings import ModelSettings, load_model_settings
from sair.errors import ModelUnavailable, SettingsError
from tests.fakes.model_server import Reply, chat_completion, enforcing, misbehaving_server, says

SCHEMA: dict[str, Any] = {"type": "object"}
ASK = [{"role": "user", "content": "?"}]


def unmetered(_usage: Usage) -> None:
    """Somebody else's bill."""


def settings(url: str, **changes: Any) -> ModelSettings:
    return ModelSettings(**{"base_url": url, "model": "any", "deadline_s": 2.0, **changes})


@pytest.mark.parametrize(
    ("enforced", "refused", "found"),
    [
        ({"json_schema", "json_object"}, set(), "json_schema"),
        ({"json_object"}, {"json_schema"}, "json_object"),
        ({"json_object"}, set(), "json_object"),
        (set(), {"json_schema", "json_object"}, "text"),
        (set(), set(), "text"),
    ],
    ids=["enforces both", "refuses the schema", "ignores the schema", "refuses both", "ignores both"],
)
async def test_the_probe_finds_what_the_server_really_enforces(
    enforced: set[str], refused: set[str], found: str
) -> None:
    async with misbehaving_server(enforcing(enforced, refused)) as server:
        client = ModelClient(settings(server.url))
        assert await client.probe(unmetered) == found
        await client.close()


def raw(status: int = 200, text: str = "", content_type: str = "application/json") -> Reply:
    return lambda _request: web.Response(status=status, text=text, content_type=content_type)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (raw(500, "oops"), "InternalServerError"),
        (raw(429, '{"error": {"message": "slow down"}}'), "RateLimitError"),
        (raw(401, '{"error": {"message": "who are you"}}'), "AuthenticationError"),
        (raw(200, "<html>"), "."),
        (raw(200, '{"choices": ['), "."),
        (raw(200, "{}"), "no chat completion"),
        (raw(200, '{"choices": []}'), "no chat completion"),
        (raw(200, '{"choices": [{"message": {"content": null}}]}'), "no chat completion|empty"),
        (raw(200, "null"), "no chat completion"),
        (raw(200, "[" * 200_000), "."),
        (says(""), "empty"),
        (says("x" * 30_000), "30000 characters"),
        (lambda _request: 10.0, "no reply within"),
    ],
)
async def test_however_the_server_fails_the_model_is_unavailable_and_nothing_else_is_raised(
    reply: Reply, problem: str
) -> None:
    async with misbehaving_server(reply) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        with pytest.raises(ModelUnavailable, match=problem):
            await client.complete(ASK, SCHEMA, 0.5, unmetered)
        await client.close()


async def test_a_connection_cut_in_the_middle_of_the_reply_is_an_unavailable_model() -> None:
    def cut(_request: dict[str, Any]) -> web.StreamResponse:
        return web.Response(
            text='{"choices": [{"mess', headers={"Content-Length": "4000"}, content_type="application/json"
        )

    async with misbehaving_server(cut) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        with pytest.raises(ModelUnavailable):
            await client.complete(ASK, SCHEMA, 1.0, unmetered)
        await client.close()


async def test_a_server_that_is_not_there_is_an_unavailable_model() -> None:
    client = ModelClient(settings("http://127.0.0.1:1/v1"))
    with pytest.raises(ModelUnavailable):
        await client.complete(ASK, SCHEMA, 2.0, unmetered)
    await client.close()


async def test_what_the_model_used_is_counted() -> None:
    used: list[Usage] = []
    async with misbehaving_server(says("{}")) as server:
        client = ModelClient(settings(server.url, enforcement="json_schema"))
        completion = await client.complete(ASK, SCHEMA, 2.0, used.append)
        await client.close()
    assert completion.model == "misbehaving"
    assert used == [Usage("decision", 100, 10)]
    assert server.requests[0]["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    "usage",
    [
        "null",
        '{"prompt_tokens": -5000, "completion_tokens": -1}',
        '{"prompt_tokens": 1e999, "completion_tokens": 1}',
        '{"prompt_tokens": "many", "completion_tokens": 1}',
        "[]",
    ],
)
async def test_a_server_that_does_not_count_is_not_free(usage: str) -> None:
    used: list[Usage] = []
    reply = json.dumps({**chat_completion("x" * 400), "usage": "here"}).replace('"here"', usage)
    async with misbehaving_server(raw(200, reply)) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        await client.complete([{"role": "user", "content": "y" * 4000}], SCHEMA, 2.0, used.append)
        await client.close()
    assert used == [Usage("decision", 1001, 101)]


async def test_a_call_that_is_not_answered_in_time_is_counted_by_its_length() -> None:
    used: list[Usage] = []
    async with misbehaving_server(lambda _request: 2.0) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        with pytest.raises(ModelUnavailable, match="no reply within"):
            await client.complete([{"role": "user", "content": "y" * 4000}], SCHEMA, 0.3, used.append)
        await client.close()
    assert used == [Usage("decision", 1001, 0)]


async def test_a_count_beyond_all_measure_is_cut() -> None:
    used: list[Usage] = []
    reply = {**chat_completion("{}"), "usage": {"prompt_tokens": 10**30, "completion_tokens": 10**30}}
    async with misbehaving_server(lambda _request: web.json_response(reply)) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        await client.complete(ASK, SCHEMA, 2.0, used.append)
        await client.close()
    assert used == [Usage("decision", 10_000_000, 10_000_000)]


async def test_calls_that_begin_together_share_one_probe_and_the_first_pays_for_it() -> None:
    bills: list[list[Usage]] = [[] for _ in range(8)]
    async with misbehaving_server(enforcing({"json_object"}, {"json_schema"})) as server:
        server.slowly_s = 0.05
        client = ModelClient(settings(server.url, deadline_s=5.0))
        await asyncio.gather(*(client.complete(ASK, SCHEMA, 5.0, bill.append) for bill in bills))
        await client.close()
    kinds = [request["response_format"]["type"] for request in server.requests]
    assert kinds == ["json_schema", "json_schema", "json_object", *["json_object"] * 8]
    purposes = sorted([usage.purpose for usage in bill] for bill in bills)
    assert purposes == [*[["decision"]] * 7, ["probe", "decision"]]


async def test_a_probe_that_fails_is_one_failure_whoever_waits_for_it() -> None:
    async with misbehaving_server(raw(500, "oops")) as server:
        server.slowly_s = 0.05
        client = ModelClient(settings(server.url))
        outcomes = await asyncio.gather(
            *(client.complete(ASK, SCHEMA, 2.0, unmetered) for _ in range(5)), return_exceptions=True
        )
        await client.close()
    assert len(server.requests) == 1
    assert sum(isinstance(each, ModelBusy) for each in outcomes) == 4
    assert all(isinstance(each, ModelUnavailable) for each in outcomes)


async def test_a_probe_goes_on_for_the_next_call_when_the_one_that_began_it_has_no_time_left() -> None:
    async with misbehaving_server(enforcing({"json_schema"}, set())) as server:
        server.slowly_s = 0.4
        client = ModelClient(settings(server.url, deadline_s=5.0))
        with pytest.raises(ModelUnavailable, match="could not be probed"):
            await client.complete(ASK, SCHEMA, 0.1, unmetered)
        await client.complete(ASK, SCHEMA, 5.0, unmetered)
        await client.close()
    assert len(server.requests) == 2


async def test_a_client_that_is_closed_ends_its_probe() -> None:
    async with misbehaving_server(lambda _request: 5.0) as server:
        client = ModelClient(settings(server.url, deadline_s=5.0))
        with pytest.raises(ModelUnavailable):
            await client.complete(ASK, SCHEMA, 0.1, unmetered)
        await client.close()
        assert not any("probe" in task.get_name() for task in asyncio.all_tasks())


async def test_a_server_that_stops_taking_schemas_answers_the_same_call_in_the_next_looser_format() -> None:
    refusals = enforcing({"json_object"}, {"json_schema"})
    async with misbehaving_server(refusals) as server:
        client = ModelClient(settings(server.url, enforcement="json_schema"))
        await client.complete(ASK, SCHEMA, 2.0, unmetered)
        await client.complete(ASK, SCHEMA, 2.0, unmetered)
        assert client.enforcement == "json_object"
        await client.close()
    kinds = [request["response_format"]["type"] for request in server.requests]
    assert kinds == ["json_schema", "json_schema", "json_object", "json_object"]


def test_the_common_variables_are_read() -> None:
    found = load_model_settings({"OPENAI_BASE_URL": "http://x/v1", "OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"})
    assert (found.base_url, found.api_key, found.model, found.configured) == ("http://x/v1", "k", "m", True)
    assert not load_model_settings({}).configured


def test_a_malformed_setting_names_its_variable() -> None:
    with pytest.raises(SettingsError, match="SAIR_LLM_DEADLINE_S"):
        load_model_settings({"SAIR_LLM_DEADLINE_S": "600"})


def test_a_deadline_that_a_round_does_not_outlast_is_refused_with_both_names() -> None:
    environment = {"SAIR_LLM_BASE_URL": "http://x/v1", "SAIR_LLM_DEADLINE_S": "30"}
    with pytest.raises(SettingsError, match=r"SAIR_LLM_DEADLINE_S: 30.0 .* SAIR_CONTROLLER_INTERVAL_S, which is 30"):
        load_model_settings(environment, interval_s=30.0)
    assert load_model_settings(environment, interval_s=30.5).deadline_s == 30.0
    assert load_model_settings(environment).deadline_s == 30.0


def test_short_rounds_need_no_shorter_deadline_where_no_model_is_asked() -> None:
    assert not load_model_settings({}, interval_s=5.0).configured
