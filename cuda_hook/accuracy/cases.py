"""The measurements: each runs containers on a simulated GPU of its own and returns rows."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cuda_hook.accuracy.container import Container, Starvation, finish
from cuda_hook.accuracy.ground_truth import GroundTruth
from cuda_hook.accuracy.ideal import LONG_KERNEL_MS, error_bar, ideal_deviation, ideal_error
from cuda_hook.accuracy.shapes import Shape
from cuda_hook.accuracy.verdict import Figure, Verdict
from cuda_hook.accuracy.windows import HostDelay, WindowError, settling_ms, share_error
from cuda_hook.agent.page import Page

__all__ = ["OVERLAP_BAR", "Bench", "live_change", "pair", "siblings", "single", "unslowed"]

OVERLAP_BAR = 3.0
"""Points, for kernels side by side. Without the agent overlap is known as a factor over 2 s, not launch by launch."""
START_TIMEOUT_S = 60.0
SETTLE_MS = 300.0
_TURNS = 8
_ALONE_S = 3.0
# Before two containers are measured: what learning takes. Without an agent that is the wait for a quiet period of one's
# own, which processes of one container share, and for long kernels for a long one.
_LEAD_S = 3.0
_TURNS_LEAD_S = 8.0
_LONG_LEAD_S = 18.0
_SETTLE_WINDOW_MS = 500
# A window is left out when the application waited longer for a processor than the limiter's burst can make up for.
_STARVED_LIMIT_MS = {100: 12.0, 1000: 100.0}
_STEP_MS = {100: 10, 1000: 50}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where measurements happen."""

    directory: Path
    """Fresh for each measurement."""
    seconds: float = 6.0
    """Measured time after settling."""
    agent: bool = False
    """Whether a node agent runs beside the containers."""
    arbiter: str = "fifo"

    def gpu(self) -> GroundTruth:
        """Create the simulated GPU of this measurement."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return GroundTruth(self.directory / "gpu", settings={"SAIR_SIMGPU_ARBITER": self.arbiter})

    def container(self, name: str, *, hooked: bool = True) -> Container:
        """Name a container of this measurement."""
        return Container(name, self.directory / "pods" / name, self.directory / "gpu", hooked)


@contextmanager
def _running(
    containers: Sequence[tuple[Container, Sequence[Sequence[str]]]],
) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    try:
        for container, commands in containers:
            processes.extend(container.start(*command) for command in commands)
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()


def _await_work(gpu: GroundTruth, names: Sequence[str], processes: Sequence[subprocess.Popen[str]]) -> int:
    """Wait until every tenant has had the GPU; the time of that."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while any(gpu.busy_ns(name) == 0 for name in names):
        for process in processes:
            if process.poll() is not None:
                finish(process)  # raises with its own words
        if time.monotonic() > deadline:
            raise RuntimeError(f"no work on the simulated GPU within {START_TIMEOUT_S} s")
        time.sleep(0.002)
    return time.monotonic_ns()


def _sleep_until(time_ns: int) -> None:
    time.sleep(max(0.0, (time_ns - time.monotonic_ns()) / 1e9))


def _error(busy: NDArray[np.int64], due: float, width_ms: int, starved: NDArray[np.int64]) -> WindowError:
    return share_error(
        busy,
        due,
        width_ms,
        step_ms=_STEP_MS[width_ms],
        delay=HostDelay(starved, _STARVED_LIMIT_MS[width_ms]),
    )


def _least_seen(*errors: WindowError) -> tuple[int, int]:
    """Windows starved and counted, of the widths or tenants the one that was seen least."""
    least = min(errors, key=lambda error: error.windows / max(1, error.windows + error.starved))
    return least.starved, least.windows


def _settling(busy: NDArray[np.int64], due: float, kernel_ms: float, starved: NDArray[np.int64]) -> float:
    tolerance = 0.02 + ideal_deviation(kernel_ms, due, _SETTLE_WINDOW_MS)
    took = settling_ms(
        busy,
        due,
        tolerance,
        window_ms=_SETTLE_WINDOW_MS,
        delay=HostDelay(starved, _STARVED_LIMIT_MS[100]),
    )
    return math.nan if took is None else float(took)


