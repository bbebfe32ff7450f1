"""The trace that the example's client replays."""

from __future__ import annotations

import pytest
from app.load import parse_trace


def test_a_trace_is_seconds_and_requests_per_second() -> None:
    assert parse_trace("# a ramp\n0 5\n\n60 10.5  # higher\n", "trace") == [(0.0, 5.0), (60.0, 10.5)]


@pytest.mark.parametrize(
    "line",
    ["1", "1 2 3", "one 2", "-1 2", "1 -2", "nan 1", "1 nan", "1 inf", "1 1e9"],
    ids=lambda line: line or "empty",
)
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"trace:2: .* is not allowed"):
        parse_trace(f"0 1\n{line}\n", "trace")


@pytest.mark.parametrize("text", ["0 1\n0 2", "5 1\n4 1"])
def test_time_only_goes_on(text: str) -> None:
    with pytest.raises(ValueError, match=r"trace:2: .* ascending"):
        parse_trace(text, "trace")


def test_an_empty_trace_is_none() -> None:
    with pytest.raises(ValueError, match="at least one line"):
        parse_trace("# nothing\n", "trace")
