from __future__ import annotations

from cuda_hook.accuracy.verdict import Figure, Verdict, table


def test_a_figure_that_could_not_be_measured_meets_no_bar() -> None:
    assert not Figure("1 s", float("nan"), 1.0).is_met
    assert Figure("1 s", float("nan"), None).is_met


def test_a_row_holds_only_if_every_bar_does() -> None:
    assert Verdict("g", "c", (Figure("a", 0.5, 1.0), Figure("b", 3.0, 3.0))).is_met
    assert not Verdict("g", "c", (Figure("a", 0.5, 1.0), Figure("b", 3.1, 3.0))).is_met


def test_a_row_whose_windows_were_mostly_starved_says_so() -> None:
    row = Verdict("g", "c", (Figure("a", 0.5, 1.0),), starved=16, windows=5)
    assert not row.is_conclusive
    assert "STARVED" in "\n".join(table([row]))


def test_the_table_shows_each_figure_beside_its_bar_under_its_group() -> None:
    rows = [
        Verdict("first", "one", (Figure("1 s", 0.4, 1.0),)),
        Verdict("second", "two", (Figure("settled", 412.0, 300.0, "ms"),)),
    ]
    lines = list(table(rows))
    assert any("0.40 <= 1.00" in line and line.endswith("ok") for line in lines)
    assert any("412ms > 300" in line and line.endswith("MISSED") for line in lines)
    assert lines.index("first") < lines.index("second")
