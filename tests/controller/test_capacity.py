import random

from hypothesis import given
from hypothesis import strategies as st

from controller.capacity import highest_cpu, highest_rate, misfit
from controller.state import HOLD, Action, ClusterRoom, GpuRoom, NodeRoom, StageDelta
from sair.quantities import Mebibytes, Millicores
from tests.controller.situations import allocations, chain, room

VIEW = chain()
INFER = VIEW.stages[1]


def act(stage: str, **knobs: int) -> Action:
    return Action((StageDelta(stage, **knobs),))


def test_holding_always_fits() -> None:
    assert misfit(VIEW, allocations(), HOLD, room(free_milli=0, free_cpu=0)) is None


def test_a_share_is_raised_for_every_replica_on_the_card() -> None:
    assert misfit(VIEW, allocations(), act("infer", gpu_milli=100), room(free_milli=200)) is None
    reason = misfit(VIEW, allocations(), act("infer", gpu_milli=100), room(free_milli=199))
    assert reason is not None
    assert "infer" in reason


def test_a_new_replica_needs_a_card_with_its_share_and_its_memory() -> None:
    assert misfit(VIEW, allocations(), act("infer", replicas=1), room(free_milli=500)) is None
    assert "no node has room" in (misfit(VIEW, allocations(), act("infer", replicas=1), room(free_milli=499)) or "")
    tight = ClusterRoom((NodeRoom("n", Millicores(9000), Mebibytes(9000), {}, (GpuRoom(1000, Mebibytes(4095)),)),))
    assert misfit(VIEW, allocations(), act("infer", replicas=1), tight) is not None


def test_a_resize_counts_once_for_each_replica_on_the_node() -> None:
    assert misfit(VIEW, allocations(), act("pre", cpu=500), room(free_cpu=1000)) is None
    assert misfit(VIEW, allocations(), act("pre", cpu=500), room(free_cpu=999)) is not None
    assert misfit(VIEW, allocations(), act("pre", memory=256), room()) is None


def test_what_one_stage_gives_back_another_can_take() -> None:
    swap = Action.of([StageDelta("infer", replicas=-1), StageDelta("pre", cpu=500)])
    assert misfit(VIEW, allocations(), act("pre", cpu=500), room(free_cpu=0)) is not None
    assert misfit(VIEW, allocations(), swap, room(free_cpu=0)) is None


def test_lowering_always_fits() -> None:
    for action in (act("infer", gpu_milli=-200), act("pre", cpu=-500), act("infer", replicas=-1)):
        assert misfit(VIEW, allocations(), action, room(free_milli=0, free_cpu=0)) is None


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(0, 4))
def test_the_highest_share_is_one_that_fits(free: int, replicas: int, on_card: int) -> None:
    on_card = min(on_card, replicas)
    at = allocations(infer=replicas, gpu_milli=200)
    here = room(free_milli=free, held={"infer": on_card, "pre": 2, "post": 1})
    (highest,) = highest_rate(here, INFER, at["infer"], [replicas])
    if highest > 200 and on_card == replicas:
        assert misfit(VIEW, at, act("infer", gpu_milli=highest - 200), here) is None
        if highest < 1000:
            assert misfit(VIEW, at, act("infer", gpu_milli=highest - 199), here) is not None


def test_two_replicas_on_one_card_share_it() -> None:
    # 2 · 0.5 are held, nothing is free: neither can be raised; alone the one that stays could have the whole card.
    reach = highest_rate(room(free_milli=0), INFER, allocations()["infer"], [1, 2])
    assert reach == [1000, 500]


def test_new_replicas_are_packed_so_they_take_from_the_reach() -> None:
    at = allocations(infer=2, gpu_milli=200)
    here = room(free_milli=600, cards=1)
    assert highest_rate(here, INFER, at["infer"], [2, 3, 5, 6]) == [500, 333, 200, 0]


def test_the_highest_cpu_is_bounded_by_the_stage_and_by_the_node() -> None:
    pre = VIEW.stages[0]
    assert highest_cpu(room(), pre, allocations()["pre"], [2]) == [4000]
    assert highest_cpu(room(free_cpu=1000), pre, allocations()["pre"], [2]) == [1500]


def test_a_cluster_without_cards_reaches_nothing() -> None:
    assert highest_rate(room(cards=0), INFER, allocations()["infer"], [2]) == [0]


def plain_reach(cards: list[tuple[int, int, int]], own: int, share: int, now: int, count: int) -> int:
    """What ``highest_rate`` is defined as, looking at every card (free, held, memory for so many more)."""
    places = [[free + held * (own - share), held, more] for free, held, more in cards]
    for _ in range(max(0, now - sum(held for _, held, _ in cards)) + max(0, count - now)):
        able = [place for place in places if place[0] >= share and place[2] > 0]
        if not able:
            return 0
        fullest = min(able, key=lambda place: place[0])
        fullest[0], fullest[1], fullest[2] = fullest[0] - share, fullest[1] + 1, fullest[2] - 1
    return max(0, min([1000, *(free // held + share for free, held, _ in places if held)]))


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([50, 200, 333, 500, 1000]))
def test_looking_at_the_first_few_cards_says_what_looking_at_all_would(
    draw: random.Random, now: int, share: int
) -> None:
    cards = [
        (draw.choice([0, 50, 200, 333, 700, 1000]), draw.choice([0, 0, 0, 1, 2]), draw.choice([0, 1, 30]))
        for _ in range(draw.randint(0, 30))
    ]
    rooms = (GpuRoom(free, Mebibytes(more * INFER.gpu_memory), {"infer": held}) for free, held, more in cards)
    here = ClusterRoom((NodeRoom("n", Millicores(9000), Mebibytes(9000), {}, tuple(rooms)),))
    at = allocations(infer=now, gpu_milli=200)["infer"]
    counts = range(now, now + 7)
    expected = [plain_reach(cards, 200, share, now, count) for count in counts]
    assert highest_rate(here, INFER, at, counts, share) == expected


def test_weighing_an_action_leaves_the_room_as_it_was() -> None:
    here = room(cards=2)
    before = repr(here)
    assert misfit(VIEW, allocations(), act("infer", replicas=2, gpu_milli=100), here) is None
    assert repr(here) == before
