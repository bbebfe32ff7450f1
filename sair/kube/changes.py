"""What a reflector delivers: typed events, in the order in which they happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Added", "Change", "Deleted", "Malformed", "Modified", "Synced"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Added(Generic[T]):
    """An object appeared. ``key`` is ``namespace/name``."""

    key: str
    object: T
    resource_version: str


@dataclass(frozen=True, slots=True)
class Modified(Generic[T]):
    """An object changed; ``old`` is the last good version known before."""

    key: str
    object: T
    old: T
    resource_version: str


@dataclass(frozen=True, slots=True)
class Deleted(Generic[T]):
    """An object is gone, or no longer matches the selectors.

    ``object`` is its final state where the server told it, else the last good version; ``old`` is the last good version.
    """

    key: str
    object: T
    old: T
    resource_version: str


@dataclass(frozen=True, slots=True)
class Malformed(Generic[T]):
    """An object could not be parsed; ``last_good`` stays in the store and is None if there never was one."""

    key: str
    error: str
    last_good: T | None
    resource_version: str


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that existed at ``resource_version`` has been delivered; comes after each complete list, the first above all."""

    count: int
    resource_version: str


Change: TypeAlias = Added[T] | Modified[T] | Deleted[T] | Malformed[T] | Synced
