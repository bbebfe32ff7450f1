"""Which container a process of the host belongs to.

A page names a process as its container counts it, NVML as the host does. Both names and the start time stand in /proc, where
the last number of ``NSpid`` is the innermost namespace's; start times are counted since boot in every namespace.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["Identity", "identify"]

Identity = tuple[int, int]
"""pid as its own namespace sees it, start time in ticks since boot."""


def identify(pid: int, *, proc: Path = Path("/proc")) -> Identity | None:
    """Look a process of the host up.

    Args:
        pid: As the host counts.
        proc: The host's /proc.

    Returns:
        How its own container names it, or None if it is gone.
    """
    try:
        status = (proc / str(pid) / "status").read_text()
        # The second field, a name in parentheses, may hold anything; the start time is the 20th field after it.
        ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    inner = pid
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            inner = int(line.split()[-1])
    return inner, ticks
