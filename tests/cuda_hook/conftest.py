"""The simulated driver and the hook, built once; containers on simulated GPUs; programs in processes of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.container import Container, hook_library
from cuda_hook.accuracy.ground_truth import GroundTruth

ROOT = Path(__file__).resolve().parents[2]


def _make(*arguments: str) -> None:
    assert shutil.which("make") and shutil.which("gcc"), "make and gcc are needed to build the simulated driver"
    done = subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def driver() -> None:
    """The simulated driver is built."""
    _make("-f", "cuda_hook/tests/driver/driver.mk")


@pytest.fixture(scope="session")
def hook(driver: None) -> Path:
    """The hook is built; where it is."""
    _make("-C", "cuda_hook")
    return hook_library()


@pytest.fixture
def bench(driver: None, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def gpu(bench: Bench) -> GroundTruth:
    """A simulated GPU of this test's own."""
    return bench.gpu()


RunProgram = Callable[..., str]


@pytest.fixture
def run_program() -> RunProgram:
    """Runs a function of ``tests.cuda_hook.programs`` in a process inside a container; gives what it printed."""

    def run(
        program: Callable[[], None],
        container: Container,
        *,
        extra: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> str:
        if not container.grant.exists():
            container.set_rate(1.0)
        code = f"from {program.__module__} import {program.__name__} as program; program()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=container.environment({"PYTHONPATH": str(ROOT), **(extra or {})}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{program.__name__} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
