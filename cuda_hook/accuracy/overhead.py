"""What the hook adds to one launch: nanoseconds and, beside them, instructions, which no neighbour can disturb."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.container import Container, finish
from cuda_hook.accuracy.ground_truth import BUILD
from cuda_hook.accuracy.verdict import Figure, Verdict

__all__ = ["instructions", "overhead"]

_ROUNDS = 5
_NULL = {"SAIR_SIMGPU_NULL": "1"}
_COUNTED = (20_000, 60_000)


def overhead(bench: Bench) -> list[Verdict]:
    """Cost per uncontended launch over calling the driver directly, throttling armed (r = 0.5) and at r = 1.

    Each is the fastest of several runs that alternate, so that a busy host slows all alike.
    """
    bench.gpu()
    bare = bench.container("bare", hooked=False)
    armed, free = bench.container("armed"), bench.container("free")
    bare.set_rate(1.0)
    armed.set_rate(0.5)
    free.set_rate(1.0)
    fastest: dict[str, float] = {}
    for _ in range(_ROUNDS):
        for container in (bare, armed, free):
            took = float(finish(container.start("sair-overhead", extra=_NULL))["ns_per_launch"])
            fastest[container.name] = min(took, fastest.get(container.name, took))
    counts = {container.name: instructions(container, bench.directory) for container in (bare, armed, free)}
    return [
        Verdict(
            "cost per uncontended launch, over calling the driver directly",
            case,
            (
                Figure("added, ns", fastest[name] - fastest["bare"], bar),
                Figure("added instructions", counts[name] - counts["bare"], None),
                Figure("driver alone, ns", fastest["bare"], None),
            ),
        )
        for name, case, bar in (("armed", "r = 0.5, never throttled", 30.0), ("free", "r = 1", 10.0))
    ]


def instructions(container: Container, directory: Path) -> float:
    """Instructions per launch: the difference between two runs of different length; NaN without valgrind."""
    if shutil.which("valgrind") is None:
        return float("nan")
    totals = [_collected(container, directory, launches) for launches in _COUNTED]
    return (totals[1] - totals[0]) / (_COUNTED[1] - _COUNTED[0])


def _collected(container: Container, directory: Path, launches: int) -> int:
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory / 'callgrind.out'}"]
    done = subprocess.run(  # noqa: S603  # our own program
        [*command, str(BUILD / "driver" / "sair-overhead"), f"launches={launches}", "rounds=1"],
        env=container.environment(_NULL),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"callgrind ended with {done.returncode}: {done.stderr[-500:]}")
    return int(found[1])
