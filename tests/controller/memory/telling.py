"""What was told: in the log, and in the journal."""

from __future__ import annotations

from typing import Any

from controller.memory.store import Store

__all__ = ["PIPELINE", "Logs", "journal", "told"]

PIPELINE = "default/vision"

Logs = list[Any]


def told(logs: Logs, words: str) -> Any:
    """The one line that says so."""
    (line,) = [each for each in logs if words in each["event"]]
    return line


async def journal(store: Store) -> list[dict[str, str]]:
    """The journal, oldest first."""
    return [fields for _, fields in reversed(await store.decisions(PIPELINE, 1_000))]
