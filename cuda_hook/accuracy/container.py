"""A container of the suite: a grant file, a stats page and the processes that run under the hook."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cuda_hook.accuracy.ground_truth import BUILD

__all__ = ["Container", "Starvation", "finish", "hook_library"]

_SANITIZERS = ("ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")

_POLL_S = 0.02


def hook_library() -> Path:
    """Where the hook is built."""
    return BUILD / "libsair_cuda.so"


def _preloaded() -> str:
    """What the loader puts first: the hook, or an instrumented build behind its sanitizer's runtime (SAIR_HOOK_PRELOAD)."""
    return os.environ.get("SAIR_HOOK_PRELOAD", str(hook_library()))


class Starvation:
    """Watches how long the threads of some processes were ready to run but had no processor (/proc/…/schedstat).

    A share that is missed because the host never ran the application says nothing about the limiter; windows in which
    that happened are left out by the suite, and counted.
    """

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._samples: list[tuple[int, list[int]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._samples.append((time.monotonic_ns(), self._delays_ns()))

    def _delays_ns(self) -> list[int]:
        delays = []
        for process in self._processes:
            total = 0
            for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                try:
                    total += int(task.read_text().split()[1])
                except (OSError, IndexError):
                    continue  # the thread ended meanwhile
            delays.append(total)
        return delays

    def bins(self, from_ns: int, until_ns: int, processes: slice | None = None) -> NDArray[np.int64]:
        """Delay per bin of 1 ms, each poll's increase spread evenly over the time since the poll before.

        Args:
            from_ns: Start, on CLOCK_MONOTONIC.
            until_ns: End.
            processes: Of which processes; any of them could have used the container's budget, so the least delayed counts.
        """
        first, count = from_ns // 1_000_000, until_ns // 1_000_000 - from_ns // 1_000_000
        if len(self._samples) < 2:
            return np.zeros(count, dtype=np.int64)
        times = np.array([t / 1e6 - first for t, _ in self._samples])
        totals = np.array([delays for _, delays in self._samples], dtype=np.float64)[:, processes or slice(None)]
        edges = np.arange(count + 1)
        each = [np.diff(np.interp(edges, times, np.maximum.accumulate(column))) for column in totals.T]
        return np.asarray(np.min(each, axis=0), dtype=np.int64)


@dataclass(slots=True)
class Container:
    """Processes that share one grant.

    Attributes:
        name: Tenant under which the simulated GPU accounts them.
        directory: Where grant file and stats page are.
        gpu: Shared file of the simulated GPU.
        hooked: False runs them without the hook, for comparison.
    """

    name: str
    directory: Path
    gpu: Path
    hooked: bool = True

    @property
    def grant(self) -> Path:
        """The grant file."""
        return self.directory / "gpu-granted"

    @property
    def page(self) -> Path:
        """The stats page, where kubelet puts a memory volume of the pod."""
        return self.directory / "volumes" / "kubernetes.io~empty-dir" / "sair-stats" / "stats"

    def set_rate(self, rate: float) -> None:
        """Grant a rate the way kubelet does: a new file that takes the old one's name."""
        self.page.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.directory / ".gpu-granted"
        fresh.write_text(f"{rate:g}")
        fresh.rename(self.grant)

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """The variables a process of the container runs with."""
        values = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LD_LIBRARY_PATH": str(BUILD / "driver"),
            "SAIR_SIMGPU_PATH": str(self.gpu),
            "SAIR_SIMGPU_TENANT": self.name,
        }
        values |= {name: os.environ[name] for name in _SANITIZERS if name in os.environ}
        if self.hooked:
            values |= {
                "LD_PRELOAD": _preloaded(),
                "SAIR_GRANT_FILE": str(self.grant),
                "SAIR_STATS_PATH": str(self.page),
            }
        return values | (extra or {})

    def start(self, *command: str, extra: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a program of the build directory in the container, such as ``sair-load``."""
        program = BUILD / "driver" / command[0]
        return subprocess.Popen(  # noqa: S603  # our own program
            [str(program), *command[1:]],
            env=self.environment(extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str], *, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait for a load generator and parse its report.

    Raises:
        RuntimeError: If it failed or printed none.
    """
    out, errors = process.communicate(timeout=timeout_s)
    if process.returncode != 0 or not out.strip():
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {errors.strip() or out.strip()}")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report
