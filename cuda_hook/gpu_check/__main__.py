"""``python -m cuda_hook.gpu_check``: measures the hook on this machine's first GPU and ends with a table."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cuda_hook.accuracy.container import hook_library
from cuda_hook.accuracy.ideal import error_bar
from cuda_hook.accuracy.verdict import Figure, Verdict, table
from cuda_hook.gpu_check.device import PTX, Device
from sair.errors import MetricsUnavailable

__all__ = ["main"]

_TENANTS_LEAD_S = 5.0
_HERE = Path(__file__).resolve().parent
_SHAPES = (
    ("1 ms, grid 8192, async", "kernel", 1000, 8192, False),
    ("1 ms, grid 8192, sync", "kernel", 1000, 8192, True),
    ("200 us, one block per SM", "kernel", 200, 0, False),
    ("5 ms, one block per SM", "kernel", 5000, 0, False),
    ("50 ms, grid 65536, sync", "kernel", 50_000, 65_536, True),
    ("cooperative, 1 ms", "cooperative", 1000, 0, False),
    ("_ptsz, 1 ms", "ptsz", 1000, 0, False),
    ("graph, 1 ms", "graph", 1000, 0, False),
    ("mix 20 us / 10 ms, 4 streams", "mix", 10_000, 0, False),
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A directory with a grant and a stats page, laid out as a pod's folder."""

    directory: Path

    def environment(self, rate: float | None, **extra: str) -> dict[str, str]:
        """Variables of a process under a rate; None runs it without the hook."""
        values = {name: value for name, value in os.environ.items() if not name.startswith("SAIR_")} | extra
        if rate is None:
            return values
        page = self.directory / "volumes" / "kubernetes.io~empty-dir" / "sair-stats" / "stats"
        page.parent.mkdir(parents=True, exist_ok=True)
        (self.directory / "gpu-granted").write_text(f"{rate:g}")
        return values | {
            "LD_PRELOAD": str(hook_library()),
            "SAIR_GRANT_FILE": str(self.directory / "gpu-granted"),
            "SAIR_STATS_PATH": str(page),
        }


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  # our own programs
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    if process.returncode != 0 or not out.strip():
        raise MetricsUnavailable(f"{process.args!r} ended with {process.returncode}: {errors.strip()[-400:]}")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"cuda_hook.gpu_check.{name}", *map(str, arguments)]


class Check:
    """The measurements, each giving rows.

    Args:
        root: Scratch directory.
        multiprocessors: Of the GPU.
        seconds: Of each measurement.
    """

    def __init__(self, root: Path, multiprocessors: int, seconds: float) -> None:
        self._root, self._seconds = root, seconds
        self._multiprocessors = multiprocessors
        self._count = 0

    def _tenant(self) -> Tenant:
        self._count += 1
        return Tenant(self._root / "pods" / f"tenant-{self._count}")

    def _work(self, shape: tuple[str, str, int, int, bool], rate: float, lead_s: float = 0.5) -> list[str]:
        _, kind, kernel_us, grid, sync = shape
        seconds = self._seconds + lead_s
        grid = grid or self._multiprocessors
        return _module("worker", kind, kernel_us, grid, int(sync), seconds, rate, int(lead_s * 1000))

    def shapes(self, rates: Sequence[float]) -> Iterator[Verdict]:
        """Every shape at every rate, alone on the GPU."""
        for shape in _SHAPES:
            for rate in rates:
                report = _report(_start(self._work(shape, rate), self._tenant().environment(rate)))
                kernel_ms = shape[2] / 1000
                figures = [Figure("share", 100 * report.get("share", math.nan), None, "%")]
                for name, width in (("1 s", 1000), ("100 ms", 100)):
                    error = report.get(f"error_{width}_ms", math.nan)
                    figures.append(Figure(name, 100 * error, 100 * error_bar(kernel_ms, rate, width)))
                yield Verdict(
                    "share by the kernels' own stamps, points of error", f"{shape[0]}, r = {rate}", tuple(figures)
                )

    def tenants(self) -> Iterator[Verdict]:
        """Two containers at 0.3 and 0.6, with and without the node agent, which takes its time to start."""
        for agent in (True, False):
            for first, second in ((2, 0), (0, 3), (0, 7)):
                with ExitStack() as stack:
                    if agent:
                        stack.enter_context(_agent(self._root))
                    work = [(_SHAPES[first], 0.3), (_SHAPES[second], 0.6)]
                    processes = [
                        _start(self._work(s, r, _TENANTS_LEAD_S), self._tenant().environment(r)) for s, r in work
                    ]
                    reports = [_report(process) for process in processes]
                bar = 1.5 if agent else 3.0
                yield Verdict(
                    f"two containers at 0.3 and 0.6, {'with' if agent else 'without'} the node agent",
                    f"{_SHAPES[first][0]} / {_SHAPES[second][0]}",
                    tuple(
                        Figure(f"error {name}", 100 * abs(report.get("share", math.nan) - rate), bar)
                        for name, report, (_, rate) in zip("ab", reports, work, strict=True)
                    ),
                )

    def launches(self) -> Iterator[Verdict]:
        """Cost of a launch bare, with events, and under the hook."""
        program, ptx = self._build(), self._root / "kernel.ptx"
        ptx.write_bytes(PTX + b"\0")

        def cost(rate: float | None, *options: str) -> float:
            environment = self._tenant().environment(rate)
            runs = [_report(_start([str(program), str(ptx), *options], environment)) for _ in range(3)]
            return min(float(run["ns_per_launch"]) for run in runs)

        bare = cost(None)
        group = "cost of a launch"
        yield Verdict(group, "driver alone", (Figure("ns", bare, None), Figure("added ns", 0.0, None)))
        for every in (64, 256, 1024):
            value = cost(None, f"events_every={every}")
            yield Verdict(
                group,
                f"an event pair every {every} launches, no hook",
                (Figure("ns", value, None), Figure("added ns", value - bare, None)),
            )
        for rate, bar in ((0.5, 30.0), (1.0, 10.0)):
            value = cost(rate)
            yield Verdict(
                group, f"hook, r = {rate}", (Figure("ns", value, None), Figure("added ns", value - bare, bar))
            )

    def _build(self) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise MetricsUnavailable("no C compiler: cc or gcc is needed to measure the cost of a launch")
        program = self._root / "launch-cost"
        source = str(_HERE / "launch_cost.c")
        subprocess.run(  # noqa: S603  # the compiler, on our own source
            [compiler, "-O2", "-o", str(program), source, "-ldl"], check=True
        )
        return program

    def torch(self, rates: Sequence[float]) -> Iterator[Verdict]:
        """PyTorch loops against the rate, and its memory under a limit."""
        if importlib.util.find_spec("torch") is None:
            yield Verdict("PyTorch", "not installed: skipped", (Figure("iterations/s", math.nan, None),))
            return
        for mode in ("eager", "graph"):
            alone = self._torch(mode, None)["iterations_per_s"]
            for rate in (*rates, 1.0):
                value = self._torch(mode, rate)["iterations_per_s"]
                off = 100 * abs(value / alone - rate)
                figures = (
                    Figure("iterations/s", value, None),
                    Figure("of unthrottled", 100 * value / alone, None, "%"),
                    Figure("off r, points", off, 3.0),
                )
                yield Verdict("PyTorch throughput against r", f"{mode}, r = {rate}", figures)
        report = self._torch("memory", 0.5, SAIR_GPU_MEMORY_MIB="4096")
        past = float(not report["refused_over_limit"])
        yield Verdict(
            "PyTorch memory",
            "limit of 4096 MiB",
            (Figure("total, MiB", report["total_mib"], 4096.0), Figure("allowed past the limit", past, 0.0)),
        )

    def _torch(self, mode: str, rate: float | None, **extra: str) -> dict[str, Any]:
        return _report(_start(_module("torch_worker", mode, self._seconds), self._tenant().environment(rate, **extra)))


