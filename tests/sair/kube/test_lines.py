from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sair.kube.lines import Lines, LineTooLong


@given(
    content=st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")), max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=10),
    rest=st.binary(max_size=5).map(lambda data: data.replace(b"\n", b"")),
)
def test_lines_come_out_whole_however_the_stream_is_cut(content: list[bytes], cuts: list[int], rest: bytes) -> None:
    stream = b"".join(line + b"\n" for line in content) + rest
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    lines = Lines()
    out = [line for start, end in itertools.pairwise(edges) for line in lines.feed(stream[start:end])]
    assert out == [line for line in content if line.strip()]
    assert lines.rest == rest


def test_a_line_without_end_is_given_up_at_the_limit() -> None:
    lines = Lines(limit_bytes=10)
    assert list(lines.feed(b"123456789")) == []
    with pytest.raises(LineTooLong, match="more than 10 bytes"):
        list(lines.feed(b"0123"))


def test_whole_lines_before_the_one_that_is_too_long_still_come() -> None:
    out = []
    with pytest.raises(LineTooLong):
        for line in Lines(limit_bytes=4).feed(b"ab\ncd\nefghijk"):
            out.append(line)
    assert out == [b"ab", b"cd"]
