"""The error tree, split by what the caller does with it.

::

    SairError
    ├── PermanentError            give up: trying again cannot help
    │   ├── InvalidInput          names the field, the value and what is allowed
    │   │   ├── AnnotationError   a sair.dev/… annotation
    │   │   ├── SettingsError     a setting (environment variable)
    │   │   ├── TraceError        a line of a trace file
    │   │   ├── EntryError        a field of an entry read back from Redis
    │   │   ├── WireError         a field of a message from outside (API server, scheduler, model)
    │   │   └── MetricError       a sample of a scraped metric
    │   ├── SchemaVersionError    the memory was written by another version
    │   ├── Superseded            another controller leads by now: what one still had to write is void
    │   └── NotFound              the object does not exist (any more)
    └── TemporaryError            retry later, keep what is known
        ├── Conflict              somebody else wrote first: read again
        ├── ApiUnavailable        the Kubernetes API server
        ├── MemoryUnavailable     Redis
        │   └── MemoryFull        it has no room left: reading goes on, and writing once there is room
        ├── ModelUnavailable      the language model's server
        └── MetricsUnavailable    the metrics of a stage

A client library's exception never crosses a module of ours: it is chained (``raise … from``) into one of these.
"Does not fit" and "not allowed now" are no errors but return values that carry their reason.
"""

from __future__ import annotations

__all__ = [
    "AnnotationError",
    "ApiUnavailable",
    "Conflict",
    "EntryError",
    "InvalidInput",
    "MemoryFull",
    "MemoryUnavailable",
    "MetricError",
    "MetricsUnavailable",
    "ModelUnavailable",
    "NotFound",
    "PermanentError",
    "SairError",
    "SchemaVersionError",
    "SettingsError",
    "Superseded",
    "TemporaryError",
    "TraceError",
    "WireError",
]

_SHOWN_CHARACTERS = 120


class SairError(Exception):
    """Everything that SAIR raises on purpose."""


class PermanentError(SairError):
    """Trying again cannot help."""


class TemporaryError(SairError):
    """Trying again later may help; what is known so far stays valid."""


class InvalidInput(PermanentError):
    """Input that is refused whole.

    Args:
        field: Name of the offending field, key or setting, as its author wrote it.
        value: The value found; shortened to 120 characters in the message.
        allowed: What would have been accepted, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        shown = repr(value)
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[:_SHOWN_CHARACTERS] + "…"
        super().__init__(f"{field}: {shown} is not allowed; expected {allowed}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str]]:
        # Exceptions are pickled by their message alone unless told otherwise; these cross process borders.
        return type(self), (self.field, self.value, self.allowed)


class AnnotationError(InvalidInput):
    """A sair.dev/… annotation is malformed."""


class SettingsError(InvalidInput):
    """A setting is malformed or missing."""


class TraceError(InvalidInput):
    """A trace file has a malformed line; the field is ``<file>:<line>``."""


class EntryError(InvalidInput):
    """An entry read back from Redis is malformed; the field is ``<key> <field>``."""


class WireError(InvalidInput):
    """A message from outside is malformed."""


class MetricError(InvalidInput):
    """A scraped metric is malformed."""


class SchemaVersionError(PermanentError):
    """The memory in Redis has another schema version than this program reads.

    Args:
        found: Version found under ``sair:schema``.
        expected: Version this program reads and writes.
        remedy: The command that migrates.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"sair:schema is {found!r}, this program reads {expected!r}; run: {remedy}")

    def __reduce__(self) -> tuple[type[SchemaVersionError], tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.remedy)


class Superseded(PermanentError):
    """Another controller leads this pipeline by now; what this one still had to write is void."""


class NotFound(PermanentError):
    """The object does not exist (any more)."""


class Conflict(TemporaryError):
    """Somebody else wrote first: read again, decide again."""


class ApiUnavailable(TemporaryError):
    """The Kubernetes API server cannot be reached or is overloaded."""


class MemoryUnavailable(TemporaryError):
    """Redis cannot be reached."""


class MemoryFull(MemoryUnavailable):
    """Redis has reached its ``maxmemory`` and takes no more."""


class ModelUnavailable(TemporaryError):
    """The language model's server cannot be reached, is too slow or answers nonsense."""


class MetricsUnavailable(TemporaryError):
    """The metrics of a stage cannot be had or are stale."""
