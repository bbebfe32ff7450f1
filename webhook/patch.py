"""The difference of two pods as a JSONPatch (RFC 6902)."""

from __future__ import annotations

from typing import Any

import jsonpatch

__all__ = ["json_patch"]


def json_patch(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Compute the operations that turn one object into the other; empty if they are equal.

    Args:
        before: The object as the API server sent it.
        after: The object as it shall be.
    """
    return tuple(jsonpatch.make_patch(before, after).patch)
