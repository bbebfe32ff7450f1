"""A model server that misbehaves on request: the ways in which OpenAI-compatible endpoints are known to fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from sair.serving import new_application, serve

__all__ = ["MisbehavingServer", "Reply", "choosing", "enforcing", "misbehaving_server", "says"]

Reply = Callable[[dict[str, Any]], "str | web.StreamResponse | float"]
"""From the request to the text of the reply, a raw response, or seconds to be silent."""


@dataclass
class MisbehavingServer:
    """What it was asked, and how it answers."""

    reply: Reply
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    slowly_s: float = 0.0
    """How long every reply takes."""
    under_way: int = 0
    most_under_way: int = 0


def says(text: str) -> Reply:
    """Always the same text, whatever the schema wants."""
    return lambda _request: text


def choosing(choice: int = 1, rationale: str = "because", bottleneck: str = "none") -> Reply:
    """A model that chooses from the menu and repeats the code of the round it was asked about."""

    def reply(request: dict[str, Any]) -> str:
        code = re.findall(r"code of this round is (\w+)", json.dumps(request["messages"]))[-1]
        return json.dumps({"code": code, "choice": choice, "bottleneck": bottleneck, "rationale": rationale})

    return reply


@contextlib.asynccontextmanager
async def misbehaving_server(reply: Reply) -> AsyncIterator[MisbehavingServer]:
    """Serve on loopback while the context is open."""
    server = MisbehavingServer(reply)

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        server.requests.append(body)
        server.under_way += 1
        server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            await asyncio.sleep(server.slowly_s)
        finally:
            server.under_way -= 1
        answer = server.reply(body)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = "late"
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.json_response(chat_completion(answer))

    app = new_application()
    app.add_routes([web.post("/v1/chat/completions", complete)])
    async with serve(app, host="127.0.0.1", port=0) as served:
        server.url = f"http://127.0.0.1:{served.port}/v1"
        yield server


def chat_completion(text: str) -> dict[str, Any]:
    """A well-formed reply."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "misbehaving",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def enforcing(levels: set[str], refused: set[str]) -> Reply:
    """A server that enforces some response formats, refuses others with 400, and ignores the rest."""

    def reply(request: dict[str, Any]) -> str | web.StreamResponse:
        kind = request.get("response_format", {}).get("type", "text")
        if kind in refused:
            return web.json_response({"error": {"message": f"{kind} is not supported"}}, status=400)
        if kind in levels:
            return json.dumps({"stage": "alpha"} if kind == "json_schema" else {"word": "hello"})
        return "hello"

    return reply
