"""Reading pods and nodes."""

from __future__ import annotations

from typing import Any

import pytest

from extender.card import Card, NodeCards, parse_node
from extender.replica import parse_replica
from sair.annotations import GPU_GRANTED, GPU_INDEX, GPU_RATE, GPUS
from sair.errors import WireError
from sair.quantities import GpuRate
from tests.extender.builders import raw_pod


def stored(
    name: str = "a", rate: str | None = "0.5", *, node: str | None = None, more: dict[str, str] | None = None, **kw: Any
) -> dict[str, Any]:
    raw = raw_pod(name, rate, namespace="default", uid="u", resourceVersion="7", **kw)
    raw["metadata"]["annotations"].update(more or {})
    if node is not None:
        raw["spec"]["nodeName"] = node
    return raw


def test_a_pending_pod_wants_a_share() -> None:
    replica = parse_replica(stored(memory="8Gi"))

    assert (replica.desired, replica.memory, replica.version) == (GpuRate(500), 8192, 7)
    assert replica.wants_gpu
    assert not replica.holds_gpu
    assert (replica.key, replica.stage_key) == ("default/a", "default/vision/inference")


def test_a_bound_pod_holds_what_it_was_granted() -> None:
    replica = parse_replica(stored(node="n", more={GPU_GRANTED: "0.3", GPU_INDEX: "2"}))

    assert (replica.granted, replica.seat) == (GpuRate(300), ("n", 2))
    assert replica.holds_gpu


def test_a_grant_on_a_pod_that_is_not_bound_holds_nothing() -> None:
    assert not parse_replica(stored(more={GPU_GRANTED: "0.3", GPU_INDEX: "2"})).holds_gpu


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_holds_nothing(phase: str) -> None:
    raw = stored(node="n", more={GPU_GRANTED: "0.3", GPU_INDEX: "2"})
    raw["status"] = {"phase": phase}

    replica = parse_replica(raw)

    assert not replica.holds_gpu
    assert replica.seat is None


def test_a_pod_without_annotations_wants_nothing() -> None:
    raw = stored()
    del raw["metadata"]["annotations"]

    assert not parse_replica(raw).wants_gpu


def test_a_malformed_wish_does_not_hide_what_is_held() -> None:
    replica = parse_replica(stored(node="n", more={GPU_RATE: "lots", GPU_GRANTED: "0.3", GPU_INDEX: "2"}))

    assert replica.granted == GpuRate(300)
    assert replica.desired is None
    assert replica.problem is not None
    assert GPU_RATE in replica.problem


def test_a_malformed_grant_of_a_bound_pod_is_an_error_so_that_the_last_good_one_stays() -> None:
    with pytest.raises(WireError, match=GPU_GRANTED):
        parse_replica(stored(node="n", more={GPU_GRANTED: "lots", GPU_INDEX: "2"}))


def test_a_node_without_inventory_has_no_cards() -> None:
    assert parse_node({"metadata": {"name": "n"}}) == NodeCards("n")


def test_cards_are_numbered_by_their_place() -> None:
    text = '[{"memoryMi": 81920, "model": "H100", "uuid": "GPU-1"}, {"memoryMi": 40960}]'

    node = parse_node({"metadata": {"name": "n", "annotations": {GPUS: text}}})

    assert node.cards == (Card(memory_mi=81_920, model="H100", uuid="GPU-1"), Card(memory_mi=40_960))


@pytest.mark.parametrize("text", ["", "{}", '[{"memoryMi": 0}]', '[{"memoryMi": "8Gi"}]', "[{}]"])
def test_a_malformed_inventory_is_refused_by_name(text: str) -> None:
    with pytest.raises(WireError, match=r"sair\.dev/gpus of node n"):
        parse_node({"metadata": {"name": "n", "annotations": {GPUS: text}}})
