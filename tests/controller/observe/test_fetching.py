"""Fetching from servers that answer in every way there is."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from controller.observe.fetching import Fetcher
from sair.errors import MetricsUnavailable
from sair.serving import serve

BOMB = gzip.compress(bytes(50 * 2**20))
"""Fifty MiB in fifty KiB."""
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def speaking(*answers: bytes, pause_s: float = 0.0, keep: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that gives each connection these bytes, one after the other, and closes it unless told to keep it."""
    asked: list[bytes] = []
    speakers: list[asyncio.Task[None] | None] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        speakers.append(asyncio.current_task())
        try:
            await speak_to(reader, writer)
        finally:
            writer.transport.abort()

    async def speak_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                asked.append(request)
                for answer in answers:
                    writer.write(answer)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
                if not keep:
                    # Not aborted at once: what was written must arrive.
                    writer.close()
                    await writer.wait_closed()
                    break

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        for speaker in speakers:
            if speaker is not None:
                speaker.cancel()
        await asyncio.sleep(0.05)


async def get(port: int, timeout_s: float = 1.0) -> bytes:
    async with Fetcher(timeout_s=timeout_s) as fetcher:
        return await fetcher.get("127.0.0.1", port, "/metrics")


@pytest.mark.parametrize(
    "answers",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhel", b"lo"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhel", b"lo\r\n", b"0\r\n", b"\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\nhe", b"llo"),
        (b"HT", b"TP/1.1 200 OK\r", b"\nConnection: close\r\n\r", b"\nhello"),
    ],
    ids=["length", "two parts", "chunks", "chunks in parts", "until it closes", "head in parts"],
)
async def test_a_text_is_read_however_it_is_sent(answers: tuple[bytes, ...]) -> None:
    async with speaking(*answers, pause_s=0.02) as (port, asked):
        assert await get(port) == b"hello"
    assert asked[0].startswith(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",), "answered 404"),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",), "answered 302"),
        ((b"SSH-2.0-OpenSSH\r\n\r\n",), "something else than HTTP"),
        ((b"\x15\x03\x01\x00\x02\x02\x50\r\n\r\n",), "something else than HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",), "more than 4194304 bytes"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",), "more than 4194304 bytes"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000,), "endless head"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",), "broke off"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",), "without a size"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",), "broke off"),
        ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx",), "compressed"),
        ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", BOMB), "compressed"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", BOMB), "transfer encoding gzip, chunked"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\nx",), "more than 4194304 bytes"),
        ((CHUNKED, *([b"80000\r\n" + b"x" * 0x80000 + b"\r\n"] * 10)), "more than 4194304 bytes"),
        ((CHUNKED, *([b"1\r\nx\r\n" * 10_000] * 10)), "more than 50000 chunks"),
        ((CHUNKED, b"1;" + b"y" * 5_000), "without a size"),
        ((b"HTTP/1.0 200 OK\r\n\r\n", *([b"x" * 1_000_000] * 6)), "more than 4194304 bytes"),
        ((), "closed without an answer"),
    ],
)
async def test_whatever_else_comes_is_a_problem_with_its_reason(answers: tuple[bytes, ...], problem: str) -> None:
    async with speaking(*answers) as (port, _):
        with pytest.raises(MetricsUnavailable, match=problem):
            await get(port)


async def test_an_answer_in_chunks_of_a_line_s_end_each_is_read() -> None:
    async with speaking(CHUNKED, *([b"2\r\n\r\n\r\n" * 200] * 200), b"0\r\nX: y\r\n\r\n") as (port, _):
        assert await get(port, timeout_s=15.0) == b"\r\n" * 40_000


async def test_no_more_is_read_than_may_be_kept() -> None:
    """Bounded while it comes, not once it is there: the server is hung up on long before it has said all."""
    sent = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
            while sent < 200 * 2**20:
                writer.write(bytes(2**20))
                await writer.drain()
                sent += 2**20
        writer.transport.abort()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    with pytest.raises(MetricsUnavailable, match="more than 4194304 bytes"):
        await get(server.sockets[0].getsockname()[1], timeout_s=15.0)
    await asyncio.sleep(0.1)
    server.close()
    # What lies in the sockets' buffers comes on top.
    assert sent <= 32 * 2**20


async def test_one_that_drips_is_left_when_its_time_is_over_however_steadily_it_drips() -> None:
    drops = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *([b"x"] * 1000)]
    async with speaking(*drops, pause_s=0.02) as (port, _):
        with pytest.raises(MetricsUnavailable, match="TimeoutError"):
            await get(port, timeout_s=0.5)


@pytest.mark.parametrize("answers", [(), (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",)], ids=["silent", "stuck"])
async def test_one_that_does_not_finish_is_left_after_the_time_it_has(answers: tuple[bytes, ...]) -> None:
    async with speaking(*answers, pause_s=5.0, keep=True) as (port, _):
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(MetricsUnavailable, match="TimeoutError"):
            await get(port, timeout_s=0.2)
        assert asyncio.get_running_loop().time() - began_s < 2.0


async def test_nobody_there_is_a_problem_too() -> None:
    with pytest.raises(MetricsUnavailable, match=r"127\.0\.0\.1:1/metrics"):
        await get(1)


async def test_a_connection_serves_many_requests_and_one_that_was_closed_meanwhile_is_replaced() -> None:
    connections = set()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        return web.Response(text=f"{len(connections)}")

    application = web.Application()
    application.router.add_get("/metrics", answer)
    async with Fetcher() as fetcher:
        async with serve(application, host="127.0.0.1", port=0) as served:
            for _ in range(5):
                assert await fetcher.get("127.0.0.1", served.port, "/metrics") == b"1"
            both = [fetcher.get("127.0.0.1", served.port, "/metrics") for _ in range(2)]
            assert len(await asyncio.gather(*both)) == 2
            port = served.port
        with pytest.raises(MetricsUnavailable):
            await fetcher.get("127.0.0.1", port, "/metrics")
    await asyncio.sleep(0.05)


async def test_a_server_that_closes_after_each_answer_is_asked_again_without_a_failure() -> None:
    # It says that it keeps the connection, and does not.
    async with speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as (port, asked), Fetcher() as fetcher:
        for _ in range(4):
            assert await fetcher.get("127.0.0.1", port, "/metrics") == b"hello"
        assert len(asked) == 4


@pytest.mark.parametrize("host", ["127.0.0.1\r\nX: y", "a b", "ä"])
async def test_what_cannot_stand_in_a_request_is_not_sent(host: str) -> None:
    async with Fetcher() as fetcher:
        with pytest.raises(MetricsUnavailable, match="cannot stand in a request"):
            await fetcher.get(host, 9090, "/metrics")
