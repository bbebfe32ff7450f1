"""A thin client of the API server that speaks raw JSON: requests with deadlines, one error tree, watches as streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiohttp
import msgspec

from sair.errors import ApiUnavailable, WireError
from sair.kube.connection import Connection
from sair.kube.errors import Throttled, from_status
from sair.kube.lines import Lines, LineTooLong
from sair.kube.page import Page, decode_page

__all__ = ["Api", "PatchKind", "Raw"]

Raw: TypeAlias = dict[str, Any]
"""A JSON object as the API server sends it."""

PAGE_SIZE = 500
"""Objects per page of a list: client-go's default; about 5 MB of pods."""

_CONNECT_TIMEOUT_S = 5.0
_MAX_BODY_SHOWN = 300


class PatchKind(StrEnum):
    """How a patch's body is to be read; the value is its media type."""

    MERGE = "application/merge-patch+json"
    JSON = "application/json-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


class Api:
    """A connection to one API server; an async context manager.

    Every method raises NotFound, Conflict (or AlreadyExists), Gone, Refused, or ApiUnavailable (or Throttled), and nothing else
    but cancellation. A 429 is waited out as the server asks while the request's deadline allows it, because the server has not
    begun such a request; nothing else is repeated here.

    Args:
        connection: Where the server is and how to authenticate.
        timeout_s: Deadline of a request, retries included, in seconds.
        sleep: Waits a number of seconds.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout_s: float = 15.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._sleep = sleep

    @classmethod
    async def from_environment(cls, kubeconfig: Path | None = None, *, timeout_s: float = 15.0) -> Self:
        """Find the API server: a given kubeconfig, else the pod's service account, else $KUBECONFIG or ~/.kube/config.

        Args:
            kubeconfig: File to use and no other.
            timeout_s: Deadline of a request, in seconds.

        Raises:
            SettingsError: If there is no usable configuration.
        """
        return cls(await Connection.from_environment(kubeconfig), timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Raw:
        """Read one object."""
        return await self._request("GET", path, params)

    async def pages(
        self, path: str, params: Mapping[str, str] | None = None, *, page_size: int = PAGE_SIZE
    ) -> AsyncGenerator[Page]:
        """Read a collection page by page, all of one consistent snapshot.

        Args:
            path: The collection.
            params: Such as ``labelSelector`` and ``fieldSelector``.
            page_size: Objects per page; 0 asks for all in one.

        Raises:
            Gone: If the snapshot expired between two pages.
        """
        query = dict(params or {})
        if page_size:
            query["limit"] = str(page_size)
        while True:
            page = decode_page(await self._send("GET", path, query), f"GET {path}")
            yield page
            if not page.metadata.continue_:
                return
            query["continue"] = page.metadata.continue_

    async def list(
        self, path: str, params: Mapping[str, str] | None = None, *, page_size: int = PAGE_SIZE
    ) -> Sequence[Raw]:
        """Read a whole collection; its items lack ``apiVersion`` and ``kind``, as the server sends them."""
        items: list[Raw] = []
        async with contextlib.aclosing(self.pages(path, params, page_size=page_size)) as pages:
            async for page in pages:
                items.extend(msgspec.json.decode(item) for item in page.items or ())
        return items

    async def create(self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None) -> Raw:
        """Create an object in a collection, or post to a subresource."""
        return await self._request("POST", path, params, body=body)

    async def replace(self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None) -> Raw:
        """Replace an object; a ``metadata.resourceVersion`` in the body is a precondition."""
        return await self._request("PUT", path, params, body=body)

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | Sequence[Raw],
        kind: PatchKind,
        *,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Raw:
        """Patch an object or, by its path, a subresource.

        Args:
            path: Object or subresource.
            body: The patch; a list of operations for a JSON patch.
            kind: How to read it.
            field_manager: Owner of the changed fields; the server requires it for APPLY.
            force: For APPLY: take over fields that others own.
            dry_run: Validate, answer, store nothing.
        """
        params = {}
        if field_manager is not None:
            params["fieldManager"] = field_manager
        if force:
            params["force"] = "true"
        if dry_run:
            params["dryRun"] = "All"
        return await self._request("PATCH", path, params, body=body, content_type=kind.value)

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_s: int | None = None,
        propagation: str | None = None,
    ) -> Raw:
        """Delete an object.

        Args:
            path: The object.
            uid: Precondition: only this very object; another one answers Conflict.
            resource_version: Precondition: only this version.
            grace_period_s: Seconds given to terminate; None for the object's own.
            propagation: ``Background``, ``Foreground`` or ``Orphan``; None for the kind's default.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        wanted = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {name: value for name, value in wanted.items() if value is not None}
        if preconditions:
            options["preconditions"] = preconditions
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if propagation is not None:
            options["propagationPolicy"] = propagation
        return await self._request("DELETE", path, None, body=options)

    async def watch(
        self, path: str, params: Mapping[str, str] | None = None, *, silence_s: float = 150.0
    ) -> AsyncGenerator[Raw]:
        """Stream a collection's changes: raw events ``{"type": …, "object": …}``, BOOKMARK included; ERROR is raised instead.

        The stream ends without an error when the server ends it (``timeoutSeconds``). Leave it through ``contextlib.aclosing``.

        Args:
            path: The collection.
            params: ``resourceVersion``, ``timeoutSeconds``, ``allowWatchBookmarks``, selectors.
            silence_s: Seconds without a byte after which the connection counts as hung.

        Raises:
            Gone: If the resource version is no longer kept.
            WireError: If a line is no watch event.
            ApiUnavailable: If the connection breaks, hangs, or ends in the middle of an event.
        """
        what = f"WATCH {path}"
        query = {**(params or {}), "watch": "true"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=silence_s)
        lines = Lines()
        async with _our_errors(what), await self._open("GET", path, query, timeout=timeout) as response:
            if response.status != 200:
                raise await _refusal(response, what)
            async for chunk in response.content.iter_any():
                for line in lines.feed(chunk):
                    yield _event(line, what)
        if lines.rest:
            raise ApiUnavailable(f"{what}: the connection ended in the middle of an event")

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        *,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Raw:
        return _object(await self._send(method, path, params, body, content_type), f"{method} {path}")

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                while True:
                    try:
                        return await self._once(method, path, params, body, content_type)
                    except Throttled as error:
                        # Jitter, so that the crowd that was sent away does not come back at once.
                        wait_s = error.retry_after_s * (1 + 0.1 * random.random())
                        end_s = deadline.when() or 0.0
                        if error.code != 429 or asyncio.get_running_loop().time() + wait_s >= end_s:
                            raise
                    await self._sleep(wait_s)
        except TimeoutError as error:
            raise ApiUnavailable(f"{method} {path}: no answer within {self._timeout_s:g} s") from error

    async def _once(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Any, content_type: str
    ) -> bytes:
        what = f"{method} {path}"
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        async with (
            _our_errors(what),
            await self._open(method, path, params, body, content_type, timeout=timeout) as response,
        ):
            if not 200 <= response.status <= 299:
                raise await _refusal(response, what)
            return await response.read()

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any = None,
        content_type: str = "application/json",
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's own, not a cancel scope
    ) -> aiohttp.ClientResponse:
        response = await self._connection.open(method, path, params, body, content_type, timeout=timeout)
        if response.status == 401 and await self._connection.renew_credentials():
            response.release()
            response = await self._connection.open(method, path, params, body, content_type, timeout=timeout)
        return response


