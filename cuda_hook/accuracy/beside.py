"""The real node agent beside the containers of a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuda_hook.accuracy.ground_truth import BUILD

__all__ = ["node_agent"]


@contextmanager
def node_agent(directory: Path, *, pods_path: Path, port: int = 0, period_ms: int = 100) -> Iterator[None]:
    """Run ``sair agent serve`` on the simulated NVML while the context is open.

    Args:
        directory: The measurement's directory, with the simulated GPU in it.
        pods_path: Folder laid out as kubelet's folder of pods.
        port: Of its metrics; 0 takes any.
        period_ms: Between two looks.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SAIR_")},
        "LD_LIBRARY_PATH": str(BUILD / "driver"),
        "SAIR_SIMGPU_PATH": str(directory / "gpu"),
        "SAIR_AGENT_PODS_PATH": str(pods_path),
        "SAIR_AGENT_HOST": "127.0.0.1",
        "SAIR_AGENT_PORT": str(port),
        "SAIR_AGENT_PERIOD_MS": str(period_ms),
        "SAIR_AGENT_DISCOVERY_S": "0.2",
    }
    with (directory / "agent.log").open("w") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "cuda_hook.agent", "serve"], env=environment, stdout=log, stderr=log
        )
        try:
            yield
            if agent.poll() is not None:
                raise RuntimeError(f"the agent ended by itself: {(directory / 'agent.log').read_text()[-2000:]}")
        finally:
            agent.terminate()
            agent.wait(timeout=10)
