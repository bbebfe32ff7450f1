"""The index of pods, and the room that is worked out from it, against what follows from all pods at once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.cluster import NodeState, PodState, parse_node, parse_pod
from controller.pods import PodIndex
from controller.state import StageView
from controller.worlds.room import Rooms, cluster_room
from sair.kube.changes import Added, Deleted, Malformed, Modified, Synced
from tests.controller.workloads import raw_node, raw_pod

NODES = ("node-a", "node-b", None)
STEP = st.tuples(
    st.integers(0, 5), st.sampled_from(NODES), st.sampled_from(("a", "b", None)), st.booleans(), st.integers(0, 1)
)


def pod(number: int, node: str | None, pipeline: str | None, occupies: bool, gpu: int) -> PodState:
    own = (
        {"pipeline": pipeline, "stage": "s", "gpu-rate": "0.3", "gpu-granted": "0.2", "gpu-index": str(gpu)}
        if pipeline
        else {}
    )
    raw = raw_pod(own, {"nodeName": node}, phase="Running" if occupies else "Succeeded")
    raw["metadata"]["name"], raw["metadata"]["uid"] = f"pod-{number}", f"uid-{number}"
    return parse_pod(raw)


def node(name: str) -> NodeState:
    cards = {"sair.dev/gpus": '[{"memoryMi": 16000}, {"memoryMi": 16000}]'}
    return replace(parse_node(raw_node(annotations=cards)), name=name)


@given(st.lists(STEP, max_size=30))
def test_after_any_changes_the_index_says_what_a_look_at_all_pods_says(
    steps: list[tuple[int, str | None, str | None, bool, int]],
) -> None:
    index, known = PodIndex(), dict[str, PodState]()
    nodes = {name: node(name) for name in ("node-a", "node-b")}
    rooms = Rooms(index)
    for number, place, pipeline, occupies, gpu in steps:
        key, fresh = f"default/pod-{number}", pod(number, place, pipeline, occupies, gpu)
        old = known.get(key)
        if old is not None and old == fresh:
            index.fold(Deleted(key, old, old, "1"))
            del known[key]
        elif old is not None:
            index.fold(Modified(key, fresh, old, "1"))
            known[key] = fresh
        else:
            index.fold(Added(key, fresh, "1"))
            known[key] = fresh
        for name in ("default/a", "default/b", "default/c"):
            assert dict(index.of(name)) == {k: each for k, each in known.items() if each.pipeline == name}
            assert rooms.of(nodes, name) == cluster_room(nodes.values(), known.values(), name)
    for name in nodes:
        assert dict(index.on(name)) == {k: each for k, each in known.items() if each.node == name}


def test_a_version_that_cannot_be_parsed_and_the_end_of_a_list_change_nothing() -> None:
    index = PodIndex()
    one = pod(1, "node-a", "a", True, 0)
    index.fold(Added("default/pod-1", one, "1"))
    index.fold(Malformed("default/pod-1", "odd", one, "2"))
    index.fold(Synced(1, "3"))
    assert dict(index.of("default/a")) == {"default/pod-1": one}


def test_a_node_that_changed_is_added_up_again() -> None:
    index = PodIndex()
    rooms, first = Rooms(index), node("node-a")
    assert rooms.of({"node-a": first}, "default/a").nodes[0].free_cpu == 7910
    smaller = replace(first, cpu=type(first.cpu)(100))
    assert rooms.of({"node-a": smaller}, "default/a").nodes[0].free_cpu == 100
    assert rooms.of({}, "default/a").nodes == ()


def test_of_many_nodes_those_with_replicas_and_those_that_have_what_a_replica_takes_are_looked_at() -> None:
    index = PodIndex()
    one = pod(1, "node-0", "a", True, 0)
    index.fold(Added("default/pod-1", one, "1"))
    nodes = {name: node(name) for name in (f"node-{number}" for number in range(60))}
    for name in list(nodes)[1:50]:
        nodes[name] = replace(nodes[name], cpu=type(one.cpu)(one.cpu - 1))
    stages = (StageView("s", (), uses_gpu=True),)
    seen = [each.name for each in Rooms(index).of(nodes, "default/a", stages).nodes]
    assert seen[0] == "node-0"
    assert 4 <= len(seen[1:]) <= 8
    assert set(seen[1:]) <= set(list(nodes)[50:])
