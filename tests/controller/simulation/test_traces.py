"""Trace files name the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.simulation.traces import parse_trace, read_trace
from sair.errors import TraceError


def test_a_trace_is_a_rate_per_line() -> None:
    assert parse_trace("# requests per second\n1\n2.5\n0\n1e2\n\n", "t").tolist() == [1, 2.5, 0, 100]


@pytest.mark.parametrize("line", ["", "x", "1 2", "1,5", "-1", "nan", "inf", "1e9", "0x10", "\x00"])
def test_a_malformed_line_is_named(line: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse_trace(f"1\n2\n{line}\n4\n", "my.txt")
    assert caught.value.field == "my.txt:3"
    assert caught.value.value == line
    assert "requests per second between 0 and" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "0\n0\n", "# nothing\n"])
def test_a_trace_without_any_request_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="at least one rate above 0"):
        parse_trace(text, "empty.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"missing\.txt.*No such file"):
        read_trace(tmp_path / "missing.txt")


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image.txt"
    path.write_bytes(b"12\n\xff\xfe")
    with pytest.raises(TraceError, match=r"image\.txt.*byte 3 is not UTF-8"):
        read_trace(path)


def test_a_trace_of_more_than_a_week_is_refused() -> None:
    with pytest.raises(TraceError, match="one week"):
        parse_trace("1\n" * (7 * 86_400 + 1), "long.txt")


@given(st.text())
def test_whatever_the_text_it_is_parsed_or_refused(text: str) -> None:
    try:
        rates = parse_trace(text, "t")
    except TraceError:
        return
    assert np.all(np.isfinite(rates))
    assert np.all(rates >= 0)
