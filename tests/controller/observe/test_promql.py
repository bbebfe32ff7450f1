"""Queries are written so that nothing in them is taken for syntax."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.promql import one_of, quoted, samples_of
from sair.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("plain", '"plain"'),
        ('a"b', '"a\\"b"'),
        ("a\\", '"a\\\\"'),
        ('\\"', '"\\\\\\""'),
        ("line\nbreak\r\t\0", '"line\\nbreak\\r\\t\\x00"'),
        ("ü", '"ü"'),
    ],
)
def test_a_literal_has_go_s_escapes(text: str, literal: str) -> None:
    assert quoted(text) == literal


@given(st.text())
def test_no_text_ends_its_literal_early(text: str) -> None:
    inside = quoted(text)[1:-1]
    assert re.fullmatch(r'(?:[^"\\\n]|\\.)*', inside)


def test_one_value_is_compared_and_several_are_alternatives_of_plain_characters() -> None:
    assert one_of("pod", ["a.b"]) == 'pod="a.b"'
    assert one_of("pod", ["b|c", "a.b", "a.b"]) == 'pod=~"a\\\\.b|b\\\\|c"'


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n\r\t\0")), min_size=2, max_size=4, unique=True)
)
def test_alternatives_match_the_values_and_nothing_else(values: list[str]) -> None:
    pattern = one_of("pod", values).removeprefix('pod=~"').removesuffix('"').replace('\\"', '"').replace("\\\\", "\\")
    for value in values:
        assert re.fullmatch(pattern, value)
        assert bool(re.fullmatch(pattern, value + "x")) == (value + "x" in values)


def test_no_value_matches_nothing() -> None:
    assert one_of("pod", []) == 'pod=~"[^\\\\s\\\\S]"'


@pytest.mark.parametrize("label", ["", "a-b", "1a", 'a"', "ä", "a=b"])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(InvalidInput):
        one_of(label, ["x"])


def test_samples_are_asked_for_over_whole_seconds() -> None:
    assert samples_of(['a="b"', 'c="d"'], 12.4) == '{a="b",c="d"}[12s]'
    assert samples_of([], 0.0) == "{}[1s]"
