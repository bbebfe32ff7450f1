"""The bottleneck benchmark: what it judges, what it prints, and what its exit status says."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner, Result

from benchmarks.bottleneck import Scenario, app, judge
from tests.fakes.model_server import choosing, misbehaving_server

SIX = ("--scenarios", "6", "--workers", "1")
NO_MODEL = {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}


def run(*options: str, **environment: str) -> Result:
    return CliRunner().invoke(app, [*SIX, *options], env=NO_MODEL | environment)


@pytest.mark.parametrize(("pipeline", "seed"), [("nlp", 7002), ("document-reading", 7003)])
def test_a_scenario_is_judged_the_same_each_time_and_by_stages_of_its_pipeline(pipeline: str, seed: int) -> None:
    scenario = Scenario(pipeline, "poisson", seed)
    (first,), (second,) = judge([scenario]), judge([scenario])
    assert first == second
    assert first.rule in first.truth.gains
    assert set(first.truth.stages) <= set(first.truth.gains)
    assert first.model is None


def test_the_command_prints_a_matrix_and_its_exit_status_says_whether_the_bar_is_reached() -> None:
    low, high = run("--bar", "0.2"), run("--bar", "1")
    assert low.exit_code == 0, low.output
    assert "all scenarios" in low.output
    assert "reached" in low.output
    # One of these six is judged wrongly, so that no interval reaches 1.
    assert high.exit_code == 1, high.output
    assert "MISSED" in high.output


async def test_a_models_own_word_has_a_matrix_of_its_own() -> None:
    async with misbehaving_server(choosing(bottleneck="s1")) as server:
        environment = {"OPENAI_BASE_URL": server.url, "SAIR_LLM_ENFORCEMENT": "text", "SAIR_LLM_MODEL": "echo"}
        ended = await asyncio.to_thread(run, **environment)
    assert ended.exit_code == 0, ended.output
    matrix = ended.output.split("Language model echo")[1].split("all scenarios")[0]
    assert "entry" in matrix
    heads = next(line for line in matrix.splitlines() if "truth" in line)
    said = [row.split("│")[1:-1] for row in matrix.splitlines() if row.startswith("│")]
    column = [head.strip() for head in heads.strip("┃").split("┃")].index("entry")
    elsewhere = [cell.strip() for row in said for place, cell in enumerate(row[1:-1], 1) if place != column]
    assert sum(int(row[column]) for row in said) == 6
    assert not any(elsewhere)
