"""A client of any OpenAI-compatible endpoint: hard deadline, bounded reply, and a probe of what the server really enforces."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai

from controller.llm.settings import Enforcement, ModelSettings
from sair.errors import ModelUnavailable
from sair.logs import get_logger

__all__ = ["Completion", "Message", "ModelBusy", "ModelClient"]

_log = get_logger("llm")

_LEVELS: Final[tuple[Enforcement, ...]] = ("json_schema", "json_object", "text")
_MAX_REPLY_CHARACTERS = 20_000
_CHARACTERS_A_TOKEN = 4

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
class Completion:
    """One reply of the model."""

    text: str
    model: str
    tokens_in: int
    tokens_out: int
    duration_s: float
    finish_reason: str


class ModelBusy(ModelUnavailable):
    """Too many calls of our own are under way; it says nothing about the server."""


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
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self.enforcement: Enforcement | None = None if settings.enforcement == "probe" else settings.enforcement

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def probe(self) -> Enforcement:
        """Find the strictest response format the server enforces; a server that accepts and ignores a schema is stepped down.

        Raises:
            ModelUnavailable: If the server cannot be reached at all.
        """
        for level in _LEVELS:
            try:
                reply = await self._ask(_PROBE, _PROBE_SCHEMA, level, self._settings.deadline_s, max_tokens=64)
            except _Unsupported as error:
                _log.info("the model server refuses a response format", format=level, problem=str(error))
                continue
            if level == "text" or _enforced(level, reply.text):
                self.enforcement = level
                _log.info("the model server was probed", enforces=level, model=reply.model)
                return level
            _log.info("the model server accepts a response format and ignores it", format=level)
        raise ModelUnavailable("the model server refuses every request")

    async def complete(self, messages: Sequence[Message], schema: Mapping[str, Any], timeout_s: float) -> Completion:
        """Ask once.

        Args:
            messages: The conversation, the stable part first.
            schema: JSON schema of the reply; enforced by the server as far as it can, never trusted.
            timeout_s: Hard limit, seconds.

        Raises:
            ModelUnavailable: Whatever went wrong.
        """
        started = time.monotonic()
        level = self.enforcement or await self.probe()
        left = timeout_s - (time.monotonic() - started)
        if left <= 0:
            raise ModelUnavailable(f"no time was left after probing the server ({timeout_s:.1f} s)")
        try:
            return await self._ask(messages, schema, level, left, max_tokens=self._settings.max_tokens)
        except _Unsupported as error:
            self.enforcement = None  # the server changed: probe again next time
            raise ModelUnavailable(f"the model server no longer takes {level}: {error}") from error

    async def _ask(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        level: Enforcement,
        timeout_s: float,
        *,
        max_tokens: int,
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
        try:
            async with asyncio.timeout(max(0.0, timeout_s - (time.monotonic() - started))):
                reply = await self._client.chat.completions.create(**request)
        except TimeoutError as error:
            raise ModelUnavailable(f"no reply within {timeout_s:.1f} s") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if level == "text":
                raise ModelUnavailable(f"refused: {_short(error)}") from error
            raise _Unsupported(_short(error)) from error
        # A broken body surfaces as whatever the JSON or pydantic layer below raises; the server is never trusted to be better.
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise ModelUnavailable(f"{type(error).__name__}: {_short(error)}") from error
        finally:
            self._slots.release()
        asked = sum(len(message["content"]) for message in messages)
        return _completion(reply, asked, time.monotonic() - started)


class _Unsupported(Exception):
    """The server refuses this response format."""


def _completion(reply: Any, asked_characters: int, duration_s: float) -> Completion:
    try:
        choice = reply.choices[0]
        text = choice.message.content
        usage = reply.usage
        tokens = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else (0, 0)
        if min(tokens) < 0 or tokens[0] == 0:
            # A server that does not count is not free: by the usual length of a token.
            tokens = (asked_characters // _CHARACTERS_A_TOKEN + 1, len(str(text)) // _CHARACTERS_A_TOKEN + 1)
        finish_reason = str(choice.finish_reason)
        model = str(reply.model)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"the reply is no chat completion: {type(error).__name__}") from error
    if not isinstance(text, str) or not text.strip():
        raise ModelUnavailable("the reply is empty")
    if len(text) > _MAX_REPLY_CHARACTERS:
        raise ModelUnavailable(f"the reply has {len(text)} characters; at most {_MAX_REPLY_CHARACTERS} are read")
    return Completion(text, model[:100], *tokens, duration_s, finish_reason)


def _enforced(level: Enforcement, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return value == {"stage": "alpha"} if level == "json_schema" else isinstance(value, dict)


def _short(error: Exception) -> str:
    return str(error)[:200]
