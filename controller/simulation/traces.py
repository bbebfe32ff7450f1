"""Trace files: one arrival rate in requests per second per line, one line per second."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sair.errors import TraceError

__all__ = ["MOST_LINES", "MOST_REQUESTS_PER_S", "parse_trace", "read_trace"]

MOST_LINES: Final = 7 * 86_400
MOST_REQUESTS_PER_S: Final = 100_000.0

_ALLOWED: Final = f"one number of requests per second between 0 and {MOST_REQUESTS_PER_S:g} per line"


def parse_trace(text: str, name: str) -> NDArray[np.float64]:
    """Arrival rates by second. Empty lines at the end and lines that begin with ``#`` are skipped.

    Args:
        text: Content of the file.
        name: Its name, for messages.

    Raises:
        TraceError: Naming ``<name>:<line>`` and what was found there.
    """
    rates: list[float] = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        if line.startswith("#"):
            continue
        try:
            rate = float(line)
        except ValueError:
            raise TraceError(f"{name}:{number}", line, _ALLOWED) from None
        if not 0 <= rate <= MOST_REQUESTS_PER_S:
            raise TraceError(f"{name}:{number}", line, _ALLOWED)
        rates.append(rate)
        if len(rates) > MOST_LINES:
            raise TraceError(f"{name}:{number}", line, f"at most {MOST_LINES} lines, one week")
    if not any(rates):
        raise TraceError(f"{name}:1", text[:20], f"at least one rate above 0; {_ALLOWED}")
    return np.array(rates)


def read_trace(path: Path) -> NDArray[np.float64]:
    """Read a trace file.

    Raises:
        TraceError: If it cannot be read, or a line is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(str(path), error.strerror or str(error), "a readable file") from error
    except UnicodeDecodeError as error:
        raise TraceError(str(path), f"byte {error.start} is not UTF-8", "a text file; " + _ALLOWED) from error
    return parse_trace(text, str(path))
