import asyncio
import datetime as dt
import ssl

import aiohttp
import pytest
from aiohttp import web

from sair.errors import InvalidInput
from sair.serving import new_application, serve
from sair.tls import KeyPair, client_context, expires_within, issue_ca, issue_server, load_pair, server_context

NOW = dt.datetime.now(dt.UTC)


async def answer(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


def application() -> web.Application:
    app = new_application()
    app.add_routes([web.get("/", answer), web.post("/", answer)])
    return app


async def get(port: int, ca: KeyPair) -> str:
    connector = aiohttp.TCPConnector(ssl=client_context(ca.certificate))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://127.0.0.1:{port}/") as reply,
    ):
        return await reply.text()


async def test_a_client_that_trusts_our_ca_reaches_our_server() -> None:
    ca = issue_ca("SAIR test CA", now=NOW)
    pair = issue_server(ca, ["webhook.sair-system.svc", "127.0.0.1"], now=NOW)
    async with serve(
        application(), host="127.0.0.1", port=0, tls=await asyncio.to_thread(server_context, pair)
    ) as server:
        assert await get(server.port, ca) == "hello"


async def test_a_client_that_trusts_another_ca_does_not() -> None:
    ca, stranger = issue_ca("A", now=NOW), issue_ca("B", now=NOW)
    pair = issue_server(ca, ["127.0.0.1"], now=NOW)
    async with serve(
        application(), host="127.0.0.1", port=0, tls=await asyncio.to_thread(server_context, pair)
    ) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(server.port, stranger)


async def test_a_certificate_for_another_name_is_refused() -> None:
    ca = issue_ca("A", now=NOW)
    pair = issue_server(ca, ["other.svc"], now=NOW)
    async with serve(
        application(), host="127.0.0.1", port=0, tls=await asyncio.to_thread(server_context, pair)
    ) as server:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(server.port, ca)


async def test_certificates_rotate_while_serving() -> None:
    old, new = issue_ca("old", now=NOW), issue_ca("new", now=NOW)
    context = await asyncio.to_thread(server_context, issue_server(old, ["127.0.0.1"], now=NOW))
    async with serve(application(), host="127.0.0.1", port=0, tls=context) as server:
        assert await get(server.port, old) == "hello"
        await asyncio.to_thread(load_pair, context, issue_server(new, ["127.0.0.1"], now=NOW))
        assert await get(server.port, new) == "hello"


def test_expiry_is_seen_ahead() -> None:
    pair = issue_server(issue_ca("A", now=NOW), ["a"], now=NOW, days=30)
    assert not expires_within(pair, dt.timedelta(days=29), now=NOW)
    assert expires_within(pair, dt.timedelta(days=31), now=NOW)


def test_a_certificate_needs_a_name() -> None:
    with pytest.raises(InvalidInput):
        issue_server(issue_ca("A", now=NOW), [], now=NOW)


def test_a_key_never_shows_in_a_representation() -> None:
    assert "PRIVATE" not in repr(issue_ca("A", now=NOW))


def test_old_protocols_are_off() -> None:
    pair = issue_server(issue_ca("A", now=NOW), ["a"], now=NOW)
    assert server_context(pair).minimum_version >= ssl.TLSVersion.TLSv1_2