def single(bench: Bench, shape: Shape, rate: float) -> Verdict:
    """One container, one process: error at 1 s and at 100 ms, and how soon it settles after the start."""
    gpu = bench.gpu()
    container = bench.container("one")
    container.set_rate(rate)
    with _running([(container, [("sair-load", shape.load)])]) as processes, Starvation(processes) as starvation:
        start = _await_work(gpu, ["one"], processes)
        from_ns = start + 500_000_000
        until_ns = from_ns + int(bench.seconds * 1e9)
        _sleep_until(until_ns)
        early = gpu.busy_bins("one", start, start + 2_000_000_000)
        busy = gpu.busy_bins("one", from_ns, until_ns)
        starved = starvation.bins(from_ns, until_ns)
        starved_early = starvation.bins(start, start + 2_000_000_000)
    wide, narrow = _error(busy, rate, 1000, starved), _error(busy, rate, 100, starved)
    return Verdict(
        "one container: mean absolute error of the share, points",
        f"{shape.name}, r = {rate}{_on(bench)}",
        (
            Figure("share", 100 * wide.mean, None, "%"),
            Figure("1 s", 100 * wide.mean_absolute, 100 * error_bar(shape.kernel_ms, rate, 1000)),
            Figure("100 ms", 100 * narrow.mean_absolute, 100 * error_bar(shape.kernel_ms, rate, 100)),
            Figure("settled", _settling(early, rate, shape.kernel_ms, starved_early), SETTLE_MS, "ms"),
        ),
        *_least_seen(wide, narrow),
    )


def _on(bench: Bench) -> str:
    """Of a GPU that does more than one thing at a time, what."""
    return "" if bench.arbiter == "fifo" else f", {bench.arbiter}"


def live_change(bench: Bench, shape: Shape, before: float, after: float) -> Verdict:
    """A grant that changes under a running application: how soon the new share holds."""
    gpu = bench.gpu()
    container = bench.container("one")
    container.set_rate(before)
    with _running([(container, [("sair-load", shape.load)])]) as processes, Starvation(processes) as starvation:
        start = _await_work(gpu, ["one"], processes)
        _sleep_until(start + 1_500_000_000)
        container.set_rate(after)
        changed = time.monotonic_ns()
        until_ns = changed + 2_500_000_000
        _sleep_until(until_ns)
        busy = gpu.busy_bins("one", changed, until_ns)
        starved = starvation.bins(changed, until_ns)
    steady = _error(busy[500:], after, 100, starved[500:])
    return Verdict(
        "live change of the grant",
        f"{shape.name}, {before} -> {after}",
        (
            Figure("share after", 100 * steady.mean, None, "%"),
            Figure("settled", _settling(busy, after, shape.kernel_ms, starved), SETTLE_MS, "ms"),
        ),
        steady.starved,
        steady.windows,
    )


def unslowed(bench: Bench, load: str, rate: float, iterations: int, *, bar: float = 0.01) -> Verdict:
    """An application that asks for less than its rate: its time with the hook over its time without.

    Runs with and without take turns and the quickest of each count, because a busy host only ever adds time; there are more
    turns while the bar is missed, up to a limit.
    """
    bench.gpu()
    fastest = {False: math.inf, True: math.inf}
    slowdown = math.inf
    for attempt in range(_TURNS):
        for hooked in (False, True):
            container = bench.container(f"{'hooked' if hooked else 'bare'}-{attempt}", hooked=hooked)
            container.set_rate(rate)
            report = finish(container.start("sair-load", load, f"iterations={iterations}"))
            fastest[hooked] = min(fastest[hooked], (report["until_ns"] - report["from_ns"]) / 1e9)
        slowdown = fastest[True] / fastest[False] - 1
        if attempt >= 2 and slowdown <= bar:
            break
    return Verdict(
        "an application that asks for less than its rate",
        f"{load}, r = {rate}",
        (
            Figure("alone", fastest[False], None, " s"),
            Figure("with the hook", fastest[True], None, " s"),
            Figure("slowdown, %", 100 * slowdown, 100 * bar),
        ),
    )


def siblings(bench: Bench, shape: Shape, rate: float, count: int, bar: float = 2.0) -> Verdict:
    """Several processes of one container share one budget; the bar in points."""
    gpu = bench.gpu()
    container = bench.container("one")
    container.set_rate(rate)
    commands = [("sair-load", shape.load)] * count
    with _running([(container, commands)]) as processes, Starvation(processes) as starvation:
        start = _await_work(gpu, ["one"], processes)
        from_ns = start + 1_000_000_000
        until_ns = from_ns + int(bench.seconds * 1e9)
        _sleep_until(until_ns)
        busy = gpu.busy_bins("one", from_ns, until_ns)
        starved = starvation.bins(from_ns, until_ns)
    wide = _error(busy, rate, 1000, starved)
    return Verdict(
        "processes that share one container's budget",
        f"{count} x {shape.name}, r = {rate}{_on(bench)}",
        (
            Figure("share", 100 * wide.mean, None, "%"),
            Figure("1 s", 100 * wide.mean_absolute, bar),
        ),
        wide.starved,
        wide.windows,
    )


