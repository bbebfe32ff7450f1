"""The live view: stages, P99 against the SLO, cost, bottleneck, the last decision and why, and how far the run has come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from controller.journal import RoundReport
from controller.state import Action, Observation, PipelineView

__all__ = ["LiveView"]

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 60


@dataclass
class LiveView:
    """A Watcher that renders what it saw last. Times are the world's, in seconds.

    Args:
        title: What runs.
        decider: Who decides, said plainly.
        duration_s: Length of the run; 0 for one without an end.
    """

    title: str
    decider: str
    duration_s: float
    now_s: float = 0.0
    observation: Observation | None = None
    report: RoundReport | None = None
    side: str = ""
    """What goes on beside the run."""
    reflexes: int = 0
    missed: int = 0
    completed: int = 0
    p99: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    cost: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    async def round_ended(self, report: RoundReport) -> None:
        """Take the round in."""
        self.report = report
        seen = report.observation
        if seen is None:
            return
        self.observation = seen
        self.missed += seen.missed
        self.completed += seen.completed
        self.p99.append(seen.p99_s or 0.0)
        self.arrivals.append(seen.arrivals_per_s)
        self.cost.append(seen.cost_per_hour)

    async def about_to_act(self, report: RoundReport) -> None:
        """Nothing to show before it is done."""

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Count the reflex."""
        self.reflexes += 1

    def line(self) -> str:
        """One line of plain text, for where there is no terminal."""
        report, seen = self.report, self.observation
        if report is None or seen is None:
            return f"{_clock(self.now_s)}  waiting for the first metrics"
        decision = report.decision
        what = f"{decision.policy}: {decision.action}" if decision else report.problem
        p99 = "-" if seen.p99_s is None else f"{seen.p99_s * 1000:.0f} ms"
        return (
            f"{_clock(self.now_s)}  {seen.arrivals_per_s:6.1f} req/s  P99 {p99:>8} of {seen.slo_s * 1000:.0f} ms  "
            f"${seen.cost_per_hour:5.2f}/h  bottleneck {(decision and decision.bottleneck) or '-':<12} {what}"
        )

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self.decider, style="italic")]
        if self.observation is None:
            parts.append(Text("waiting for the first metrics …", style="dim"))
        else:
            parts += [self._headline(self.observation), self._stages(self.observation), self._decision()]
        if self.duration_s:
            parts.append(self._progress())
        if self.side:
            parts.append(Text(self.side, style="dim"))
        return Panel(Group(*parts), title=self.title, box=box.ROUNDED, padding=(0, 1))

    def _headline(self, seen: Observation) -> Table:
        late = seen.p99_s is not None and seen.p99_s > seen.slo_s
        table = Table.grid(padding=(0, 2))
        p99 = "-" if seen.p99_s is None else f"{seen.p99_s * 1000:.0f} ms"
        table.add_row(
            "P99",
            Text(f"{p99} of {seen.slo_s * 1000:.0f} ms", style="bold red" if late else "bold green"),
            _spark(self.p99),
        )
        table.add_row("load", f"{seen.arrivals_per_s:.1f} requests/s", _spark(self.arrivals))
        table.add_row("cost", f"${seen.cost_per_hour:.2f} an hour", _spark(self.cost))
        return table

    def _stages(self, seen: Observation) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("stage", "replicas", "cores", "ρ", "CPU", "GPU of ρ", "queue", "service"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        bottleneck = self.report.decision.bottleneck if self.report and self.report.decision else None
        for stage in seen.stages:
            a = stage.allocation
            marked = Text(
                stage.name + (" ◀ bottleneck" if stage.name == bottleneck else ""),
                style="bold" if stage.name == bottleneck else "",
            )
            table.add_row(
                marked,
                f"{stage.ready}" + (f" +{stage.starting}" if stage.starting else ""),
                f"{a.cpu / 1000:g}",
                str(stage.granted or a.gpu_rate or "-"),
                f"{stage.cpu_utilisation:.0%}",
                f"{stage.gpu_utilisation:.0%}" if a.gpu_rate else "-",
                f"{stage.queue_depth:.0f}",
                "-" if stage.service_s is None else f"{stage.service_s * 1000:.1f} ms",
            )
        return table

    def _decision(self) -> Text:
        report = self.report
        if report is None:
            return Text()
        decision = report.decision
        if decision is None:
            return Text(f"round {report.round}: {report.problem}", style="yellow")
        text = Text(f"round {report.round}, {decision.policy}: ", style="cyan")
        text.append(str(decision.action), style="bold")
        text.append(f"\n  why: {decision.reason or '-'}", style="dim")
        refused = [f"{v.rule} ({v.reason})" for v in decision.verdicts if v.outcome != "pass"]
        if refused:
            text.append(f"\n  guardrails: {', '.join(refused)}", style="yellow")
        if report.limited:
            text.append(f"\n  not granted: {report.limited}", style="yellow")
        if report.fallback:
            text.append(f"\n  the model did not decide: {report.fallback}", style="yellow")
        if self.reflexes:
            text.append(f"\n  reflex acted {self.reflexes} times so far", style="dim")
        return text

    def _progress(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(
            ProgressBar(total=self.duration_s, completed=min(self.now_s, self.duration_s), width=48),
            f"{_clock(self.now_s)} of {_clock(self.duration_s)} simulated",
        )
        return table


def _spark(values: deque[float]) -> Text:
    top = max(values, default=0.0) or 1.0
    return Text("".join(_BARS[min(8, max(0, round(8 * value / top)))] for value in values), style="blue")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
