"""Building binaries and images: what is left of a build whose harness was killed."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.controlplane import give_up
from tests.e2e.cluster import binaries, images
from tests.e2e.cluster.errors import Unavailable
from tests.e2e.cluster.mounts import mounts_below

_BUILDER = """
import subprocess, sys
from tests.e2e.cluster.processes import perishable
subprocess.run(perishable(["sh", "-c", sys.argv[1]]))
"""
_LOCKS = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""
# Of this process alone, so that what an earlier one left behind is not taken for it.
_ENDLESS = str(86_400 + os.getpid())


@pytest.fixture
def _root() -> None:
    if os.geteuid() != 0:
        give_up(Unavailable("mounts and namespaces need root"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the machine's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return binaries.cache_root()


@pytest.mark.usefixtures("_root")
def test_its_processes_and_its_mounts_go_with_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    # As a build does: a mount, and a child that outlives its parent.
    build = f"mount -t tmpfs tmpfs {root} && touch {root}/mounted && sh -c 'sleep {_ENDLESS} & echo begun; wait'"
    harness = subprocess.Popen([sys.executable, "-c", _BUILDER, build], stdout=subprocess.PIPE)
    assert harness.stdout is not None
    try:
        with harness.stdout as said:
            assert said.readline() == b"begun\n"
        _within(5, _sleeping)
    finally:
        harness.kill()
        harness.wait()

    _within(5, lambda: not _sleeping())
    assert mounts_below(tmp_path) == []
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("_root")
def test_the_next_down_clears_its_scratch_directories_away_and_leaves_a_build_under_way_alone(cache: Path) -> None:
    scratch = [cache / "images" / "tmpabc" / "root" / "proc", cache / "kubernetes" / "0123" / "tmpdef"]
    for directory in scratch:
        directory.mkdir(parents=True)
    (cache / "kubernetes" / "0123" / "kubectl").touch()
    (cache / "kubernetes" / "0123" / ".lock").touch()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(scratch[0])], check=True)
    under_way = subprocess.Popen(
        [sys.executable, "-c", _LOCKS, str(cache / "images" / ".lock")], stdout=subprocess.PIPE
    )
    assert under_way.stdout is not None
    with under_way.stdout as said:
        said.readline()
    try:
        images.sweep()
        assert mounts_below(cache) == [str(scratch[0])]
    finally:
        under_way.kill()
        under_way.wait()

    images.sweep()
    binaries.sweep()

    assert mounts_below(cache) == []
    assert [path.name for path in (cache / "images").iterdir()] == [".lock"]
    assert sorted(path.name for path in (cache / "kubernetes" / "0123").iterdir()) == [".lock", "kubectl"]


def _sleeping() -> bool:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if process.read_bytes().split(b"\0")[:2] == [b"sleep", _ENDLESS.encode()]:
                return True
    return False


def _within(timeout_s: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.02)
