from __future__ import annotations

from typing import Any

import pytest

from sair.errors import ApiUnavailable, Conflict, NotFound, PermanentError, SairError, TemporaryError
from sair.kube.errors import AlreadyExists, Gone, Refused, Throttled, from_status, retry_after_s

UID_CAUSE = {"details": {"causes": [{"field": "metadata.uid"}]}}


@pytest.mark.parametrize(
    ("code", "status", "expected", "repeat"),
    [
        (404, {}, NotFound, False),
        (409, {"reason": "Conflict"}, Conflict, True),
        (409, {"reason": "AlreadyExists"}, AlreadyExists, True),
        (410, {"reason": "Expired"}, Gone, True),
        (400, {}, Refused, False),
        (401, {}, Refused, False),
        (403, {}, Refused, False),
        (422, {}, Refused, False),
        (422, {"details": {"causes": [{"field": "spec.replicas"}]}}, Refused, False),
        (422, UID_CAUSE, Conflict, True),
        (429, {}, ApiUnavailable, True),
        (500, {}, ApiUnavailable, True),
        (503, {"details": {"retryAfterSeconds": 2}}, Throttled, True),
        (302, {}, ApiUnavailable, True),
        (500, {"details": "odd", "reason": None, "message": 5}, ApiUnavailable, True),
        (422, {"details": {"causes": "odd"}}, Refused, False),
        (422, {"details": {"causes": ["odd"]}}, Refused, False),
    ],
)
def test_the_kind_of_error_says_whether_trying_again_can_help(
    code: int, status: dict[str, Any], expected: type[SairError], repeat: bool
) -> None:
    error = from_status(code, status, what="GET /x")
    assert type(error) is expected
    assert isinstance(error, TemporaryError if repeat else PermanentError)


def test_the_message_says_what_was_asked_and_what_the_server_says() -> None:
    error = from_status(403, {"reason": "Forbidden", "message": "pods is forbidden"}, what="GET /api/v1/pods")
    assert str(error) == "GET /api/v1/pods: 403 Forbidden: pods is forbidden"


def test_an_overlong_message_is_cut() -> None:
    assert len(str(from_status(500, {"message": "x" * 10_000}, what="GET /x"))) < 600


def test_the_header_goes_before_the_body_and_no_wait_is_endless() -> None:
    status = {"details": {"retryAfterSeconds": 2}}
    assert retry_after_s(from_status(429, status, what="GET /x", retry_after_s=7.0)) == 7.0
    assert retry_after_s(from_status(429, status, what="GET /x")) == 2.0
    assert retry_after_s(from_status(429, {}, what="GET /x", retry_after_s=1e9)) == 300.0
    assert retry_after_s(from_status(404, status, what="GET /x")) == 0.0
