import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.memory.codec import to_fields
from controller.memory.exchange import Archived, header, parse, written
from sair.errors import EntryError
from tests.builders import experience

NOW = 1_700_000_000.0
PIPELINE = "default/vision"


def lines(archived: Archived) -> list[str]:
    return [header(), *written(PIPELINE, archived)]


@given(st.integers(0, 5), st.dictionaries(st.text(max_size=9), st.text(max_size=9)), st.integers(0, 4))
def test_what_was_written_is_read_back(count: int, state: dict[str, str], records: int) -> None:
    archived = Archived(
        {e.id: e for e in map(experience, range(count))},
        state,
        [(f"{number}-0", {"kind": "decision", "text": "\n\u2028"}) for number in range(1, records + 1)],
    )
    found = parse("f", lines(archived), NOW)
    assert found == ({PIPELINE: archived} if count or state or records else {})


def _with(**changes: object) -> str:
    line = {"kind": "experience", "pipeline": PIPELINE, "id": "1", "fields": to_fields(experience())}
    return json.dumps({key: value for key, value in (line | changes).items() if value is not None}) + "\n"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ([], "f:1 kind"),
        ([_with()], "f:1 kind"),
        (['{"kind":"header","schema":"2"}'], "f:1 schema"),
        (["\x00"], "f:1 line"),
        ([header(), "[" * 100_000], "f:2 line"),
        ([header(), _with(kind="sudo")], "f:2 kind"),
        ([header(), "\n", _with(extra="x")], "f:3 line"),
        ([header(), _with(pipeline="../etc")], "f:2 pipeline"),
        ([header(), _with(pipeline="a/b} x")], "f:2 pipeline"),
        ([header(), _with(pipeline=None)], "f:2 pipeline"),
        ([header(), _with(id="a b")], "f:2 id"),
        ([header(), _with(id="x" * 300)], "f:2 line"),
        ([header(), _with(), _with(fields=to_fields(experience()) | {"cost_ratio": "cheap"})], "f:3 cost_ratio"),
        ([header(), _with(fields={"round": 1})], "f:2 line"),
        ([header(), _with(kind="decision", id="18446744073709551615-0")], "f:2 id"),
        ([header(), _with(kind="decision", id="5")], "f:2 id"),
        ([header(), _with(kind="decision", id="5-0"), _with(kind="decision", id="5-0")], "f:3 id"),
        ([header(), _with(kind="decision", id="5-0", fields={})], "f:2 fields"),
    ],
)
def test_a_malformed_line_is_refused_with_file_line_and_field(content: list[str], field: str) -> None:
    with pytest.raises(EntryError) as refused:
        parse("f", content, NOW)
    assert refused.value.field == field


@given(st.lists(st.text(max_size=80)))
def test_any_other_text_is_refused_and_nothing_else_happens(content: list[str]) -> None:
    with pytest.raises(EntryError):
        parse("f", content, NOW)
