from typing import Any

import pytest
from aiohttp import web

from controller.llm.client import ModelClient
from controller.llm.settings import ModelSettings, load_model_settings
from sair.errors import ModelUnavailable, SettingsError
from tests.fakes.model_server import Reply, chat_completion, enforcing, misbehaving_server, says

SCHEMA: dict[str, Any] = {"type": "object"}
ASK = [{"role": "user", "content": "?"}]


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
        assert await client.probe() == found
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
            await client.complete(ASK, SCHEMA, timeout_s=0.5)
        await client.close()


async def test_a_connection_cut_in_the_middle_of_the_reply_is_an_unavailable_model() -> None:
    def cut(_request: dict[str, Any]) -> web.StreamResponse:
        return web.Response(
            text='{"choices": [{"mess', headers={"Content-Length": "4000"}, content_type="application/json"
        )

    async with misbehaving_server(cut) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        with pytest.raises(ModelUnavailable):
            await client.complete(ASK, SCHEMA, timeout_s=1.0)
        await client.close()


async def test_a_server_that_is_not_there_is_an_unavailable_model() -> None:
    client = ModelClient(settings("http://127.0.0.1:1/v1"))
    with pytest.raises(ModelUnavailable):
        await client.complete(ASK, SCHEMA, timeout_s=2.0)
    await client.close()


async def test_what_the_model_used_is_counted() -> None:
    async with misbehaving_server(says("{}")) as server:
        client = ModelClient(settings(server.url, enforcement="json_schema"))
        completion = await client.complete(ASK, SCHEMA, timeout_s=2.0)
        await client.close()
    assert (completion.tokens_in, completion.tokens_out, completion.model) == (100, 10, "misbehaving")
    assert server.requests[0]["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -5000, "completion_tokens": -1, "total_tokens": 0}])
async def test_a_server_that_does_not_count_is_not_free(usage: dict[str, int] | None) -> None:
    reply = {**chat_completion("x" * 400), "usage": usage}
    async with misbehaving_server(lambda _request: web.json_response(reply)) as server:
        client = ModelClient(settings(server.url, enforcement="text"))
        completion = await client.complete([{"role": "user", "content": "y" * 4000}], SCHEMA, timeout_s=2.0)
        await client.close()
    assert (completion.tokens_in, completion.tokens_out) == (1001, 101)


async def test_a_server_that_stops_taking_schemas_is_probed_again() -> None:
    refusals = enforcing({"json_object"}, {"json_schema"})
    async with misbehaving_server(refusals) as server:
        client = ModelClient(settings(server.url, enforcement="json_schema"))
        with pytest.raises(ModelUnavailable, match="no longer takes"):
            await client.complete(ASK, SCHEMA, timeout_s=2.0)
        await client.complete(ASK, SCHEMA, timeout_s=2.0)
        assert client.enforcement == "json_object"
        await client.close()


def test_the_common_variables_are_read() -> None:
    found = load_model_settings({"OPENAI_BASE_URL": "http://x/v1", "OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"})
    assert (found.base_url, found.api_key, found.model, found.configured) == ("http://x/v1", "k", "m", True)
    assert not load_model_settings({}).configured


def test_a_malformed_setting_names_its_variable() -> None:
    with pytest.raises(SettingsError, match="SAIR_LLM_DEADLINE_S"):
        load_model_settings({"SAIR_LLM_DEADLINE_S": "600"})
