"""What the API server's refusals become: one function from an HTTP answer or a Status object to the error tree.

::

    PermanentError
    ├── NotFound          404
    └── Refused           400, 401, 403, 405, 413, 415, 422: the request itself is at fault
    TemporaryError
    ├── Conflict          409, and 422 for a patch whose uid is not the object's
    │   └── AlreadyExists 409 with reason AlreadyExists
    ├── Gone              410: the resource version asked for is no longer kept; list again
    └── ApiUnavailable    everything else
        └── Throttled     the server says how long to wait
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sair.errors import ApiUnavailable, Conflict, NotFound, PermanentError, SairError, TemporaryError
from sair.wire import field

__all__ = ["AlreadyExists", "Gone", "Refused", "Throttled", "from_status", "retry_after_s"]

_LONGEST_MESSAGE = 500
_LONGEST_WAIT_S = 300.0


class Refused(PermanentError):
    """The API server refuses the request as it stands: malformed, invalid, or not allowed.

    Args:
        code: HTTP status.
        reason: The Status object's machine-readable reason, such as ``Invalid`` or ``Forbidden``.
        message: What the server says.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(message)


class AlreadyExists(Conflict):
    """An object of this name exists."""


class Gone(TemporaryError):
    """The resource version or continuation asked for is too old: list again."""


class Throttled(ApiUnavailable):
    """The API server asks to be left alone for a while.

    Args:
        message: What the server says.
        retry_after_s: How long to wait, in seconds.
        code: HTTP status; 429 means that the request was not begun.
    """

    def __init__(self, message: str, retry_after_s: float, code: int) -> None:
        self.retry_after_s = retry_after_s
        self.code = code
        super().__init__(message)


_NAMED: Mapping[int, type[SairError]] = {404: NotFound, 409: Conflict, 410: Gone}
_REFUSALS = frozenset((400, 401, 403, 405, 406, 413, 415, 422))


def from_status(code: int, status: Mapping[str, Any], *, what: str, retry_after_s: float | None = None) -> SairError:
    """Turn an answer that is no success into the error to raise.

    Args:
        code: HTTP status, or the ``code`` of a Status object inside a watch.
        status: The Status object; empty if the body was none.
        what: The request, such as ``GET /api/v1/pods``, for the message.
        retry_after_s: Seconds the server asks to wait, None if it says nothing.
    """
    reason = str(field(status, "reason", default=""))
    said = str(field(status, "message", default=""))[:_LONGEST_MESSAGE]
    message = f"{what}: {code} {reason or 'no reason given'}" + (f": {said}" if said else "")
    if code in _REFUSALS and not _is_about_uid(status):
        return Refused(code, reason, message)
    if code in _NAMED or code in _REFUSALS:
        kind = AlreadyExists if reason == "AlreadyExists" else _NAMED.get(code, Conflict)
        return kind(message)
    if retry_after_s is None:
        stated = field(status, "details", "retryAfterSeconds")
        retry_after_s = float(stated) if isinstance(stated, int) and stated > 0 else None
    if retry_after_s is None:
        return ApiUnavailable(message)
    return Throttled(message, min(retry_after_s, _LONGEST_WAIT_S), code)


def _is_about_uid(status: Mapping[str, Any]) -> bool:
    """A patch that names another uid than the object's; the server calls it an attempt to change the uid (422)."""
    return any(field(cause, "field") == "metadata.uid" for cause in _causes(status))


def _causes(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    causes = field(status, "details", "causes", default=[])
    return [cause for cause in causes if isinstance(cause, Mapping)] if isinstance(causes, list) else []


def retry_after_s(error: BaseException) -> float:
    """Say how many seconds the server asked to wait; 0 if it said nothing."""
    return error.retry_after_s if isinstance(error, Throttled) else 0.0
