from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.ground_truth import BUILD, GroundTruth
from cuda_hook.gpu_check.device import PTX
from cuda_hook.gpu_check.worker import busy_bins

ROOT = Path(__file__).resolve().parents[3]


def test_busy_time_is_the_union_of_the_kernels() -> None:
    ms = 1_000_000
    stamps = np.array([[10 * ms, 13 * ms], [12 * ms, 14 * ms], [16 * ms, 17 * ms], [11 * ms, 12 * ms]], dtype=np.uint64)
    # From 10 to 14 and from 16 to 17, seen from 10 on.
    assert busy_bins(stamps).tolist() == [ms, ms, ms, ms, 0, 0, ms]


def test_part_of_a_bin_counts_as_part() -> None:
    stamps = np.array([[0, 500_000], [1_250_000, 1_500_000], [2_900_000, 4_000_000]], dtype=np.uint64)
    assert busy_bins(stamps).tolist() == [500_000, 250_000, 100_000, 1_000_000]


@pytest.mark.parametrize("kind", ["kernel", "cooperative", "ptsz", "graph", "mix"])
def test_the_worker_drives_every_shape(bench: Bench, gpu: GroundTruth, kind: str) -> None:
    environment = bench.container("worker", hooked=False).environment({"PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-m", "cuda_hook.gpu_check.worker", kind, "1000", "132", "1", "0.2", "1.0", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    assert report["launches"] > 0
    assert gpu.busy_ns("worker") > 0


def test_without_a_gpu_the_check_says_so_and_exits_2(hook: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cuda_hook.gpu_check"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/nonexistent", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no GPU to check on" in done.stderr


@pytest.mark.parametrize(
    ("group", "rows"),
    [
        ("shapes", ["1 ms, grid 8192, async, r = 0.5", "mix 20 us / 10 ms, 4 streams, r = 0.5"]),
        ("launches", ["driver alone", "hook, r = 1.0"]),
        ("tenants", ["200 us, one block per SM / 1 ms, grid 8192, async"]),
    ],
)
def test_the_check_runs_to_its_table(hook: Path, bench: Bench, gpu: GroundTruth, group: str, rows: list[str]) -> None:
    environment = bench.container("check", hooked=False).environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [sys.executable, "-m", "cuda_hook.gpu_check", "--seconds", "2", "--rates", "0.5", "--only", group],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # Bars are missed: simulated kernels stamp nothing, and the host may be busy. The table has to be there.
    assert done.returncode in (0, 1), done.stderr
    assert "Simulated GPU 0" in done.stdout
    for row in rows:
        line = next(line for line in done.stdout.splitlines() if row in line)
        assert group != "launches" or "none" not in line
    assert "failed" not in done.stdout


def test_the_kernels_text_names_its_entry_and_parameters() -> None:
    text = PTX.decode()
    assert ".visible .entry spin_arg(.param .u64 p_ns, .param .u64 p_stamps)" in text
    assert ".visible .entry spin_arg_log(" in text
    # Braces and labels pair up: two kernels, each with its own loop and way out.
    assert text.count("{") == text.count("}") == 2
    assert text.count("SPIN:") == text.count("DONE:") == text.count("ret;") == 2


def test_the_launch_cost_program_builds_and_measures(driver: None, gpu: GroundTruth, tmp_path: Path) -> None:
    source, program = ROOT / "cuda_hook" / "gpu_check" / "launch_cost.c", tmp_path / "launch-cost"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(program), str(source), "-ldl"], check=True)
    (tmp_path / "kernel.ptx").write_bytes(PTX + b"\0")
    environment = {"LD_LIBRARY_PATH": str(BUILD / "driver"), "SAIR_SIMGPU_PATH": str(gpu.path), "SAIR_SIMGPU_NULL": "1"}
    for options in ([], ["events_every=64"]):
        command = [str(program), str(tmp_path / "kernel.ptx"), *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["ns_per_launch"] > 0
