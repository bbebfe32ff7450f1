"""Against a real server on a socket that sends whatever it likes: what is read of it stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from controller.llm.client import ModelClient, Usage
from controller.llm.reading import MOST_BYTES
from controller.llm.settings import ModelSettings
from sair.errors import ModelUnavailable
from tests.fakes.model_server import misbehaving_server, says

CHUNK = b"10000\r\n" + b" " * 65_536 + b"\r\n"


@dataclass
class Endless:
    """A server that sends a head and then one piece for ever; tells how much of it left."""

    head: bytes
    piece: bytes
    url: str = ""
    sent_bytes: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.head)
            while not writer.is_closing():
                writer.write(self.piece)
                await writer.drain()
                self.sent_bytes += len(self.piece)
        writer.close()


@contextlib.asynccontextmanager
async def endless(head: str, piece: bytes = CHUNK) -> AsyncIterator[Endless]:
    """Serve on loopback while the context is open."""
    answering = Endless(head.replace("\n", "\r\n").encode() + b"\r\n\r\n", piece)
    server = await asyncio.start_server(answering.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answering.url = f"http://127.0.0.1:{port}/v1"
    answering.head = answering.head.replace(b"SELF", answering.url.encode())
    async with server:
        yield answering


def client_of(url: str) -> ModelClient:
    return ModelClient(ModelSettings(base_url=url, model="any", enforcement="text"))


ASK = [{"role": "user", "content": "?" * 400}]
JSON = "Content-Type: application/json\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    "head",
    [
        f"HTTP/1.1 200 OK\n{JSON}",
        f"HTTP/1.1 500 Internal Server Error\n{JSON}",
        f"HTTP/1.1 400 Bad Request\n{JSON}",
        f"HTTP/1.1 307 Temporary Redirect\nLocation: SELF/again\n{JSON}",
        "HTTP/1.1 200 OK\nContent-Type: application/json\nContent-Length: 999999999999",
        "HTTP/1.1 200 OK\nContent-Type: text/event-stream\nTransfer-Encoding: chunked",
    ],
    ids=["a reply", "an error", "a refusal", "a redirect", "a length announced", "a stream"],
)
async def test_a_body_without_end_is_left_as_soon_as_it_is_too_long(head: str) -> None:
    used: list[Usage] = []
    async with endless(head, CHUNK if "chunked" in head else b" " * 65_536) as server:
        client = client_of(server.url)
        began_s = time.monotonic()
        with pytest.raises(ModelUnavailable, match=f"more than {MOST_BYTES} bytes"):
            await client.complete(ASK, {}, 30.0, used.append)
        assert time.monotonic() - began_s < 10.0
        await client.close()
        # Besides what is read only the buffers of two sockets are filled.
        assert server.sent_bytes < MOST_BYTES + 16_000_000
    assert used == [Usage("decision", 101, 0)]


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_neither_asked_for_nor_taken(name: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b" " * 50_000_000)
    head = f"HTTP/1.1 200 OK\nContent-Type: application/json\nContent-Encoding: {name}\nContent-Length: {len(bomb)}"
    async with endless(head, bomb) as server:
        client = client_of(server.url)
        with pytest.raises(ModelUnavailable, match="compressed"):
            await client.complete(ASK, {}, 30.0, lambda _usage: None)
        await client.close()
    assert b"accept-encoding: identity" in server.requests[0].lower()


async def test_heads_without_end_are_left_too() -> None:
    async with endless("HTTP/1.1 200 OK\nX: y", b"Z: " + b"z" * 65_536 + b"\r\n") as server:
        server.head = server.head.removesuffix(b"\r\n")
        client = client_of(server.url)
        with pytest.raises(ModelUnavailable):
            await client.complete(ASK, {}, 30.0, lambda _usage: None)
        await client.close()
        assert server.sent_bytes < 16_000_000


async def test_the_longest_reply_that_is_taken_fits() -> None:
    text = "\N{SMILING FACE WITH OPEN MOUTH}" * 20_000
    async with misbehaving_server(says(text)) as server:
        client = client_of(server.url)
        assert (await client.complete(ASK, {}, 10.0, lambda _usage: None)).text == text
        await client.close()


async def test_proxies_of_the_environment_are_still_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with misbehaving_server(says("{}")) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "")
        client = client_of("http://model.example/v1")
        assert (await client.complete(ASK, {}, 10.0, lambda _usage: None)).text == "{}"
        await client.close()
    assert len(server.requests) == 1
