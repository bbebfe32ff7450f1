"""The agent at work: real hook, simulated driver and NVML, real HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.ground_truth import BUILD, GroundTruth
from cuda_hook.agent.page import Page

ROOT = Path(__file__).resolve().parents[3]

Metrics = dict[str, dict[str, float]]
"""Metric → pod UID → value."""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def agent(hook: Path, bench: Bench, gpu: GroundTruth, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(BUILD / "driver"),
        "SAIR_SIMGPU_PATH": str(gpu.path),
        "SAIR_AGENT_PODS_PATH": str(bench.directory / "pods"),
        "SAIR_AGENT_HOST": "127.0.0.1",
        "SAIR_AGENT_PORT": str(port),
        "SAIR_AGENT_DISCOVERY_S": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-m", "cuda_hook.agent", "serve"], env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def _metrics(port: int) -> Metrics:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("pod_uid", sample.labels.get("uuid", ""))] = (
                sample.value
            )
    return found


def _until(port: int, condition: Callable[[Metrics], bool], *, timeout_s: float = 30.0) -> Metrics:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            metrics = _metrics(port)
            if condition(metrics):
                return metrics
        except OSError:
            metrics = {}
        assert time.monotonic() < deadline, f"never came true; last seen: {metrics.get('sair_gpu_rate')}"
        time.sleep(0.1)


@pytest.fixture
def two_loads(agent: subprocess.Popen[bytes], bench: Bench, gpu: GroundTruth) -> Iterator[None]:
    processes = []
    for name, rate, load in (("pod-a", 0.3, "kernel:1000:8192"), ("pod-b", 0.5, "kernel:200:132")):
        container = bench.container(name)
        container.set_rate(rate)
        processes.append(container.start("sair-load", load))
    yield
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_metrics_tell_what_the_containers_do(two_loads: None, gpu: GroundTruth, port: int) -> None:
    seen = _until(port, lambda m: min(m.get("sair_gpu_busy_seconds_total", {"": 0.0}).values()) > 0.3)
    assert seen["sair_gpu_rate"] == pytest.approx({"pod-a": 0.3, "pod-b": 0.5})
    assert seen["sair_gpu_processes"] == {"pod-a": 1.0, "pod-b": 1.0}
    assert all(value > 100 for value in seen["sair_gpu_launches_total"].values())
    assert all(value > 0 for value in seen["sair_gpu_throttled_seconds_total"].values())
    (card,) = seen["sair_node_gpu_memory_bytes"]
    assert card.startswith("GPU-")
    # Counters never exceed what the device itself saw by the time they are compared with it.
    for name in ("pod-a", "pod-b"):
        assert seen["sair_gpu_busy_seconds_total"][name] <= 1.05 * gpu.busy_ns(name) / 1e9 + 0.05


def test_nvmls_busy_time_agrees_with_the_device(two_loads: None, gpu: GroundTruth, port: int) -> None:
    _until(port, lambda m: min(m.get("sair_gpu_nvml_busy_seconds_total", {"": 0.0}).values()) > 0.3)
    first, start = _metrics(port), {name: gpu.busy_ns(name) for name in ("pod-a", "pod-b")}
    time.sleep(2.5)
    second = _metrics(port)
    for name, before in start.items():
        counter = "sair_gpu_nvml_busy_seconds_total"
        by_nvml = second[counter][name] - first[counter][name]
        truth = (gpu.busy_ns(name) - before) / 1e9
        # Both ends are blurred by a sample of 167 ms.
        assert by_nvml == pytest.approx(truth, abs=0.2)


def test_each_page_learns_of_its_peers_and_loses_them(
    agent: subprocess.Popen[bytes], bench: Bench, gpu: GroundTruth, port: int
) -> None:
    first, second = bench.container("pod-a"), bench.container("pod-b")
    first.set_rate(0.3)
    second.set_rate(0.3)
    process, peer = first.start("sair-load", "kernel:1000:132"), second.start("sair-load", "kernel:1000:132")
    try:
        _until(port, lambda m: set(m.get("sair_gpu_rate", {})) == {"pod-a", "pod-b"})
        time.sleep(0.6)
        assert _block(first.page)["peers_active"] == 1
        peer.send_signal(signal.SIGKILL)
        peer.communicate()
        killed = time.monotonic_ns()
        deadline = time.monotonic() + 10
        while (block := _block(first.page))["peers_active"] > 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # What it left behind counts for half a second at most.
        assert 0 < block["peers_last_active_ns"] < killed + 1_000_000_000
        assert time.monotonic_ns() - block["updated_ns"] < 2_000_000_000
    finally:
        for each in (process, peer):
            each.send_signal(signal.SIGKILL)
            each.communicate()


def _block(path: Path) -> dict[str, int]:
    names = ("updated_ns", "peers_last_active_ns", "own_busy_ns", "own_busy_from_ns", "own_busy_until_ns")
    data = path.read_bytes()[256 : 256 + 64]
    values = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(1, 6)]
    return dict(zip(names, values, strict=True)) | {"peers_active": int.from_bytes(data[48:52], "little")}


def test_a_process_that_belongs_to_no_page_is_a_peer(
    agent: subprocess.Popen[bytes], bench: Bench, gpu: GroundTruth, port: int
) -> None:
    container = bench.container("pod-a")
    container.set_rate(0.3)
    own = container.start("sair-load", "kernel:1000:132")
    stranger = bench.container("stranger", hooked=False).start("sair-load", "kernel:1000:132:sync:pause=500")
    try:
        _until(port, lambda m: "pod-a" in m.get("sair_gpu_rate", {}))
        deadline = time.monotonic() + 20
        while _block(container.page)["peers_active"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for each in (own, stranger):
            each.send_signal(signal.SIGKILL)
            each.communicate()


def test_a_page_of_garbage_is_counted_and_harms_nobody(
    agent: subprocess.Popen[bytes], bench: Bench, gpu: GroundTruth, port: int
) -> None:
    bad = bench.container("pod-bad")
    bad.set_rate(0.3)
    bad.page.write_bytes(b"garbage")
    good = bench.container("pod-good")
    good.set_rate(0.3)
    process = good.start("sair-load", "kernel:1000:132")
    try:
        seen = _until(port, lambda m: "pod-good" in m.get("sair_gpu_rate", {}))
        assert seen["sair_agent_pages_refused"] == {"": 1.0}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_without_nvml_pages_are_still_read(hook: Path, tmp_path: Path, port: int) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "SAIR_AGENT_NVML_LIBRARY": "/nonexistent/libnvidia-ml.so.1",
        "SAIR_AGENT_PODS_PATH": str(tmp_path),
        "SAIR_AGENT_HOST": "127.0.0.1",
        "SAIR_AGENT_PORT": str(port),
    }
    process = subprocess.Popen([sys.executable, "-m", "cuda_hook.agent", "serve"], env=environment)
    try:
        seen = _until(port, lambda m: "sair_agent_pages_refused" in m)
        assert seen["sair_agent_pages_refused"] == {"": 0.0}
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_the_inventory_command_prints_the_annotation(gpu: GroundTruth) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(BUILD / "driver"),
        "SAIR_SIMGPU_PATH": str(gpu.path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cuda_hook.agent", "inventory"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"memoryMi":81920' in done.stdout
    assert '"model":"Simulated GPU 0"' in done.stdout


def test_the_agent_reads_the_page_of_a_hook_at_work(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    process = container.start("sair-load", "kernel:1000:132")
    try:
        deadline = time.monotonic() + 20
        while gpu.busy_ns("one") < 500_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Page(container.page) as page:
            view = page.read()
        assert view.rate == 0.5
        (slot,) = view.slots
        assert slot.pid == process.pid
        assert slot.launches > 400
        (section,) = view.gpus
        # pages and NVML name the same card
        assert section.uuid == "GPU-53414952-2d53-494d-2d47-50552d000000"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
