"""Quantities with their units: shares of a GPU, memory, CPU, durations, as Kubernetes writes them."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import NewType, Self

from sair.errors import InvalidInput

__all__ = [
    "MILLI_PER_GPU",
    "GpuRate",
    "Mebibytes",
    "Millicores",
    "cpu_limit_beside",
    "format_memory",
    "format_millicores",
    "format_moment",
    "parse_cpu",
    "parse_duration",
    "parse_memory",
    "parse_moment",
    "parse_quantity",
]

Mebibytes = NewType("Mebibytes", int)
"""Memory in MiB (2**20 bytes)."""

Millicores = NewType("Millicores", int)
"""CPU in thousandths of a core."""

MILLI_PER_GPU = 1000
"""Resolution of a GPU share: sums over a card are exact integers, never floats."""

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_QUANTITY = re.compile(
    r"([+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII
)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", re.ASCII)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DECIMAL = re.compile(r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})", re.ASCII)
_MEBIBYTE = Decimal(2) ** 20


@dataclass(frozen=True, slots=True, order=True)
class GpuRate:
    """A share of one GPU's time, in thousandths, (0, 1000]."""

    milli: int

    def __post_init__(self) -> None:
        if not 0 < self.milli <= MILLI_PER_GPU:
            raise InvalidInput("gpu rate", self.milli / MILLI_PER_GPU, "a number in (0, 1]")

    @classmethod
    def of(cls, fraction: float) -> Self:
        """Round a fraction in (0, 1] to the nearest thousandth.

        Raises:
            InvalidInput: If it is not finite or rounds to something outside (0, 1].
        """
        if not 0 < fraction <= 1:  # NaN fails here as well
            raise InvalidInput("gpu rate", fraction, "a number in (0, 1]")
        return cls(max(1, round(fraction * MILLI_PER_GPU)))

    @classmethod
    def parse(cls, text: str, *, field: str = "gpu rate") -> Self:
        """Parse a plain decimal such as ``0.35``: at most three decimals, in (0, 1].

        Raises:
            InvalidInput: Naming ``field`` if the text is anything else.
        """
        allowed = "a decimal number in (0, 1] with at most three decimals, such as 0.35"
        if not _DECIMAL.fullmatch(text):
            raise InvalidInput(field, text, allowed)
        milli = Decimal(text) * MILLI_PER_GPU
        if milli != int(milli) or not 0 < milli <= MILLI_PER_GPU:
            raise InvalidInput(field, text, allowed)
        return cls(int(milli))

    @property
    def fraction(self) -> float:
        """The share as a float in (0, 1]."""
        return self.milli / MILLI_PER_GPU

    def __str__(self) -> str:
        return f"{Decimal(self.milli) / MILLI_PER_GPU:f}"


def parse_quantity(text: str, *, field: str = "quantity") -> Decimal:
    """Parse a Kubernetes quantity (``500m``, ``1.5Gi``, ``2e3``) into its base unit.

    Raises:
        InvalidInput: Naming ``field`` if the text is no Kubernetes quantity.
    """
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise InvalidInput(field, text, "a Kubernetes quantity such as 500m, 2, 512Mi or 1.5Gi")
    number, exponent, suffix = match.groups()
    try:
        return Decimal(number + (exponent or "")) * _SUFFIXES[suffix or ""]
    except InvalidOperation as error:
        raise InvalidInput(field, text, "a Kubernetes quantity such as 500m, 2, 512Mi or 1.5Gi") from error


def parse_memory(text: str, *, field: str = "memory") -> Mebibytes:
    """Parse a Kubernetes memory quantity into whole MiB, rounded up.

    Raises:
        InvalidInput: Naming ``field`` if it is no quantity, or not between 1 Mi and 1 Pi.
    """
    value = parse_quantity(text, field=field)
    if not _MEBIBYTE <= value <= _MEBIBYTE * 2**30:
        raise InvalidInput(field, text, "a Kubernetes memory quantity between 1Mi and 1Pi, such as 512Mi")
    return Mebibytes(int((value / _MEBIBYTE).to_integral_value(rounding=ROUND_CEILING)))


def parse_cpu(text: str, *, field: str = "cpu") -> Millicores:
    """Parse a Kubernetes CPU quantity into whole millicores, rounded up.

    Raises:
        InvalidInput: Naming ``field`` if it is no quantity, or not between 1m and 1000 cores.
    """
    milli = parse_quantity(text, field=field) * 1000
    if not 1 <= milli <= 1_000_000:
        raise InvalidInput(field, text, "a Kubernetes CPU quantity between 1m and 1000, such as 500m")
    return Millicores(int(milli.to_integral_value(rounding=ROUND_CEILING)))


def parse_duration(text: str, *, field: str = "duration") -> float:
    """Parse a duration such as ``250ms``, ``1.5s``, ``2m`` or ``1h`` into seconds.

    Raises:
        InvalidInput: Naming ``field`` if it is anything else, or zero.
    """
    match = _DURATION.fullmatch(text)
    if not match or float(match[1]) == 0:
        raise InvalidInput(field, text, "a positive duration with its unit: ms, s, m or h, such as 250ms")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_moment(text: str, *, field: str = "time") -> float:
    """Parse a moment as Kubernetes writes them, such as ``2026-03-01T03:00:00Z``, into Unix seconds.

    Raises:
        InvalidInput: Naming ``field`` if it is anything else, or has no offset from UTC.
    """
    allowed = "a moment such as 2026-03-01T03:00:00Z"
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(field, text, allowed) from error
    if moment.tzinfo is None:
        raise InvalidInput(field, text, allowed)
    return moment.timestamp()


def format_moment(seconds: float) -> str:
    """Write Unix seconds as Kubernetes does, with milliseconds."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_memory(memory: Mebibytes) -> str:
    """Write MiB as a Kubernetes quantity."""
    return f"{memory}Mi"


def format_millicores(cpu: Millicores) -> str:
    """Write millicores as a Kubernetes quantity."""
    return f"{cpu}m"


def cpu_limit_beside(request: Millicores, *, was: Millicores | None, limit: Millicores | None) -> Millicores | None:
    """Choose the CPU limit that goes with a new request, so that the pod's QoS class stays what it is.

    A limit equal to the request follows it; a higher one stays, unless the new request reaches it: then it keeps its ratio.

    Args:
        request: The new request.
        was: The request so far; None: the limit, as Kubernetes has it.
        limit: The limit so far; None if there is none.

    Returns:
        The new limit; None if there is none.
    """
    if limit is None or was is None or was >= limit:
        return None if limit is None else request
    return limit if request < limit else Millicores(-(-request * limit // max(1, was)))
