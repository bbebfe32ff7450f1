"""A client of any OpenAI-compatible endpoint: hard deadline, bounded reply, and the strictest response format that the server takes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import openai

from controller.llm.reading import bounded
from controller.llm.settings import ModelSettings
from sair.errors import ModelUnavailable, WireError
from sair.logs import get_logger

__all__ = ["Completion", "Message", "Meter", "ModelBusy", "ModelClient", "Usage"]

_log = get_logger("llm")

Format = Literal["json_schema", "plain_json_schema", "json_object", "text"]
"""What a reply can be held to. Plain: without ``maxLength``, which some servers refuse, and without which small models run on."""
_FORMATS: Final[tuple[Format, ...]] = ("json_schema", "plain_json_schema", "json_object", "text")
"""Strictest first."""
_LOOK_AGAIN_S: Final = 3600.0
"""After how long a server that does less than could be is looked at again. It changes with its version or its model, so seldom; a look
takes four short replies at most."""
_MAX_REPLY_CHARACTERS = 20_000
_CHARACTERS_A_TOKEN = 4
_MOST_TOKENS = 10_000_000
"""That a server may say one call took; no real one comes near."""

Message = Mapping[str, str]
"""``{"role": …, "content": …}``."""

_PROBE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "stage": {"type": "string", "enum": ["alpha"]},
        "choice": {"type": "integer", "enum": [7]},
        "note": {"type": "string", "maxLength": 16},
    },
    "required": ["stage", "choice", "note"],
    "additionalProperties": False,
}
"""With every keyword of the schemas of decisions, and no other."""
_PROBE: Final[tuple[Message, ...]] = (
    # The words ask for something else than the formats: only a server that enforces one answers with an object, or with "alpha".
    # They name JSON, because endpoints with a JSON mode refuse requests that do not.
    {"role": "user", "content": 'Reply in JSON: the single string "hello", and nothing else.'},
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
        clock: Real seconds, by which what was found of the server grows old.
    """

    def __init__(self, settings: ModelSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url or None,
            api_key=settings.api_key or "none",  # local servers want no key, the library wants one
            timeout=settings.deadline_s,
            max_retries=0,  # the deadline is ours to divide
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [bounded]}),
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self.enforcement: Format | None = None if settings.enforcement == "probe" else settings.enforcement
        """The format of the next request; None while nothing is known."""
        self._look_again_at = float("inf")
        self._probing: asyncio.Task[Format] | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await self._client.close()

    async def probe(self, meter: Meter) -> Format:
        """Find the strictest response format the server enforces; one that it accepts and ignores, or answers with nothing, is none.

        Args:
            meter: Told what each attempt took.

        Raises:
            ModelUnavailable: If the server cannot be reached at all.
        """
        problem: Exception | None = None
        for level in _FORMATS:
            try:
                text = (await self._ask("probe", _PROBE, _PROBE_SCHEMA, level, self._settings.deadline_s, meter)).text
            except _Refused as error:
                _log.info("the model server refuses a response format", format=level, problem=str(error))
                problem = error
                continue
            except _Empty:
                text = ""
            if level == "text" or _enforced(level, text):
                self._settle(level)
                _log.info("the model server was probed", enforces=level, model=self._settings.model)
                return level
            _log.info("the model server accepts a response format and ignores it", format=level)
        raise ModelUnavailable(f"the model server refuses every request: {problem}") from problem

    async def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any], timeout_s: float, meter: Meter
    ) -> Completion:
        """Ask once. A server of which nothing is known is probed first; a format that it refuses is left for the next looser one.

        Args:
            messages: The conversation, the stable part first.
            schema: JSON schema of the reply; enforced by the server as far as it can, never trusted.
            timeout_s: Hard limit, seconds.
            meter: Told what the call took, and the probe if this call began it.

        Raises:
            ModelUnavailable: Whatever went wrong.
        """
        started = time.monotonic()
        first = self._known(meter) or await self._probed(timeout_s, meter)
        problem: Exception | None = None
        for level in _FORMATS[_FORMATS.index(first) :]:
            if problem is not None:
                self._settle(level)
            left = timeout_s - (time.monotonic() - started)
            if left <= 0:
                raise ModelUnavailable(f"no time was left to ask for {level} ({timeout_s:.1f} s)")
            try:
                return await self._ask("decision", messages, schema, level, left, meter)
            except _Refused as error:
                _log.warning("the model server refuses a request", format=level, problem=str(error))
                problem = error
        self._settle(first)  # the request is refused, whatever its format: nothing was learnt of the formats
        raise ModelUnavailable(f"refused: {problem}") from problem

    def _settle(self, level: Format) -> None:
        self.enforcement = level
        self._look_again_at = self._clock() + _LOOK_AGAIN_S

    def _known(self, meter: Meter) -> Format | None:
        """What is known of the server. What is old and less than could be serves on while it is looked at again."""
        chosen = self._settings.enforcement
        most = _FORMATS[0] if chosen == "probe" else chosen
        if self.enforcement not in (None, most) and self._clock() >= self._look_again_at:
            if chosen == "probe":
                self._look_again_at = self._clock() + _LOOK_AGAIN_S  # also where the look fails
                self._begin_probe(meter)
            else:
                self._settle(chosen)
        return self.enforcement

    async def _probed(self, timeout_s: float, meter: Meter) -> Format:
        """What the one probe finds that is under way at a time. It goes on when those who wait for it give up: the next ones need it."""
        begun = self._probing is None
        probing = self._begin_probe(meter)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(probing)
        except (TimeoutError, ModelUnavailable) as error:
            failure = ModelUnavailable if begun else ModelBusy
            raise failure(f"the server could not be probed: {error or f'not within {timeout_s:.1f} s'}") from error

    def _begin_probe(self, meter: Meter) -> asyncio.Task[Format]:
        """The probe that is under way, or a new one."""
        if self._probing is None:
            self._probing = asyncio.create_task(self.probe(meter), name="probe of the model server")
            self._probing.add_done_callback(self._probe_ended)
        return self._probing

    def _probe_ended(self, task: asyncio.Task[Format]) -> None:
        self._probing = None
        if not task.cancelled():
            task.exception()  # also where nobody waits for it any more

    async def _ask(
        self,
        purpose: Literal["decision", "probe"],
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        level: Format,
        timeout_s: float,
        meter: Meter,
    ) -> Completion:
        started = time.monotonic()
        request: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [dict(message) for message in messages],
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
        }
        if level in {"json_schema", "plain_json_schema"}:
            held_to = dict(schema) if level == "json_schema" else _plain(schema)
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "scaling_decision", "strict": True, "schema": held_to},
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
            raise _Refused(_short(error)) from error
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


class _Refused(Exception):
    """The server refuses this request, perhaps for its response format."""


class _Empty(ModelUnavailable):
    """There is a reply, and nothing in it."""


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
        why = ": all of SAIR_LLM_MAX_TOKENS were used before it began" if finish_reason == "length" else ""
        raise _Empty("the reply is empty" + why)
    if len(text) > _MAX_REPLY_CHARACTERS:
        raise ModelUnavailable(f"the reply has {len(text)} characters; at most {_MAX_REPLY_CHARACTERS} are read")
    return Completion(text, model[:100], duration_s, finish_reason)


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without limits on the length of texts."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in schema.items()
        if key != "maxLength"
    }


def _tokens(characters: int) -> int:
    return characters // _CHARACTERS_A_TOKEN + 1


def _enforced(level: Format, text: str) -> bool:
    """Whether a reply to the probe shows that the format was imposed: its words lead to no "alpha", and to nothing but a string."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if level == "json_object":
        return isinstance(value, (dict, list))  # some JSON modes allow a list as well
    return isinstance(value, dict) and value.get("stage") == "alpha"


def _short(error: Exception) -> str:
    return str(error)[:200]
