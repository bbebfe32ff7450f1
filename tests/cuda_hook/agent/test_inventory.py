from __future__ import annotations

from cuda_hook.agent.inventory import inventory_annotation
from cuda_hook.agent.nvml import Gpu
from extender.card import parse_node
from sair.annotations import GPUS
from sair.quantities import Mebibytes


def test_the_extender_reads_the_inventory_that_the_agent_writes() -> None:
    gpus = [Gpu(1, "GPU-b", "A10", Mebibytes(23028)), Gpu(0, "GPU-a", "H100", Mebibytes(81559))]
    node = parse_node({"metadata": {"name": "n", "annotations": {GPUS: inventory_annotation(gpus)}}})
    assert [(card.uuid, card.model, card.memory_mi) for card in node.cards] == [
        ("GPU-a", "H100", 81559),
        ("GPU-b", "A10", 23028),
    ]


def test_a_node_without_gpus_has_an_empty_inventory() -> None:
    assert inventory_annotation([]) == "[]"
