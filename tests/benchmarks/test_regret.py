"""The regret benchmark: the accounts it keeps, and what its exit status says."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from benchmarks.regret import Run, app, measure


def test_the_two_parts_add_up_over_retrieval_and_over_the_menu() -> None:
    found = measure(Run("nlp", "ramp", 7001, 300.0, 2, 30.0))
    retrieved, menu, holding = found.retrieved.rounds, found.menu.rounds, found.holding.rounds
    assert len(retrieved) == len(menu) == len(holding) == len(found.actions) == 5
    assert found.gap < 1e-9
    for own, offered, held in zip(retrieved, menu, holding, strict=True):
        assert own.probe == offered.probe == held.probe
        assert own.instantaneous == pytest.approx(offered.instantaneous)
        assert min(own.coverage, offered.coverage, held.coverage, own.instantaneous) >= 0
        # What is taken stands on the menu, so that something at least as good was always offered.
        assert offered.selection >= 0
    assert sum(each.instantaneous for each in retrieved) > 0
    assert min(found.actions) > 10


def test_the_command_prints_its_table_and_fails_where_nothing_was_measured() -> None:
    few = ["--pipeline", "nlp", "--seeds", "1", "--duration", "150", "--every", "2", "--workers", "1"]
    ended, nothing = CliRunner().invoke(app, few), CliRunner().invoke(app, [*few, "--horizon", "300"])
    assert ended.exit_code == 0, ended.output
    assert "add up to the regret: yes" in ended.output
    assert nothing.exit_code == 1, nothing.output
    assert "NO" in nothing.output
