"""The pure core of a reflector: folds complete lists and watch events into a store and says what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from sair.errors import SairError, WireError
from sair.kube.changes import Added, Change, Deleted, Malformed, Modified, Synced
from sair.kube.page import Head

__all__ = ["Fold", "Listing"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """One object: the version last seen, and the last version that could be parsed."""

    uid: str
    resource_version: str
    good: T | None
    error: str | None


@dataclass(slots=True)
class Listing(Generic[T]):
    """A list that is being collected, page by page; folded in by ``Fold.replace`` once it is whole."""

    entries: dict[str, _Entry[T]] = field(default_factory=dict)


class Fold(Generic[T]):
    """The state machine: ``collect`` pages, ``replace`` by the whole list, then ``apply`` watch events; each returns changes.

    An object that cannot be parsed changes nothing but its flag: its last good version stays. Resource versions are compared as
    numbers where they are numbers, as Kubernetes promises for its own resources and CRDs; a list is the truth whatever its version
    (etcd may have been restored from a backup).

    Args:
        parse: Turns a raw object into a typed one (never None) or raises, preferably a SairError; what it
            says is kept.
    """

    def __init__(self, parse: Callable[[dict[str, Any]], T]) -> None:
        self._parse = parse
        self._entries: dict[str, _Entry[T]] = {}
        self._snapshot: Mapping[str, T] | None = None
        self._flagged: dict[str, str] = {}
        self.resource_version: str | None = None
        """Where to continue watching; None before the first list and after ``forget_version``."""
        self.parse_errors = 0
        """Versions that could not be parsed, ever."""

    def snapshot(self) -> Mapping[str, T]:
        """Give the last good version of every object, by key; a view that never changes."""
        if self._snapshot is None:
            self._snapshot = MappingProxyType(
                {key: entry.good for key, entry in self._entries.items() if entry.good is not None}
            )
        return self._snapshot

    def get(self, key: str) -> T | None:
        """Give one object's last good version."""
        entry = self._entries.get(key)
        return entry.good if entry else None

    @property
    def malformed(self) -> Mapping[str, str]:
        """What is wrong with each object whose latest version could not be parsed, by key."""
        return MappingProxyType(self._flagged)

    def forget_version(self) -> None:
        """Have the next step be a list; the store stays."""
        self.resource_version = None

    def collect(self, listing: Listing[T], items: Iterable[msgspec.Raw | bytes]) -> None:
        """Parse one page into a listing; of versions that the store already holds only the head is read.

        Args:
            listing: Grows by the page.
            items: Objects as JSON text.
        """
        for item in items:
            try:
                head = msgspec.json.decode(item, type=Head).metadata
            except msgspec.MsgspecError:
                # Without a name there is nothing to keep or to flag.
                self.parse_errors += 1
                continue
            known = self._entries.get(head.key)
            if known is not None and (known.uid, known.resource_version) == (head.uid, head.resource_version):
                listing.entries[head.key] = known
            else:
                listing.entries[head.key] = self._parsed(
                    msgspec.json.decode(item), head.uid, head.resource_version, known
                )

    def replace(self, listing: Listing[T], resource_version: str) -> list[Change[T]]:
        """Make a whole list the store's content.

        Args:
            listing: All pages, collected.
            resource_version: Of the list; where to watch from.

        Returns:
            The difference, what vanished before what came (so that a sum over the objects never counts both), then Synced.
        """
        changes: list[Change[T]] = []
        arrivals: list[Change[T]] = []
        for key, old in self._entries.items():
            new = listing.entries.get(key)
            if new is None or new.uid != old.uid:
                changes.extend(_gone(key, old, old.good, resource_version))
        for key, new in listing.entries.items():
            known = self._entries.get(key)
            if known is not new:
                arrivals.extend(_came(key, new, known if known and known.uid == new.uid else None))
        self._entries = listing.entries
        self._flagged = {key: entry.error for key, entry in self._entries.items() if entry.error is not None}
        self._snapshot = None
        self.resource_version = resource_version
        return [*changes, *arrivals, Synced(len(self._entries), resource_version)]

    def apply(self, event: Mapping[str, Any]) -> list[Change[T]]:
        """Fold one watch event in.

        Args:
            event: ``{"type": ADDED | MODIFIED | DELETED | BOOKMARK, "object": …}``.

        Returns:
            Nothing for a bookmark, a duplicate or something older than what is known; else one change, or two if another object
            took the name of one whose deletion was never told.

        Raises:
            WireError: If the type is another, or the object has no resource version or name.
        """
        kind, raw = event["type"], event["object"]
        version = _version(raw)
        if version is None:
            raise WireError("watch event", kind, "an object with metadata.resourceVersion")
        if kind == "BOOKMARK":
            if not _is_old(version, self.resource_version):
                self.resource_version = version
            return []
        identity = _identity(raw)
        if identity is None or kind not in ("ADDED", "MODIFIED", "DELETED"):
            raise WireError("watch event", kind, "ADDED, MODIFIED, DELETED or BOOKMARK of an object with a name")
        if _is_old(version, self.resource_version):
            return []
        key, uid, _ = identity
        self.resource_version = version
        known = self._entries.get(key)
        if kind == "DELETED":
            return self._delete(key, uid, version, raw, known)
        return self._put(key, uid, version, raw, known)

    def _put(self, key: str, uid: str, version: str, raw: dict[str, Any], known: _Entry[T] | None) -> list[Change[T]]:
        changes: list[Change[T]] = []
        if known is not None and known.uid != uid:
            changes.extend(_gone(key, known, known.good, version))
            known = None
        if known is not None and known.resource_version == version:
            return changes
        entry = self._parsed(raw, uid, version, known)
        self._store(key, entry)
        return [*changes, *_came(key, entry, known)]

    def _delete(
        self, key: str, uid: str, version: str, raw: dict[str, Any], known: _Entry[T] | None
    ) -> list[Change[T]]:
        if known is None or known.uid != uid:
            return []
        final = self._parsed(raw, uid, version, known)
        self._store(key, None)
        return _gone(key, known, final.good, version)

    def _parsed(self, raw: dict[str, Any], uid: str, version: str, known: _Entry[T] | None) -> _Entry[T]:
        try:
            return _Entry(uid, version, self._parse(raw), None)
        except Exception as error:
            # Whatever a parser stumbles over, one odd object must not take the whole component down, again and again.
            self.parse_errors += 1
            last_good = known.good if known is not None and known.uid == uid else None
            return _Entry(uid, version, last_good, str(error) if isinstance(error, SairError) else repr(error))

    def _store(self, key: str, entry: _Entry[T] | None) -> None:
        self._snapshot = None
        self._flagged.pop(key, None)
        if entry is None:
            self._entries.pop(key, None)
            return
        self._entries[key] = entry
        if entry.error is not None:
            self._flagged[key] = entry.error


