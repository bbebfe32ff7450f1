import random

from hypothesis import given
from hypothesis import strategies as st

from controller.capacity import misfit
from controller.state import Action, ClusterRoom, GpuRoom, NodeRoom, StageDelta
from controller.worlds.room import narrowed
from sair.quantities import Mebibytes, Millicores
from tests.controller.situations import allocations, chain

VIEW = chain()
FEW, MANY = 24, 300
SEEDS = st.integers(0, 10**6)
NEEDS = {name: (each.cpu, each.memory) for name, each in allocations().items()}


def cluster(seed: int, nodes: int, held: int = 0) -> ClusterRoom:
    """Nodes with whatever is left on them, many without CPU for a replica; the first ``held`` hold one."""
    rooms, draw = [], random.Random(seed)
    for number in range(nodes):
        own = {"infer": 1} if number < held else {}
        cards = [
            GpuRoom(draw.randrange(0, 1001, 25), Mebibytes(draw.choice([0, 65536])), own if card == 0 else {})
            for card in range(4)
        ]
        cpu = Millicores(draw.choice([0, 400, 999, draw.randrange(1_000, 64_000)]))
        rooms.append(NodeRoom(f"node-{number}", cpu, Mebibytes(131_072), own, tuple(cards)))
    return ClusterRoom(tuple(rooms))


def replicas(stage: str, more: int) -> Action:
    return Action((StageDelta(stage, replicas=more),))


@given(SEEDS, st.integers(0, FEW))
def test_of_a_small_cluster_every_node_is_looked_at(seed: int, nodes: int) -> None:
    room = cluster(seed, nodes)
    assert narrowed(room, VIEW.stages, NEEDS) is room


@given(SEEDS, st.integers(0, 10))
def test_of_a_large_cluster_the_nodes_that_matter_are_whatever_its_size(seed: int, held: int) -> None:
    room = cluster(seed, MANY, held)
    kept = narrowed(room, VIEW.stages, NEEDS)
    assert len(kept.nodes) <= held + 8 * len(VIEW.stages)
    places = [room.nodes.index(node) for node in kept.nodes]
    assert places == sorted(places)
    assert set(range(held)) <= set(places)


@given(SEEDS, st.integers(FEW + 1, MANY), st.integers(1, 2))
def test_replicas_that_fit_anywhere_fit_on_the_nodes_that_matter(seed: int, nodes: int, more: int) -> None:
    room = cluster(seed, nodes, 2)
    for stage in VIEW.stages:
        action = replicas(stage.name, more)
        everywhere = misfit(VIEW, allocations(), action, room)
        assert misfit(VIEW, allocations(), action, narrowed(room, VIEW.stages, NEEDS)) == everywhere


def test_a_cluster_without_room_offers_none() -> None:
    full = ClusterRoom(tuple(NodeRoom(f"node-{n}", Millicores(0), Mebibytes(0)) for n in range(MANY)))
    assert narrowed(full, VIEW.stages, {}).nodes == ()
