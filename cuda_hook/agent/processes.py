"""Which container a process of the host belongs to.

Its cgroup names its pod. A page names a process as its container counts it, NVML as the host does. Both names and the start time
stand in /proc, where the last number of ``NSpid`` is the innermost namespace's; start times are counted since boot in every
namespace, in steps of 10 ms. Two pods may well have a process 1 of the same step, and a page holds what its tenant wrote:
names count inside their own pod only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Identity", "Name", "identify", "owner_of"]

Name = tuple[int, int]
"""pid as its own namespace sees it, start time in ticks since boot."""

# As kubelet's two cgroup drivers write it; a static pod's UID is a digest.
_POD = re.compile(
    r"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=\.slice|/|$)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A process of the host."""

    pod: str | None
    """UID of its pod; None if its cgroup names none."""
    name: Name


def identify(pid: int, *, proc: Path = Path("/proc")) -> Identity | None:
    """Look a process of the host up.

    Args:
        pid: As the host counts.
        proc: The host's /proc.

    Returns:
        Its pod and how its own container names it, or None if it is gone.
    """
    try:
        status = (proc / str(pid) / "status").read_text()
        # The second field, a name in parentheses, may hold anything; the start time is the 20th field after it.
        ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        pods = _POD.findall((proc / str(pid) / "cgroup").read_text())
    except (OSError, ValueError, IndexError):
        return None
    inner = pid
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            inner = int(line.split()[-1])
    return Identity(pods[-1].replace("_", "-") if pods else None, (inner, ticks))


def owner_of(identity: Identity | None, claims: Mapping[Name, Collection[str]]) -> str | None:
    """Tell the tenant that a process belongs to.

    Args:
        identity: The process.
        claims: Name → tenants (pod UIDs) whose pages name such a process.

    Returns:
        The tenant: the process's own pod where its cgroup names one, otherwise the only one that claims it. None if there is none.
    """
    if identity is None:
        return None
    claimants = claims.get(identity.name, ())
    if identity.pod is not None:
        return identity.pod if identity.pod in claimants else None
    return next(iter(claimants)) if len(claimants) == 1 else None