def pair(
    bench: Bench,
    first: Shape,
    second: Shape,
    bias_permille: int = 0,
    counts: tuple[int, int] = (1, 1),
    rates: tuple[float, float] = (0.3, 0.6),
) -> Verdict:
    """Two containers on one GPU, of so many processes each; the bar is 1.5 points with the node agent, 3 without.

    With an NVML that is biased, each container first has the GPU alone for a while, because only then can the hook tell its
    own measurement from NVML's. Without the agent, long kernels are measured in the rare long quiet periods, so these rows
    begin later.
    """
    gpu = bench.gpu()
    gpu.configure("nvml_bias_permille", bias_permille)
    shapes = {"a": (first, rates[0]), "b": (second, rates[1])}
    containers = []
    for (name, (shape, rate)), count in zip(shapes.items(), counts, strict=True):
        container = bench.container(name)
        container.set_rate(rate)
        containers.append((container, [("sair-load", shape.load)] * count))
    processes_of = {"a": slice(0, counts[0]), "b": slice(counts[0], None)}
    with _agent(bench), _running(containers) as processes, Starvation(processes) as starvation:
        start = _await_work(gpu, list(shapes), processes)
        if bench.agent:
            _await_agent([container for container, _ in containers])
            start = time.monotonic_ns()
        if bias_permille:
            _alone_in_turn(processes)
            start = time.monotonic_ns()
        from_ns = start + int(_lead_s(bench, (first, second), counts) * 1e9)
        until_ns = from_ns + int(bench.seconds * 1e9)
        _sleep_until(until_ns)
        errors = {
            name: _error(
                gpu.busy_bins(name, from_ns, until_ns),
                rate,
                1000,
                starvation.bins(from_ns, until_ns, processes_of[name]),
            )
            for name, (_, rate) in shapes.items()
        }
    bars = {name: 100 * _pair_bar(shape, rate, agent=bench.agent) for name, (shape, rate) in shapes.items()}
    biased = f", NVML off by {bias_permille / 10:+g} %" if bias_permille else ""
    agent = "with" if bench.agent else "without"
    return Verdict(
        f"two containers at {rates[0]} and {rates[1]}, {bench.arbiter}, {agent} the node agent{biased}",
        " / ".join(
            f"{n} x {shape.name}" if n > 1 else shape.name for n, shape in zip(counts, (first, second), strict=True)
        ),
        (
            Figure("share a", 100 * errors["a"].mean, None, "%"),
            Figure("share b", 100 * errors["b"].mean, None, "%"),
            Figure("a, 1 s", 100 * errors["a"].mean_absolute, bars["a"]),
            Figure("b, 1 s", 100 * errors["b"].mean_absolute, bars["b"]),
        ),
        *_least_seen(*errors.values()),
    )


def _lead_s(bench: Bench, shapes: Sequence[Shape], counts: Sequence[int]) -> float:
    if bench.agent:
        return _LEAD_S
    if any(shape.kernel_ms > LONG_KERNEL_MS[1000] for shape in shapes):
        return _LONG_LEAD_S
    return _TURNS_LEAD_S if max(counts) > 1 else _LEAD_S


def _pair_bar(shape: Shape, rate: float, *, agent: bool) -> float:
    """As a fraction of the GPU; for kernels longer than the windows resolve, the ideal limiter's error and a point are added."""
    bar = 0.015 if agent else 0.03
    is_long = shape.kernel_ms > LONG_KERNEL_MS[1000]
    return bar + (ideal_error(shape.kernel_ms, rate, 1000) + 0.01 if is_long else 0.0)


def _await_agent(containers: Sequence[Container]) -> None:
    """Wait until the agent has written into every page."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while any(not Page.has_agent(container.page) for container in containers):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the node agent wrote into no page within {START_TIMEOUT_S} s")
        time.sleep(0.05)


def _alone_in_turn(processes: Sequence[subprocess.Popen[str]]) -> None:
    for alone in processes:
        for process in processes:
            process.send_signal(signal.SIGCONT if process is alone else signal.SIGSTOP)
        time.sleep(_ALONE_S)
    for process in processes:
        process.send_signal(signal.SIGCONT)


@contextmanager
def _agent(bench: Bench) -> Iterator[None]:
    if not bench.agent:
        yield
        return
    from cuda_hook.accuracy.beside import node_agent  # noqa: PLC0415 - only rows with an agent need NVML

    with node_agent(bench.directory, pods_path=bench.directory / "pods"):
        yield
