"""The report on disk."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from controller.simulation.baselines.hpa import HorizontalPodAutoscaler
from controller.simulation.baselines.runner import Run, run_policy
from controller.simulation.report import COLUMNS, Report, ReportedRun, comparison_rows, write_report
from controller.simulation.workloads import burst
from tests.controller.simulation.builders import cpu, gpu, two_stages


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    setup, series = two_stages(), burst(25.0, 300)
    ample = setup.starting_at({"pre": cpu(4), "inf": gpu(2, 900)})
    return [
        run_policy(setup, series, 1, HorizontalPodAutoscaler(setup.view)),
        run_policy(ample, series, 1, None),
    ]


def reported(runs: list[Run]) -> list[ReportedRun]:
    return [ReportedRun(run.summary, run.recording, "a <note> of its own") for run in runs]


def test_a_recording_adds_up_to_its_summary(runs: list[Run]) -> None:
    for run in runs:
        record = run.recording
        assert len(record.time_s) == 60
        assert record.missed.sum() == run.summary.missed
        assert record.arrivals_per_s.sum() * record.grain_s == run.summary.requests
        assert record.effective_usd_per_hour.mean() == pytest.approx(run.summary.effective_usd_per_hour)
    static = runs[1].recording.stages
    assert [stage.name for stage in static] == ["pre", "inf"]
    assert set(static[0].ready) == {4}
    assert set(static[1].gpu_share) == {0.9}
    assert runs[0].recording.stages[0].replicas.max() > runs[0].recording.stages[0].replicas.min()


def test_the_table_has_a_cell_for_every_column(runs: list[Run]) -> None:
    rows = comparison_rows([run.summary for run in runs])
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][0] == "HPA (defaults)"
    assert rows[1][COLUMNS.index("missed")] == f"{100 * runs[1].summary.miss_ratio:.2f} %"


def test_a_report_is_one_file_that_needs_nothing_else(runs: list[Run], tmp_path: Path) -> None:
    report = Report("A & B", [("pipeline", "small"), ("seed", "1")], reported(runs), ["all <simulated>"])
    files = write_report(report, tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "report.html",
        "latency.svg",
        "cost.svg",
        "allocations-1.svg",
        "allocations-2.svg",
    ]
    page = files[0].read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in page
    assert "a &lt;note&gt; of its own" in page
    assert "all &lt;simulated&gt;" in page
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href)=\"https?:", page)
    for file in files[1:]:
        assert ET.parse(file).getroot().tag.endswith("svg")


def test_writing_a_report_leaves_no_figures_behind(runs: list[Run], tmp_path: Path) -> None:
    from matplotlib import _pylab_helpers  # noqa: PLC0415 - what pyplot would have registered

    write_report(Report("t", [], reported(runs)), tmp_path)
    assert not _pylab_helpers.Gcf.figs
