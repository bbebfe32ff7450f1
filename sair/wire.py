"""The edge where foreign JSON turns into frozen typed values, or into a WireError that names the path of the offending field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from sair.errors import WireError

__all__ = ["convert", "decode", "encode", "field", "to_builtins"]

T = TypeVar("T")

_WHERE = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key in )?\$?(?P<path>.*)`)?$", re.DOTALL)


def decode(data: bytes | str, into: type[T], *, what: str) -> T:
    """Parse JSON text into a typed value.

    Args:
        data: The JSON text.
        into: A msgspec-compatible type, usually a frozen Struct.
        what: Name of the message for the error, such as ``AdmissionReview``.

    Raises:
        WireError: If it is no JSON or does not fit the type.
    """
    try:
        return msgspec.json.decode(data, type=into)
    except msgspec.MsgspecError as error:
        raise _wire_error(error, what) from error
    except UnicodeDecodeError as error:
        raise WireError(what, "undecodable bytes", "UTF-8 encoded JSON") from error


def convert(raw: Any, into: type[T], *, what: str, strict: bool = True) -> T:
    """Turn already parsed JSON into a typed value; ``strict=False`` also reads numbers from strings.

    Raises:
        WireError: If it does not fit the type.
    """
    try:
        return msgspec.convert(raw, type=into, strict=strict)
    except msgspec.MsgspecError as error:
        raise _wire_error(error, what) from error


def encode(value: Any) -> bytes:
    """Write a typed value as JSON."""
    return msgspec.json.encode(value)


def to_builtins(value: Any) -> Any:
    """Turn a typed value into plain dicts, lists and scalars."""
    return msgspec.to_builtins(value)


def _wire_error(error: Exception, what: str) -> WireError:
    match = _WHERE.match(str(error))
    path = (match and match["path"]) or ""
    problem = match["problem"] if match else str(error)
    return WireError(what + path, _Unquoted(problem), "a well-formed " + what)


class _Unquoted(str):
    """Shown as it is: msgspec's own description already says what stood there."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def field(raw: Mapping[str, Any], *path: str, default: Any = None) -> Any:
    """Look a nested field up in raw JSON; ``default`` where a step is missing, null or no object."""
    value: Any = raw
    for step in path:
        if not isinstance(value, Mapping):
            return default
        value = value.get(step)
    return default if value is None else value