@contextlib.asynccontextmanager
async def _our_errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ApiUnavailable(f"{what}: the server fell silent") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ApiUnavailable(f"{what}: {type(error).__name__}: {error}") from error
    except LineTooLong as error:
        raise WireError(what, str(error), "one event per line") from error


async def _refusal(response: aiohttp.ClientResponse, what: str) -> Exception:
    body = await response.read()
    try:
        status = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = None
    if not isinstance(status, dict):
        status = {"message": body[:_MAX_BODY_SHOWN].decode("utf-8", "replace")}
    header = response.headers.get("Retry-After", "")
    wait_s = float(header) if header.isascii() and header.isdigit() else None
    return from_status(response.status, status, what=what, retry_after_s=wait_s)


def _object(body: bytes, what: str) -> Raw:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # A proxy's page or a cut answer says nothing about the request: it may be tried again.
        raise ApiUnavailable(f"{what}: the answer is no JSON: {body[:_MAX_BODY_SHOWN]!r}") from error
    if not isinstance(raw, dict):
        raise ApiUnavailable(f"{what}: the answer is no JSON object: {body[:_MAX_BODY_SHOWN]!r}")
    return raw


def _event(line: bytes, what: str) -> Raw:
    try:
        raw = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(what, line[:_MAX_BODY_SHOWN], "a JSON object per line") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("type"), str) or not isinstance(raw.get("object"), dict):
        raise WireError(what, line[:_MAX_BODY_SHOWN], "a watch event with type and object")
    if raw["type"] == "ERROR":
        status = raw["object"]
        code = status.get("code")
        raise from_status(code if isinstance(code, int) else 500, status, what=what)
    return raw
