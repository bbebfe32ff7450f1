"""The GPUs of a node, as the node agent writes them into the ``sair.dev/gpus`` annotation and as everybody else reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from sair.annotations import GPUS
from sair.wire import decode, field

__all__ = ["Card", "parse_inventory"]

MAX_CARDS = 1000
"""A GPU index has at most three digits."""


class Card(msgspec.Struct, frozen=True):
    """One GPU; its index is its place in the list."""

    memory_mi: Annotated[int, msgspec.Meta(gt=0)] = msgspec.field(name="memoryMi")
    model: str = ""
    uuid: str = ""


_Inventory = Annotated[tuple[Card, ...], msgspec.Meta(max_length=MAX_CARDS)]


def parse_inventory(node: Mapping[str, Any]) -> tuple[Card, ...]:
    """Read the cards of a raw Node; none where the node agent has not said anything.

    Raises:
        WireError: If the annotation is no JSON list of cards with a positive ``memoryMi``.
    """
    text = field(node, "metadata", "annotations", GPUS)
    if text is None:
        return ()
    return decode(str(text), _Inventory, what=f"annotation {GPUS} of node {field(node, 'metadata', 'name')}")
