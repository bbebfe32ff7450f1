"""The GPUs of a node as its annotation lists them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cuda_hook.agent.nvml import Gpu

__all__ = ["inventory_annotation"]


def inventory_annotation(gpus: Iterable[Gpu]) -> str:
    """Write the value of the Node's ``sair.dev/gpus``: a JSON list in the order of the cards' indices.

    Args:
        gpus: The cards.
    """
    ordered = sorted(gpus, key=lambda gpu: gpu.index)
    return json.dumps(
        [{"memoryMi": int(gpu.memory), "model": gpu.model, "uuid": gpu.uuid} for gpu in ordered], separators=(",", ":")
    )
