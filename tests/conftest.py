"""Fixtures for every test: a real Redis-compatible server, and an event loop that must not be blocked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio as redis
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from controller.memory.embedded import embedded_server
from controller.memory.store import Store

_TOLD_OF_A_RERUN = 12
"""Last lines of what a test says that is run again."""

pytest_plugins = ["tests.controlplane", "tests.llamacpp"]

# Machines are shared and noisy: no example is judged by its time, and failures repeat.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _event_loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """A blocking call inside a coroutine of ours fails the test."""
    if request.node.get_closest_marker("blocking_allowed"):
        yield None
        return
    with blockbuster_ctx(["sair", "webhook", "extender", "controller", "cuda_hook"]) as guard:
        for function in guard.functions.values():
            # It runs on a loop of its own, in a thread of its own.
            function.can_block_in("sair/kube/connection.py", "_read_kubeconfig")
        # Libraries import parts of themselves at the first call.
        for function in guard.functions.values():
            function.can_block_in(
                "<frozen importlib._bootstrap_external>", {"_path_stat", "get_data", "_path_isfile", "path_stats"}
            )
            function.can_block_in("importlib/metadata/__init__.py", {"read_text", "version"})
            function.can_block_in("asyncio/unix_events.py", {"_start"})
        yield guard


@pytest.fixture(autouse=True)
def _logging_is_as_it_was() -> Iterator[None]:
    """A command under test sets logging up for its process, onto a stderr that ends with the command."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of a real server that lives as long as the test run."""
    folder: Path = tmp_path_factory.mktemp("redis")
    async with embedded_server(folder) as url:
        yield url


@pytest_asyncio.fixture
async def redis_url(redis_server: str) -> AsyncIterator[str]:
    """URL of an empty database."""
    client = redis.from_url(redis_server)
    await client.flushall()
    await client.aclose()
    yield redis_server


@pytest_asyncio.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """A store on an empty database."""
    opened = Store.from_url(redis_url)
    yield opened
    await opened.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a test was run again: where it passes afterwards, nothing else does."""
    reports = terminalreporter.stats.get("rerun", [])
    if reports:
        terminalreporter.section("why tests were run again")
    for report in reports:
        terminalreporter.write_line(f"{report.nodeid} ({report.when}):")
        for line in report.longreprtext.splitlines()[-_TOLD_OF_A_RERUN:]:
            terminalreporter.write_line(f"    {line}")
