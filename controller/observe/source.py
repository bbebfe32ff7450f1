"""Where pods' metrics come from: their own endpoints, or a Prometheus server that scrapes them. Both leave the same series behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from controller.observe.series import PodSeries
from sair.annotations import MetricsEndpoint

__all__ = ["Source", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A pod whose metrics are wanted."""

    key: str
    """``namespace/pod/uid``."""
    host: str
    endpoint: MetricsEndpoint
    began_s: float | None = None
    """When its container began, Unix seconds; None if nobody knows."""

    @property
    def pod(self) -> tuple[str, str]:
        """Namespace and name."""
        namespace, name, *_ = self.key.split("/")
        return namespace, name


class Source(Protocol):
    """Keeps a PodSeries per pod that was ever asked for."""

    @property
    def series(self) -> Mapping[str, PodSeries]:
        """What pods said, by ``Target.key``; none of a pod that never said anything."""
        ...

    @property
    def problems(self) -> Mapping[str, str]:
        """What was wrong when a pod was last asked, for those with which something was."""
        ...

    @property
    def failures(self) -> int:
        """Times a pod's metrics could not be had, ever."""
        ...

    async def scrape(self, targets: Iterable[Target]) -> None:
        """Bring the series of some pods up to date; never raises, a pod without an answer keeps its old numbers, which age."""
        ...

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget pods that are gone."""
        ...
