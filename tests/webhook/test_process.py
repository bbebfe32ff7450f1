"""The webhook as a process: how it starts, stops, and refuses to start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster.control_plane import ControlPlane
from tests.webhook.cluster import SERVICE_ACCOUNT, installed


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane) -> Iterator[Path]:
    with installed(control_plane):
        yield control_plane.client_kubeconfig(SERVICE_ACCOUNT)


def _start(**settings: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAIR_")}
    variables = {f"SAIR_WEBHOOK_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "webhook", "serve"]
    return subprocess.Popen(
        command, env={**kept, **variables}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_it_becomes_ready_and_ends_cleanly_when_told_to(kubeconfig: Path) -> None:
    port = _free_port()
    process = _start(
        hook_image="example/sair-hook:1",
        kubeconfig=str(kubeconfig),
        metrics_port=str(port),
        listen_port=str(_free_port()),
    )
    try:
        deadline = time.monotonic() + 30
        while not _ready(port):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=15)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, log
    assert '"event": "serving"' in log
    assert "PRIVATE" not in log and "Traceback" not in log


def test_it_does_not_start_with_a_wrong_setting_and_names_it() -> None:
    process = _start(hook_image="example/sair-hook:1", listen_port="http")

    _, log = process.communicate(timeout=30)

    assert process.returncode != 0
    assert "SAIR_WEBHOOK_LISTEN_PORT: 'http' is not allowed; expected whole number" in log
