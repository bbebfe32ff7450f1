"""Memory as JSON Lines: a header with the schema version, then experiences, controller states and journal records, a line each.

::

    {"kind":"header","schema":"1"}
    {"kind":"experience","pipeline":"default/vision","id":"00000012-3f9a1c07","fields":{…as in Redis…}}
    {"kind":"state","pipeline":"default/vision","fields":{…}}
    {"kind":"decision","pipeline":"default/vision","id":"1700000000000-0","fields":{…}}

The frontier is not written: it follows from the experiences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeAlias

import msgspec

from controller.experience import Experience
from controller.memory.codec import from_fields, to_fields
from controller.memory.keys import SCHEMA, Keys
from sair.errors import EntryError

__all__ = ["LINE_CHARACTERS_MAX", "Archived", "header", "parse", "sifted", "updated_s", "written"]

LINE_CHARACTERS_MAX: Final = 32_000_000
"""The learned state and its checkpoints are the longest lines, some 100 kB."""

_DAY_MS: Final = 86_400_000
_Fields: TypeAlias = dict[str, str]
_LONGEST_NAME: Final = 330
_LONGEST_ID: Final = 200
_Name = Annotated[str, msgspec.Meta(min_length=3, max_length=_LONGEST_NAME)]
_Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_ID)]
_PIPELINE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_STREAM_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    kind: str
    schema: str = ""
    pipeline: _Name | None = None
    id: _Identifier | None = None
    fields: _Fields | None = None


@dataclass(slots=True)
class Archived:
    """What a file or a Redis holds of one pipeline."""

    experiences: dict[str, Experience] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    decisions: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    """Stream ids and fields, oldest first."""


def written(pipeline: str, archived: Archived) -> Iterable[str]:
    """The lines of one pipeline, each with its line feed; ``header()`` goes before the first."""
    for identifier, experience in archived.experiences.items():
        yield _encoded(_Line("experience", pipeline=pipeline, id=identifier, fields=to_fields(experience)))
    if archived.state:
        yield _encoded(_Line("state", pipeline=pipeline, fields=dict(sorted(archived.state.items()))))
    for identifier, fields in archived.decisions:
        yield _encoded(_Line("decision", pipeline=pipeline, id=identifier, fields=dict(fields)))


def sifted(pipeline: str, archived: Archived, now_s: float) -> tuple[Archived, tuple[EntryError, ...]]:
    """What of a pipeline ``parse`` takes, and why it takes no more: a file that is refused whole is no backup.

    Args:
        pipeline: ``namespace/name``.
        archived: As Redis has it.
        now_s: Unix time.

    Raises:
        EntryError: If no Pipeline can have that name.
    """
    _checked_name("memory", pipeline)
    keys, kept, refused = Keys(pipeline), Archived(state=archived.state), list[EntryError]()
    for identifier, experience in archived.experiences.items():
        try:
            kept.experiences[_checked_id(keys.experiences, identifier)] = experience
        except EntryError as error:
            refused.append(error)
    for identifier, fields in archived.decisions:
        try:
            kept.decisions.append((_checked_stream_id(keys.decisions, identifier, now_s), fields))
        except EntryError as error:
            refused.append(error)
    return kept, tuple(refused)


def header() -> str:
    """The first line of every file."""
    return _encoded(_Line("header", schema=SCHEMA))


def parse(name: str, lines: Iterable[str], now_s: float) -> dict[str, Archived]:
    """Read a file whole.

    Args:
        name: Of the file, for error messages.
        lines: Its lines.
        now_s: Unix time; journal records of later than tomorrow would keep every later one out of a stream.

    Returns:
        By pipeline.

    Raises:
        EntryError: Names file, line and field of the first line that is malformed.
    """
    found: dict[str, Archived] = {}
    number = 0
    for number, text in enumerate(lines, 1):
        place = f"{name}:{number}"
        if number == 1:
            _check_header(place, text)
        elif text.strip():
            _take(place, _decoded(place, text), found, now_s)
    if number == 0:
        raise EntryError(f"{name}:1 kind", None, "a header line: the file is empty")
    return found


def _check_header(place: str, text: str) -> None:
    line = _decoded(place, text)
    if line.kind != "header":
        raise EntryError(f"{place} kind", line.kind, "header on the first line")
    if line.schema != SCHEMA:
        raise EntryError(f"{place} schema", line.schema, f"{SCHEMA}, the version this program reads")


def _decoded(place: str, text: str) -> _Line:
    if len(text) > LINE_CHARACTERS_MAX:
        raise EntryError(f"{place} line", f"{len(text)} characters", f"at most {LINE_CHARACTERS_MAX}")
    try:
        return msgspec.json.decode(text, type=_Line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EntryError(f"{place} line", text, f"a JSON object as sair memory export writes it ({error})") from error


def _take(place: str, line: _Line, found: dict[str, Archived], now_s: float) -> None:
    if line.kind not in ("experience", "state", "decision"):
        raise EntryError(f"{place} kind", line.kind, "experience, state or decision")
    pipeline = _checked_name(place, line.pipeline)
    if line.fields is None:
        raise EntryError(f"{place} fields", None, "an object of texts")
    archived = found.setdefault(pipeline, Archived())
    if line.kind == "state":
        archived.state = line.fields
    elif line.kind == "experience":
        identifier = _checked_id(place, line.id)
        archived.experiences[identifier] = from_fields(place, pipeline, identifier, line.fields)
    else:
        _take_decision(place, line, archived, now_s)


def _take_decision(place: str, line: _Line, archived: Archived, now_s: float) -> None:
    identifier = _checked_stream_id(place, line.id, now_s)
    if archived.decisions and _order(identifier) <= _order(archived.decisions[-1][0]):
        raise EntryError(f"{place} id", identifier, f"an id after the one before, {archived.decisions[-1][0]}")
    if not line.fields:
        raise EntryError(f"{place} fields", line.fields, "at least one field")
    archived.decisions.append((identifier, line.fields))


def _checked_name(place: str, name: str | None) -> str:
    if name is None or len(name) > _LONGEST_NAME or not _PIPELINE.fullmatch(name):
        raise EntryError(f"{place} pipeline", name, "namespace/name")
    return name


def _checked_id(place: str, identifier: str | None) -> str:
    if not identifier or not identifier.isprintable() or " " in identifier or len(identifier) > _LONGEST_ID:
        raise EntryError(f"{place} id", identifier, f"at most {_LONGEST_ID} printable characters without a space")
    return identifier


def _checked_stream_id(place: str, identifier: str | None, now_s: float) -> str:
    if not _STREAM_ID.fullmatch(identifier or "") or _order(identifier or "")[0] > now_s * 1000 + _DAY_MS:
        raise EntryError(f"{place} id", identifier, "a stream id, milliseconds-number, not later than tomorrow")
    return identifier or ""


def _order(identifier: str) -> tuple[int, ...]:
    return tuple(int(part) for part in identifier.split("-"))


def _encoded(line: _Line) -> str:
    return msgspec.json.encode(line).decode() + "\n"


def updated_s(fields: Mapping[str, str]) -> float:
    """When a controller state was written; −∞ where it does not say so readably."""
    try:
        value = float(fields.get("updated_s", ""))
    except ValueError:
        return float("-inf")
    return value if math.isfinite(value) else float("-inf")
