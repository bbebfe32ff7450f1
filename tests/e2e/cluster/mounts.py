"""Mounts of the harness's own, found in this process's mount namespace."""

import subprocess
from collections.abc import Iterable
from pathlib import Path


def mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True)


def unmount(points: Iterable[str]) -> None:
    """Unmount them, even while something uses them; one that is gone already is fine."""
    for point in points:
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
