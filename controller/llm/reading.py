"""How much of an answer is read off the wire: no more than a decision can take, whatever the server sends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import httpx2

from sair.errors import WireError

__all__ = ["MOST_BYTES", "bounded"]

MOST_BYTES: Final = 262_144
"""Of one answer. The longest reply that may be asked for, 4096 tokens, is some 20 kB, with every character escaped some 100 kB."""


async def bounded(response: httpx2.Response) -> None:
    """Bound a response of which only the head was read: a hook of the client, for every status and every redirect.

    Compressed bodies are not taken, nor asked for: a few bytes of them can become any number.

    Raises:
        WireError: If the body is compressed. Reading a body that is too long raises one as soon as it is.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        await response.aclose()
        raise WireError("reply", "a compressed body", "one that is not")
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101  # an asynchronous client's always is
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._inner:
            seen += len(chunk)
            if seen > MOST_BYTES:
                raise WireError("reply", f"more than {MOST_BYTES} bytes", "a reply as short as was asked for")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
