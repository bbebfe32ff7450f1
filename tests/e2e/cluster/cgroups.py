"""One cgroup for each node, under every hierarchy that the machine mounts (version 1) or under the one there is (version 2)."""

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.e2e.cluster.errors import ClusterError

_ROOT = Path("/sys/fs/cgroup")


def create(name: str) -> None:
    """Make a cgroup of that name in each hierarchy; kubelet makes its own below it."""
    for hierarchy in _hierarchies():
        cgroup = hierarchy / name
        cgroup.mkdir(exist_ok=True)
        # A version 1 cpuset starts empty and takes no process until it has processors and memory.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy != _ROOT and (hierarchy / file).exists():
                (cgroup / file).write_text((hierarchy / file).read_text())
        if hierarchy == _ROOT:
            controllers = (_ROOT / "cgroup.controllers").read_text().split()
            for level in (_ROOT, cgroup):
                (level / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in controllers))


def remove(name: str, *, timeout_s: float = 10.0) -> None:
    """Remove the cgroup of that name and all below it, in each hierarchy; what is not there is fine.

    A killed process can be slow to leave, hence the patience.

    Raises:
        ClusterError: a process is still in one of them after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while left := [path for hierarchy in _hierarchies() if (path := hierarchy / name).exists()]:
        for cgroup in left:
            for directory, _, _ in os.walk(cgroup, topdown=False):
                # Busy while a killed process is still ending.
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        if time.monotonic() > deadline:
            raise ClusterError(f"processes remain in {', '.join(map(str, left))}")
        time.sleep(0.01)


def kill(prefix: str, pod: str) -> None:
    """SIGKILL every process of a pod.

    Args:
        prefix: what the names of the nodes' cgroups begin with.
        pod: its uid.
    """
    for procs in _hierarchies()[0].glob(f"{prefix}*/**/pod{pod}/**/cgroup.procs"):
        for pid in procs.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def leftovers(prefix: str) -> list[str]:
    """Cgroups that exist now and whose name begins so, in words."""
    return [f"cgroup {path}" for hierarchy in _hierarchies() for path in hierarchy.glob(f"{prefix}*")]


def _hierarchies() -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    # Named and co-mounted hierarchies included, links to them left out.
    return [
        path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists()
    ]
