"""A client of any OpenAI-compatible endpoint: hard deadline, bounded reply, and one probe of what the server really enforces."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import openai

from controller.llm.reading import bounded
from controller.llm.settings import Enforcement, ModelSettings
from sair.errors import ModelUnavailable, WireError
from sair.logs import get_logger

__all__ = ["Completion", "Message", "Meter", "ModelBusy", "ModelClient", "Usage"]

_log = get_logger("llm")

_LEVELS: Final[tuple[Enforcement, ...]] = ("json_schema", "json_object", "text")
_MAX_REPLY_CHARACTERS = 20_000
_CHARACTERS_A_TOKEN = 4
_MOST_TOKENS = 10_000_000
"""That a server may say one call took; no real one comes near."""

Message = Mapping[str, str]
"""``{"role": …, "content": …}``."""

_PROBE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"stage": {"type": "string", "enum": ["alpha"]}},
    "required": ["stage"],
    "additionalProperties": False,
}
_PROBE: Final[tuple[Message, ...]] = (
    # The words ask for something else than the schema: only a server that enforces it answers {"stage": "alpha"}.
    {"role": "user", "content": "Reply with the single word hello and nothing else."},
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call took."""

    purpose: Literal["decision", "probe"]
    tokens_in: int
    tokens_out: int


Meter = Callable[[Usage], None]
"""Told of every call that the server may charge for, whether or not its reply was of any use."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply of the model."""

    text: str
    model: str
    duration_s: float
    finish_reason: str


class ModelBusy(ModelUnavailable):
    """Too many calls of our own are under way, or somebody else's probe failed; it says nothing new about the server."""


