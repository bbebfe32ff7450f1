"""A run's report on disk: one self-contained HTML file with its plots inside, and the same plots as SVG files beside it."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from controller.simulation.recording import Recording
from controller.simulation.statistics import RunSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Report", "ReportedRun", "comparison_rows", "write_report"]

COLUMNS: Final = (
    "policy",
    "P50",
    "P99",
    "P99 / SLO",
    "missed",
    "goodput /s",
    "effective $/h",
    "whole cards $/h",
    "$/1K in SLO",
    "whole cards $/1K",
    "model $",
)
_COLOURS: Final = ("#1f6f8b", "#d1603d", "#6a994e", "#7b4b94", "#b08900", "#444444", "#c2185b", "#00796b")


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """One row of the table and one line in the plots."""

    summary: RunSummary
    recording: Recording
    note: str = ""
    """What a reader must know of this row, for instance that it was sized in hindsight."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a report is about; the first run is SAIR's, or whatever is compared with the rest."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Pipeline, workload, seed, who decided…: shown above the table."""
    runs: Sequence[ReportedRun]
    notes: Sequence[str] = ()


def comparison_rows(summaries: Sequence[RunSummary]) -> list[tuple[str, ...]]:
    """Cells of the comparison table, one row per run, in the order of ``COLUMNS``."""
    return [
        (
            one.policy,
            f"{1000 * one.p50_s:.0f} ms",
            f"{1000 * one.p99_s:.0f} ms",
            f"{one.p99_s / one.slo_s:.2f}",
            f"{100 * one.miss_ratio:.2f} %",
            f"{one.goodput_per_s:.1f}",
            f"{one.effective_usd_per_hour:.2f}",
            f"{one.whole_card_usd_per_hour:.2f}",
            f"{one.effective_usd_per_1k:.4f}",
            f"{one.whole_card_usd_per_1k:.4f}",
            f"{one.model_usd:.4f}" if one.model_usd else "0",
        )
        for one in summaries
    ]


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.html`` and the plots.

    Args:
        report: At least one run.
        folder: Created if it is missing.

    Returns:
        The files written, the HTML first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = [("latency", "Arrivals, P99 against the SLO, and misses", _latency_figure(report.runs))]
    plots.append(("cost", "Cost and latency of all", _cost_figure(report.runs)))
    plots.extend(
        (f"allocations-{number}", f"Allocations under {run.summary.policy}", _allocation_figure(run))
        for number, run in enumerate(report.runs, start=1)
    )
    written = []
    drawn = []
    for name, caption, figure in plots:
        svg = _svg(figure)
        path = folder / f"{name}.svg"
        path.write_text(svg, encoding="utf-8")
        written.append(path)
        drawn.append((caption, svg[svg.index("<svg") :]))
    page = folder / "report.html"
    page.write_text(_page(report, drawn), encoding="utf-8")
    return [page, *written]


def _figure(rows: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - heavy, and only reports need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    for axis in axes[:, 0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:, 0])


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "SAIR"})
    return buffer.getvalue()


def _latency_figure(runs: Sequence[ReportedRun]) -> Figure:
    figure, (load, latency, missed, cost) = _figure(4, 10)
    first = runs[0].recording
    load.fill_between(first.time_s / 60, first.arrivals_per_s, color="#bbbbbb", step="pre")
    load.set_ylabel("arrivals /s")
    for run, colour in _coloured(runs):
        record, minutes = run.recording, run.recording.time_s / 60
        width = 1.8 if run is runs[0] else 1.0
        latency.plot(minutes, record.p99_s, color=colour, lw=width, label=run.summary.policy)
        missed.plot(minutes, np.cumsum(record.missed), color=colour, lw=width)
        cost.plot(minutes, record.effective_usd_per_hour, color=colour, lw=width, drawstyle="steps-pre")
    latency.axhline(first.slo_s, color="black", ls="--", lw=1, label="SLO")
    latency.set_yscale("log")
    latency.set_ylabel("P99, s")
    latency.legend(fontsize="small", ncols=3, frameon=False)
    missed.set_ylabel("missed, in all")
    cost.set_ylabel("effective $/h")
    cost.set_ylim(bottom=0)
    cost.set_xlabel("minutes")
    return figure


def _cost_figure(runs: Sequence[ReportedRun]) -> Figure:
    figure, (axis,) = _figure(1, 4.5)
    for run, colour in _coloured(runs):
        summary = run.summary
        axis.scatter(summary.effective_usd_per_hour, 100 * summary.miss_ratio, color=colour, s=60, zorder=3)
        axis.annotate(
            summary.policy,
            (summary.effective_usd_per_hour, 100 * summary.miss_ratio),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize="small",
        )
    axis.set_yscale("symlog", linthresh=0.1)
    worst = max(100 * run.summary.miss_ratio for run in runs)
    axis.set_ylim(-0.02, max(0.2, 2 * worst))
    dearest = max(run.summary.effective_usd_per_hour for run in runs)
    axis.set_xlim(0, 1.2 * dearest)
    axis.set_xlabel("effective $/h")
    axis.set_ylabel("missed, %")
    return figure


def _allocation_figure(run: ReportedRun) -> Figure:
    record = run.recording
    figure, axes = _figure(len(record.stages) * 2, 3.2 * len(record.stages))
    minutes = record.time_s / 60
    for stage, knobs, queue in zip(record.stages, axes[::2], axes[1::2], strict=True):
        knobs.plot(
            minutes, stage.replicas, color="#999999", lw=1, drawstyle="steps-pre", label="replicas, starting too"
        )
        knobs.plot(minutes, stage.ready, color=_COLOURS[0], drawstyle="steps-pre", label="replicas ready")
        knobs.plot(minutes, stage.cores, color=_COLOURS[2], lw=1, drawstyle="steps-pre", label="cores each")
        if stage.gpu_share.any():
            knobs.plot(minutes, stage.gpu_share, color=_COLOURS[1], drawstyle="steps-pre", label="ρ each")
        knobs.set_ylim(0, 1.35 * max(1.0, float(stage.replicas.max()), float(stage.cores.max())))
        knobs.set_ylabel(stage.name)
        knobs.legend(fontsize="x-small", ncols=4, frameon=False, loc="upper left")
        queue.fill_between(minutes, stage.queue, color=_COLOURS[3], alpha=0.5, step="pre")
        queue.set_ylim(bottom=0)
        queue.set_ylabel("queue")
    axes[-1].set_xlabel("minutes")
    return figure


def _coloured(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, str]]:
    return [(run, _COLOURS[number % len(_COLOURS)]) for number, run in enumerate(runs)]


def _page(report: Report, drawn: Sequence[tuple[str, str]]) -> str:
    rows = comparison_rows([run.summary for run in report.runs])
    notes = [(run.summary.policy, run.note) for run in report.runs if run.note]
    table = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    facts = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in report.facts)
    remarks = "".join(f"<li><b>{html.escape(policy)}</b>: {html.escape(note)}</li>" for policy, note in notes)
    remarks += "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, svg in drawn
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(report.title)}</title><style>'
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
        "th:first-child,td:first-child{text-align:left}tr:nth-child(2){font-weight:600}dt{float:left;width:10rem;color:#666}"
        "figure{margin:2rem 0}figure svg{max-width:100%;height:auto}figcaption{color:#666}</style>"
        f"<h1>{html.escape(report.title)}</h1><dl>{facts}</dl><table><tr>{head}</tr>{table}</table><ul>{remarks}</ul>"
        f"{figures}</html>\n"
    )