@contextmanager
def _agent(root: Path) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAIR_")}
    environment |= {
        "SAIR_AGENT_PODS_PATH": str(root / "pods"),
        "SAIR_AGENT_HOST": "127.0.0.1",
        "SAIR_AGENT_PORT": "0",
        "SAIR_AGENT_DISCOVERY_S": "0.2",
    }
    # Into a file: what is written into a pipe that nobody reads stops the writer once the pipe is full.
    with (root / "agent.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cuda_hook.agent", "serve"], env=environment, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def main(
    seconds: Annotated[float, typer.Option(min=2, help="Length of each measurement in s.")] = 6.0,
    rates: Annotated[str, typer.Option(help="Rates to hold, comma-separated.")] = "0.1,0.3,0.5,0.8",
    only: Annotated[list[str] | None, typer.Option(help="Of shapes, tenants, launches, torch; default all.")] = None,
) -> None:
    """Measure the hook on a real GPU. Exits 1 where a bar is missed, 2 where nothing can be measured."""
    if not hook_library().exists():
        typer.echo(f"{hook_library()} is not built; run: make hook", err=True)
        raise typer.Exit(2)
    try:
        device = Device()
        described, multiprocessors = device.describe(), device.multiprocessors()
    except MetricsUnavailable as error:
        typer.echo(f"no GPU to check on: {error}", err=True)
        raise typer.Exit(2) from error
    wanted = [float(rate) for rate in rates.split(",")]
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="sair-gpu-check-") as directory:
        check = Check(Path(directory), multiprocessors, seconds)
        groups: dict[str, Callable[[], Iterator[Verdict]]] = {
            "shapes": lambda: check.shapes(wanted),
            "tenants": check.tenants,
            "launches": check.launches,
            "torch": lambda: check.torch(wanted),
        }
        for name, group in groups.items():
            if only and name not in only:
                continue
            try:
                for verdict in group():
                    verdicts.append(verdict)
                    typer.echo(f"{'ok' if verdict.is_met else 'MISSED':6} {verdict.case}", err=True)
            except MetricsUnavailable as error:
                verdicts.append(Verdict(name, f"failed: {error}", (Figure("failed", math.nan, 0.0),)))
    typer.echo(f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC, {described}")
    typer.echo("\n".join(table(verdicts)))
    raise typer.Exit(0 if all(verdict.is_met for verdict in verdicts) else 1)


if __name__ == "__main__":
    typer.run(main)