class ModelClient:
    """Asks the model; every failure is a ModelUnavailable, whatever the server did.

    Args:
        settings: Where the model is and how it is asked.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url or None,
            api_key=settings.api_key or "none",  # local servers want no key, the library wants one
            timeout=settings.deadline_s,
            max_retries=0,  # the deadline is ours to divide
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [bounded]}),
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self.enforcement: Enforcement | None = None if settings.enforcement == "probe" else settings.enforcement
        self._probing: asyncio.Task[Enforcement] | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await self._client.close()

    async def probe(self, meter: Meter) -> Enforcement:
        """Find the strictest response format the server enforces; a server that accepts and ignores a schema is stepped down.

        Args:
            meter: Told what each attempt took.

        Raises:
            ModelUnavailable: If the server cannot be reached at all.
        """
        for level in _LEVELS:
            try:
                reply = await self._ask("probe", _PROBE, _PROBE_SCHEMA, level, self._settings.deadline_s, 64, meter)
            except _Unsupported as error:
                _log.info("the model server refuses a response format", format=level, problem=str(error))
                continue
            if level == "text" or _enforced(level, reply.text):
                self.enforcement = level
                _log.info("the model server was probed", enforces=level, model=reply.model)
                return level
            _log.info("the model server accepts a response format and ignores it", format=level)
        raise ModelUnavailable("the model server refuses every request")

    async def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any], timeout_s: float, meter: Meter
    ) -> Completion:
        """Ask once; a server of which nothing is known is probed first.

        Args:
            messages: The conversation, the stable part first.
            schema: JSON schema of the reply; enforced by the server as far as it can, never trusted.
            timeout_s: Hard limit, seconds.
            meter: Told what the call took, and the probe if this call began it.

        Raises:
            ModelUnavailable: Whatever went wrong.
        """
        started = time.monotonic()
        level = self.enforcement or await self._probed(timeout_s, meter)
        left = timeout_s - (time.monotonic() - started)
        if left <= 0:
            raise ModelUnavailable(f"no time was left after probing the server ({timeout_s:.1f} s)")
        try:
            return await self._ask("decision", messages, schema, level, left, self._settings.max_tokens, meter)
        except _Unsupported as error:
            if self.enforcement == level:
                self.enforcement = None  # the server changed: probe again next time
            raise ModelUnavailable(f"the model server no longer takes {level}: {error}") from error

    async def _probed(self, timeout_s: float, meter: Meter) -> Enforcement:
        """What the one probe finds that is under way at a time. It goes on when those who wait for it give up: the next ones need it."""
        begun = self._probing is None
        if self._probing is None:
            self._probing = asyncio.create_task(self.probe(meter), name="probe of the model server")
            self._probing.add_done_callback(self._probe_ended)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._probing)
        except (TimeoutError, ModelUnavailable) as error:
            failure = ModelUnavailable if begun else ModelBusy
            raise failure(f"the server could not be probed: {error or f'not within {timeout_s:.1f} s'}") from error

    def _probe_ended(self, task: asyncio.Task[Enforcement]) -> None:
        self._probing = None
        if not task.cancelled():
            task.exception()  # also where nobody waits for it any more

    async def _ask(
        self,
        purpose: Literal["decision", "probe"],
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        level: Enforcement,
        timeout_s: float,
        max_tokens: int,
        meter: Meter,
    ) -> Completion:
        started = time.monotonic()
        request: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [dict(message) for message in messages],
            "temperature": self._settings.temperature,
            "max_tokens": max_tokens,
        }
        if level == "json_schema":
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "scaling_decision", "strict": True, "schema": dict(schema)},
            }
        elif level == "json_object":
            request["response_format"] = {"type": "json_object"}
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise ModelBusy(
                f"none of the {self._settings.concurrency} calls under way ended within {timeout_s:.1f} s"
            ) from error
        unanswered = Usage(purpose, _tokens(sum(len(message["content"]) for message in messages)), 0)
        try:
            async with asyncio.timeout(max(0.0, timeout_s - (time.monotonic() - started))):
                reply: Any = await self._client.chat.completions.create(**request)
        except TimeoutError as error:
            meter(unanswered)  # the server may have worked, and may charge for it
            raise ModelUnavailable(f"no reply within {timeout_s:.1f} s") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if level == "text":
                raise ModelUnavailable(f"refused: {_short(error)}") from error
            raise _Unsupported(_short(error)) from error
        except WireError as error:
            meter(unanswered)
            raise ModelUnavailable(str(error)) from error
        # A broken body surfaces as whatever the JSON or pydantic layer below raises; the server is never trusted to be better.
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ModelUnavailable(f"{type(error).__name__}: {_short(error)}") from error
        finally:
            self._slots.release()
        meter(_usage(reply, unanswered))
        return _completion(reply, time.monotonic() - started)


class _Unsupported(Exception):
    """The server refuses this response format."""


def _usage(reply: Any, unanswered: Usage) -> Usage:
    """What the server says it took. One that does not count is not free: then by the usual length of a token."""
    try:
        tokens = int(reply.usage.prompt_tokens), int(reply.usage.completion_tokens)
    except (AttributeError, TypeError, ValueError, OverflowError):
        tokens = 0, 0
    if tokens[0] <= 0 or tokens[1] < 0:
        tokens = unanswered.tokens_in, _tokens(len(_text(reply)))
    return Usage(unanswered.purpose, *(min(each, _MOST_TOKENS) for each in tokens))


def _text(reply: Any) -> str:
    try:
        return str(reply.choices[0].message.content or "")
    except (AttributeError, LookupError, TypeError):
        return ""


def _completion(reply: Any, duration_s: float) -> Completion:
    try:
        choice = reply.choices[0]
        text = choice.message.content
        finish_reason = str(choice.finish_reason)
        model = str(reply.model)
    except (AttributeError, LookupError, TypeError) as error:
        raise ModelUnavailable(f"the reply is no chat completion: {type(error).__name__}") from error
    if not isinstance(text, str) or not text.strip():
        raise ModelUnavailable("the reply is empty")
    if len(text) > _MAX_REPLY_CHARACTERS:
        raise ModelUnavailable(f"the reply has {len(text)} characters; at most {_MAX_REPLY_CHARACTERS} are read")
    return Completion(text, model[:100], duration_s, finish_reason)


def _tokens(characters: int) -> int:
    return characters // _CHARACTERS_A_TOKEN + 1


def _enforced(level: Enforcement, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return value == {"stage": "alpha"} if level == "json_schema" else isinstance(value, dict)


def _short(error: Exception) -> str:
    return str(error)[:200]
