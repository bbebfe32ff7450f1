"""The pure core of reporting Events: which occurrences become a new Event, a longer series, or wait."""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sair.kube.resources import EVENTS, Resource

__all__ = [
    "Aggregator",
    "Create",
    "EventRate",
    "Occurrence",
    "Prolong",
    "Reference",
    "Severity",
    "Write",
    "event_body",
    "series_body",
]

Severity = Literal["Normal", "Warning"]

_NOTE_BYTES = 1024
_WORD = 128
"""Limits of the API server on ``note`` and on ``reason`` and ``action``."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The object that an Event is about."""

    resource: Resource
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    @property
    def event_namespace(self) -> str:
        """Where its Events live: its namespace, or ``default`` for a cluster-wide object."""
        return self.namespace or "default"

    def to_raw(self) -> dict[str, str]:
        """The ObjectReference as the API server takes it."""
        whole = {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "resourceVersion": self.resource_version,
        }
        return {name: value for name, value in whole.items() if value}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened to an object.

    ``reason`` and ``action`` are CamelCase words for machines (why; what was done), ``note`` is the sentence for people. The server
    never changes the note of an Event: what is to be read must be an Event of its own.
    """

    regarding: Reference
    reason: str
    note: str
    action: str
    severity: Severity = "Normal"

    @property
    def kind(self) -> tuple[str, ...]:
        """What the rate of Events is kept by; the note, which may hold figures, is not part of it."""
        about, resource = self.regarding, self.regarding.resource
        return (
            resource.api_version,
            resource.kind,
            about.namespace,
            about.name,
            about.uid,
            self.reason,
            self.action,
            self.severity,
        )


@dataclass(frozen=True, slots=True)
class EventRate:
    """How much is written per object and reason."""

    quiet_s: float = 10.0
    """Least time between two writes of the same series; occurrences in between are counted."""
    notes: int = 10
    """Events with another note than before that may follow each other at once, per object and reason."""
    note_every_s: float = 60.0
    """How often one more is allowed; what says something new more often joins the newest series, and its own words are lost."""
    series_s: float = 360.0
    """An occurrence later than this after the last begins a new Event; the API server forgets Events after an hour."""
    remembered: int = 2048
    """Series and kinds known at a time; beyond, the one longest without an occurrence is forgotten."""


@dataclass(frozen=True, slots=True)
class Create:
    """Write a new Event of this name."""

    name: str
    occurrence: Occurrence
    time: dt.datetime


@dataclass(frozen=True, slots=True)
class Prolong:
    """Tell the Event of this name how often its like has happened; create it again if it is gone."""

    name: str
    occurrence: Occurrence
    count: int
    first: dt.datetime
    last: dt.datetime


Write: TypeAlias = Create | Prolong


@dataclass(frozen=True, slots=True)
class _Series:
    name: str
    occurrence: Occurrence
    count: int
    written: int
    first: dt.datetime
    last: dt.datetime
    written_at: dt.datetime


_RATE = EventRate()

_Key: TypeAlias = tuple[tuple[str, ...], str]
"""Kind and note of a series."""


@dataclass(frozen=True, slots=True)
class _Allowance:
    """How many more Events of a kind may say something new, and the series that said it last."""

    left: float
    at: dt.datetime
    newest: _Key


class Aggregator:
    """Folds occurrences into Events: what says something new is an Event of its own, at most so often; the same again a longer series.

    Args:
        rate: How much is written.
    """

    def __init__(self, rate: EventRate = _RATE) -> None:
        self._rate = rate
        self._series: OrderedDict[_Key, _Series] = OrderedDict()
        self._allowances: OrderedDict[tuple[str, ...], _Allowance] = OrderedDict()

    def happened(self, occurrence: Occurrence, now: dt.datetime, name: str) -> list[Write]:
        """Take an occurrence in.

        Args:
            occurrence: What happened.
            now: UTC time.
            name: A fresh name, should a new Event be needed.

        Returns:
            What to write now; nothing if the write is put off to ``due``.
        """
        key = (occurrence.kind, occurrence.note)
        known = self._series.get(key)
        if known is not None and not self._over(known, now):
            grown = replace(known, count=known.count + 1, last=max(now, known.last))
            return self._advance(key, grown, now)
        allowance = self._allowance(key, now)
        newest = self._series.get(allowance.newest)
        if allowance.left < 1.0 and newest is not None and not self._over(newest, now):
            return self._advance(
                allowance.newest, replace(newest, count=newest.count + 1, last=max(now, newest.last)), now
            )
        self._allowances[occurrence.kind] = _Allowance(max(0.0, allowance.left - 1.0), now, key)
        self._allowances.move_to_end(occurrence.kind)
        final = [_prolong(known)] if known is not None and known.written < known.count else []
        self._series[key] = _Series(name, occurrence, 1, 1, now, now, now)
        self._series.move_to_end(key)
        return [*final, Create(name, occurrence, now), *self._forgotten()]

    def due(self, now: dt.datetime) -> list[Write]:
        """Give the writes that were put off and whose time has come; forget series that have ended."""
        writes: list[Write] = []
        for key, series in list(self._series.items()):
            if series.written < series.count:
                writes.extend(self._advance(key, series, now, touched=False))
            elif self._over(series, now):
                del self._series[key]
        return writes

    def flush(self) -> list[Write]:
        """Give all writes that were put off, for the end of the process."""
        writes: list[Write] = [_prolong(series) for series in self._series.values() if series.written < series.count]
        self._series.clear()
        return writes

    def _over(self, series: _Series, now: dt.datetime) -> bool:
        return (now - series.last).total_seconds() > self._rate.series_s

    def _allowance(self, key: _Key, now: dt.datetime) -> _Allowance:
        known = self._allowances.get(key[0])
        if known is None:
            return _Allowance(self._rate.notes, now, key)
        refilled = known.left + max(0.0, (now - known.at).total_seconds()) / self._rate.note_every_s
        return _Allowance(min(float(self._rate.notes), refilled), now, known.newest)

    def _advance(self, key: _Key, series: _Series, now: dt.datetime, *, touched: bool = True) -> list[Write]:
        writes: list[Write] = []
        if (now - series.written_at).total_seconds() >= self._rate.quiet_s:
            series = replace(series, written=series.count, written_at=now)
            writes = [_prolong(series)]
        self._series[key] = series
        if touched:
            self._series.move_to_end(key)
        return writes

    def _forgotten(self) -> list[Write]:
        writes: list[Write] = []
        while len(self._series) > self._rate.remembered:
            _, oldest = self._series.popitem(last=False)
            if oldest.written < oldest.count:
                writes.append(_prolong(oldest))
        while len(self._allowances) > self._rate.remembered:
            self._allowances.popitem(last=False)
        return writes


def event_body(write: Write, *, controller: str, instance: str) -> dict[str, Any]:
    """Build the whole Event.

    Args:
        write: What to say.
        controller: Reporting controller, such as ``sair.dev/extender``.
        instance: Reporting instance, such as the pod's name.
    """
    occurrence = write.occurrence
    body: dict[str, Any] = {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": write.name, "namespace": occurrence.regarding.event_namespace},
        "eventTime": _stamp(write.time if isinstance(write, Create) else write.first),
        "reportingController": controller,
        "reportingInstance": instance[:_WORD],
        "action": occurrence.action[:_WORD],
        "reason": occurrence.reason[:_WORD],
        "regarding": occurrence.regarding.to_raw(),
        "note": _cut(occurrence.note),
        "type": occurrence.severity,
    }
    if isinstance(write, Prolong):
        body |= series_body(write)
    return body


def series_body(write: Prolong) -> dict[str, Any]:
    """Build the merge patch that prolongs an Event's series; the API server wants a count of at least 2."""
    return {"series": {"count": max(2, write.count), "lastObservedTime": _stamp(write.last)}}


def _prolong(series: _Series) -> Prolong:
    return Prolong(series.name, series.occurrence, series.count, series.first, series.last)


def _stamp(time: dt.datetime) -> str:
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(note: str) -> str:
    data = note.encode()
    return note if len(data) <= _NOTE_BYTES else data[: _NOTE_BYTES - 3].decode(errors="ignore") + "…"
