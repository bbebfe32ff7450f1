"""The controller's benchmark, very small: every bar is measured, and a missed one is its exit status."""

from __future__ import annotations

import json

import pytest

from benchmarks.controller.__main__ import main
from benchmarks.controller.rows import BARS, Sizes

TINY = Sizes(
    core=(50,),
    core_rounds=2,
    core_lived=4,
    pipelines=(2,),
    turns=2,
    sharded=8,
    shards=2,
    retrieval=(600, 1_200),
    retrievals=10,
    growth=(600,),
    redis=(50,),
    callers=(1, 20),
)
PATIENT = dict.fromkeys(BARS, float("inf")) | {
    name: BARS[name] for name in ("unowned", "model calls", "pipeline calls", "unanswered")
}
"""No bar that a busy machine could miss."""


def test_everything_is_measured_and_what_is_counted_keeps_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"], sizes=TINY, bars=PATIENT) == 0
    rows = json.loads(capsys.readouterr().out)
    values = {(row["what"].strip(), row["size"]): row["value"] for row in rows}
    assert sum(row["bar"] is not None for row in rows) == 18
    assert values["shards: pipelines of none or of two", "8 pipelines, 2 shards"] == 0
    assert 1 < values["language model: calls under way at most", "20 pipelines, 3 calls each"] <= 16
    assert values["of one pipeline", "20 pipelines, 3 calls each"] == 1
    assert all(row["value"] > 0 for row in rows if row["unit"] in ("ms", "s", "s of one core", "KiB per experience"))


@pytest.mark.parametrize(
    ("part", "bar", "value"),
    [("model", "model calls", 1.0), ("shards", "busiest shard", 0.0), ("growth", "memory", 0.1)],
)
def test_a_missed_bar_is_the_exit_status(part: str, bar: str, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", part], sizes=TINY, bars=PATIENT) == 0
    assert "all bars kept" in capsys.readouterr().out
    assert main(["--only", part], sizes=TINY, bars=PATIENT | {bar: value}) == 1
    assert "1 bars missed" in (printed := capsys.readouterr().out)
    assert f"MISSED  at most {value / 2 if bar == 'busiest shard' else value:g}" in printed
