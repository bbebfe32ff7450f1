"""Placement, the ledger of shares, and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cost import Prices
from controller.simulation.cluster import Cluster, NodePlan, Replica, cards_needed
from sair.quantities import Mebibytes, Millicores

NODES = (
    NodePlan("gpu", Millicores(8000), Mebibytes(16_000), cards=2, card_memory=Mebibytes(10_000)),
    NodePlan("cpu", Millicores(4000), Mebibytes(8000)),
)


def replica(server: int, milli: int = 0, stage: str = "s", cpu: int = 1000, gpu_memory: int = 1000) -> Replica:
    return Replica(server, stage, Millicores(cpu), Mebibytes(500), milli, milli, Mebibytes(gpu_memory))


def placed(*replicas: Replica) -> Cluster:
    cluster = Cluster(NODES)
    for one in replicas:
        assert cluster.place(one) == ""
    return cluster


def where(cluster: Cluster) -> list[tuple[int | None, int | None]]:
    return [(one.node, one.card) for one in cluster.replicas.values()]


def test_a_cpu_replica_keeps_away_from_cards() -> None:
    cluster = placed(*(replica(number) for number in range(5)))
    assert where(cluster) == [(1, None)] * 4 + [(0, None)]


def test_replicas_of_one_stage_are_spread_and_strangers_fill_up() -> None:
    cluster = placed(replica(1, 300), replica(2, 300), replica(3, 500, stage="other"))
    assert where(cluster)[:2] == [(0, 0), (0, 1)]
    assert where(placed(replica(1, 300), replica(2, 500, stage="other")))[1] == (0, 0)


def test_a_raise_that_does_not_fit_is_reserved_and_granted_when_there_is_room() -> None:
    cluster = placed(replica(1, 600), replica(2, 300, "b"), replica(3, 800, "c"))
    one, other = cluster.replicas[1], cluster.replicas[2]
    assert (one.node, one.card) == (other.node, other.card)
    one.desired_milli = 900
    assert cluster.settle_shares() == []
    assert cluster.free_share(0, 0, reserved=True) == -200
    assert cluster.place(replica(4, 150, "d")) == ""
    assert cluster.replicas[4].card == 1
    other.desired_milli = 100
    assert {changed.server for changed in cluster.settle_shares()} == {1, 2}
    assert one.granted_milli == 900


def test_what_does_not_fit_says_why() -> None:
    cluster = placed(replica(1, 900), replica(2, 900))
    assert (
        cluster.place(replica(3, 200)) == "no node has room for 1000m CPU and 500Mi beside a card with 0.2 and 1000Mi"
    )
    assert "no node has room" in placed(replica(1, 100)).place(replica(2, 100, gpu_memory=20_000))
    assert "no node has room" in placed().place(replica(1, cpu=9000))


def test_room_counts_what_is_wished_as_taken() -> None:
    cluster = placed(replica(1, 300), replica(2))
    cluster.replicas[1].desired_milli = 500
    gpu, cpu = cluster.room().nodes
    assert (gpu.gpus[0].free_milli, gpu.gpus[1].free_milli) == (500, 1000)
    assert gpu.gpus[0].held == {"s": 1}
    assert gpu.gpus[0].free_memory == 9000
    assert (gpu.free_cpu, cpu.free_cpu, cpu.held) == (7000, 3000, {"s": 1})


def test_shares_cost_what_they_are_and_whole_cards_in_full() -> None:
    cluster = placed(replica(1, 300), replica(2, 300))
    prices = Prices(gpu=2.0, vcpu=0.03, gibibyte=0.0)
    assert cluster.cost(prices, whole_cards=False) == pytest.approx(0.6 * 2 + 2 * 0.03)
    assert cluster.cost(prices, whole_cards=True) == pytest.approx(2 + 2 * 0.03)


def test_packing_by_best_fit() -> None:
    room = Mebibytes(10_000)
    assert cards_needed((), room) == 0
    assert cards_needed(((600, 1), (500, 1), (400, 1), (400, 1)), room) == 2
    assert cards_needed(((100, 6000), (100, 6000)), room) == 2


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10_000)), max_size=12))
def test_packing_needs_no_fewer_cards_than_shares_and_memory_do(held: list[tuple[int, int]]) -> None:
    cards = cards_needed(tuple(sorted(held, reverse=True)), Mebibytes(10_000))
    assert cards * 1000 >= sum(milli for milli, _ in held)
    assert cards * 10_000 >= sum(memory for _, memory in held)
    assert cards <= len(held)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(1, 1000), st.integers(0, 6000)),
        st.tuples(st.just("wish"), st.integers(0, 20), st.integers(1, 1000)),
        st.tuples(st.just("remove"), st.integers(0, 20), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS)
def test_no_card_is_ever_granted_more_than_it_has(steps: list[tuple[str, int, int]]) -> None:
    cluster = Cluster(NODES)
    for number, (kind, one, two) in enumerate(steps):
        if kind == "place":
            cluster.place(replica(number, one, gpu_memory=two))
        elif kind == "wish" and one in cluster.replicas:
            cluster.replicas[one].desired_milli = two
        elif kind == "remove":
            cluster.replicas.pop(one, None)
        cluster.settle_shares()
        for card in (0, 1):
            assert cluster.free_share(0, card, reserved=False) >= 0
            assert cluster.free_card_memory(0, card) >= 0
        assert all(cluster.free_cpu(node) >= 0 for node in (0, 1))
