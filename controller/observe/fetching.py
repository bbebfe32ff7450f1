"""GET of small texts over kept connections, and nothing else of HTTP.

The pods of a thousand pipelines are asked more than a thousand times a second, and a general client spends three times as much on a
request as all that is done with its answer. Redirects are not followed, answers not decompressed; how much is read and how long it may
take is bounded.
"""

from __future__ import annotations

import asyncio
import functools
import resource
from collections import OrderedDict
from types import TracebackType
from typing import Final, Self

from sair.errors import MetricsUnavailable

__all__ = ["Fetcher"]

_MAX_BYTES: Final = 4 * 2**20
_MAX_HEAD: Final = 32 * 1024
_MAX_CHUNK_HEAD: Final = 1024
_MAX_CHUNKS: Final = 50_000
"""Servers that send a chunk a line stay below; four million of one byte would keep the controller busy for seconds."""
_TIMEOUT_S: Final = 1.5
_IDLE_MOST: Final = 4096
"""Connections kept at most; less where the process may open few files."""


class Fetcher:
    """Keeps one idle connection per address; an async context manager.

    Args:
        timeout_s: Bound of one request, connecting included, seconds.
    """

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._idle: OrderedDict[tuple[str, int], _Exchange] = OrderedDict()
        self._idle_most = min(_IDLE_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for exchange in self._idle.values():
            exchange.close()
        self._idle.clear()
        # A closed transport closes its socket when the loop turns.
        await asyncio.sleep(0)

    async def get(self, host: str, port: int, path: str) -> bytes:
        """Read a text.

        Args:
            host: An IP address or name.
            port: TCP port.
            path: Absolute, already fit to stand in a request.

        Raises:
            MetricsUnavailable: If there is no answer, another one than 200, or one that is too large.
        """
        url = f"http://{host}:{port}{path}"
        request = _request(host, port, path)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        kept = self._idle.pop((host, port), None)
        try:
            body = None
            if kept is not None and not kept.is_over:
                body = await self._exchanged(kept, request, deadline, (host, port))
            if body is None:
                # None was kept, or it was closed just when it was used: that says nothing about the server.
                body = await self._exchanged(
                    await self._connected(host, port, deadline), request, deadline, (host, port)
                )
        except (OSError, TimeoutError) as error:
            raise MetricsUnavailable(f"{url}: {type(error).__name__}") from error
        except _BadAnswer as error:
            raise MetricsUnavailable(f"{url} {error}") from error
        if body is None:
            raise MetricsUnavailable(f"{url}: the connection was closed without an answer")
        return body

    async def _connected(self, host: str, port: int, deadline: float) -> _Exchange:
        async with asyncio.timeout_at(deadline):
            _, exchange = await asyncio.get_running_loop().create_connection(_Exchange, host, port)
        return exchange

    async def _exchanged(
        self, exchange: _Exchange, request: bytes, deadline: float, address: tuple[str, int]
    ) -> bytes | None:
        kept = False
        try:
            body = await exchange.ask(request, deadline)
            kept = exchange.may_be_kept
        finally:
            if not kept:
                exchange.close()
        if kept:
            older = self._idle.pop(address, None)
            if older is not None:
                older.close()
            self._idle[address] = exchange
            if len(self._idle) > self._idle_most:
                self._idle.popitem(last=False)[1].close()
        return body


class _BadAnswer(Exception):
    """What came is not what can be used."""


@functools.lru_cache(maxsize=8192)
def _request(host: str, port: int, path: str) -> bytes:
    if not (host + path).isascii() or not (host + path).isprintable() or " " in host + path:
        raise MetricsUnavailable(f"{host!r} {path!r} cannot stand in a request")
    name = f"[{host}]" if ":" in host else host
    return (
        f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nUser-Agent: sair\r\n"
        "Accept: text/plain;version=0.0.4\r\nAccept-Encoding: identity\r\n\r\n"
    ).encode()


class _Exchange(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes | None] | None = None
        self._begin_body = 0
        self._length: int | None = None
        self._chunked = False
        self._at = 0
        """Where the next chunk begins."""
        self._chunks = 0
        self._body = bytearray()
        """Of the chunks before it."""
        self._close = False
        self.is_over = False
        """The other side has closed it, or we have."""

    @property
    def may_be_kept(self) -> bool:
        """Another request may be sent."""
        return not self.is_over and not self._close

    async def ask(self, request: bytes, deadline: float) -> bytes | None:
        """The body of the answer; None if the connection was closed before anything came.

        Raises:
            TimeoutError: If it is not there by the deadline, loop time.
            _BadAnswer: If it is none.
        """
        loop = asyncio.get_running_loop()
        self._buffer.clear()
        self._body.clear()
        self._chunks = 0
        self._begin_body, self._length, self._chunked, self._close = 0, None, False, False
        self._answer = loop.create_future()
        assert self._transport is not None  # noqa: S101  # connection_made came before anybody could ask
        self._transport.write(request)
        # Cheaper than asyncio.timeout, of which there would be a thousand a second.
        alarm = loop.call_at(deadline, self._fail, TimeoutError())
        try:
            return await self._answer
        finally:
            alarm.cancel()
            self._answer = None

    def close(self) -> None:
        """Close the connection, at once."""
        self.is_over = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: it stands."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # TCP
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio: more of the answer."""
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        self._buffer += data
        try:
            if len(self._buffer) > _MAX_BYTES + _MAX_HEAD:
                raise _BadAnswer(f"answered more than {_MAX_BYTES} bytes")
            body = self._whole()
        except _BadAnswer as error:
            self._fail(error)
        else:
            if body is not None:
                self._answer.set_result(body)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: it is closed."""
        self.is_over = True
        if self._answer is None or self._answer.done():
            return
        if not self._buffer:
            self._answer.set_result(None)
        elif self._begin_body and self._length is None and not self._chunked and error is None:
            self._answer.set_result(bytes(self._buffer[self._begin_body :]))  # that is how it ends
        else:
            self._fail(_BadAnswer("broke off in the middle of its answer"))

    def _fail(self, error: Exception) -> None:
        self._close = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _whole(self) -> bytes | None:
        if not self._begin_body and not self._read_head():
            return None
        if self._chunked:
            return self._joined()
        if self._length is None or len(self._buffer) < self._begin_body + self._length:
            return None
        return bytes(self._buffer[self._begin_body : self._begin_body + self._length])

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise _BadAnswer("answered with an endless head")
            return False
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        version, _, status = lines[0].partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not status[:3].isdigit():
            raise _BadAnswer("answered something else than HTTP")
        if status[:3] != "200":
            raise _BadAnswer(f"answered {status[:3]}")
        fields = {
            name.strip().lower(): value.strip().lower() for name, _, value in (row.partition(":") for row in lines[1:])
        }
        if fields.get("content-encoding", "identity") != "identity":
            raise _BadAnswer("answered compressed, though asked not to")
        transfer = fields.get("transfer-encoding", "identity")
        if transfer not in ("identity", "chunked"):
            raise _BadAnswer(f"answered in the transfer encoding {transfer[:40]}")
        self._chunked = transfer == "chunked"
        length = fields.get("content-length")
        if length is not None and not self._chunked:
            if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > _MAX_BYTES:
                raise _BadAnswer(f"answered more than {_MAX_BYTES} bytes")
            self._length = int(length)
        keeps = fields.get("connection", "keep-alive" if version == "HTTP/1.1" else "close")
        self._close = keeps == "close" or (self._length is None and not self._chunked)
        self._begin_body = self._at = end + 4
        return True

    def _joined(self) -> bytes | None:
        """The chunks' contents once the last is there. Each is looked at once, however small they are and however they come."""
        while True:
            end = self._buffer.find(b"\r\n", self._at)
            if end < 0 and len(self._buffer) - self._at <= _MAX_CHUNK_HEAD:
                return None
            digits = bytes(self._buffer[self._at : end]).partition(b";")[0].strip()
            if end < 0 or not digits or len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
                raise _BadAnswer("answered in chunks without a size")
            size = int(digits, 16)
            if not size:
                # What may follow the last chunk ends as it does.
                return bytes(self._body) if self._buffer.find(b"\r\n\r\n", end) >= 0 else None
            if size > _MAX_BYTES:
                raise _BadAnswer(f"answered more than {_MAX_BYTES} bytes")
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._body += self._buffer[end + 2 : end + 2 + size]
            self._at = end + 2 + size + 2
            self._chunks += 1
            if self._chunks > _MAX_CHUNKS:
                raise _BadAnswer(f"answered in more than {_MAX_CHUNKS} chunks")