def _came(key: str, new: _Entry[T], known: _Entry[T] | None) -> list[Change[T]]:
    old = known.good if known else None
    if new.error is not None:
        return [Malformed(key, new.error, old, new.resource_version)]
    if new.good is None:
        return []
    if old is None:
        return [Added(key, new.good, new.resource_version)]
    return [Modified(key, new.good, old, new.resource_version)]


def _gone(key: str, known: _Entry[T], final: T | None, version: str) -> list[Change[T]]:
    """An object that never had a good version was never delivered, so its end is not either."""
    if known.good is None or final is None:
        return []
    return [Deleted(key, final, known.good, version)]


def _identity(raw: Mapping[str, Any]) -> tuple[str, str, str] | None:
    metadata = raw.get("metadata")
    if not isinstance(metadata, Mapping):
        return None
    name, namespace = metadata.get("name"), metadata.get("namespace")
    version = metadata.get("resourceVersion")
    if not isinstance(name, str) or not isinstance(version, str):
        return None
    return (f"{namespace}/{name}" if namespace else name), str(metadata.get("uid", "")), version


def _version(raw: Mapping[str, Any]) -> str | None:
    metadata = raw.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
    return version if isinstance(version, str) and version else None


def _is_old(version: str, seen: str | None) -> bool:
    if seen is None:
        return False
    if version.isdigit() and seen.isdigit():
        return int(version) <= int(seen)
    return version == seen
