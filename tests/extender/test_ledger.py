"""The ledger, one situation at a time."""

from __future__ import annotations

from dataclasses import replace

from extender.entries import (
    Assumption,
    BindFailed,
    BindUnsure,
    CardProblem,
    GrantFailed,
    Granting,
    LookedUp,
    LookUp,
    NodeGone,
    NodeSeen,
    NodesListed,
    Outcome,
    PodGone,
    PodSeen,
    PodsListed,
    Refusal,
    Report,
    Tick,
    WishesListed,
    WishesSeen,
    WriteGrant,
    WriteWish,
)
from extender.ledger import Ledger
from extender.wishes import PipelineWishes
from sair.annotations import Bounds
from sair.quantities import GpuRate
from sair.wishes import StageWish
from tests.extender.builders import granted, node_cards, ready_ledger, replica, seated, wished, wishing


def test_a_bind_takes_the_desired_share_and_counts_from_that_moment() -> None:
    ledger = ready_ledger(replica("a", 700))

    decision = ledger.assume("a", "n", 0.0)

    assert isinstance(decision, Assumption)
    assert (decision.index, decision.rate) == (0, GpuRate(700))
    assert ledger.cards("n")[0].free_milli == 300


def test_two_binds_cannot_both_have_the_last_share() -> None:
    ledger = ready_ledger(replica("a", 600), replica("b", 600))

    assert isinstance(ledger.assume("a", "n", 0.0), Assumption)
    refusal = ledger.assume("b", "n", 0.0)

    assert refusal == Refusal("gpu 0: 0.4 of 0.6 free")


def test_a_refused_bind_gives_its_share_back() -> None:
    ledger = ready_ledger(replica("a", 600), replica("b", 600))
    ledger.assume("a", "n", 0.0)

    ledger.fold(BindFailed("a"), 0.0)

    assert isinstance(ledger.assume("b", "n", 0.0), Assumption)


def test_a_bind_without_an_answer_keeps_its_share_until_the_pod_is_seen_anew() -> None:
    pod = replica("a", 600)
    ledger = ready_ledger(pod, replica("b", 600))
    ledger.assume("a", "n", 0.0)

    ledger.fold(BindUnsure("a"), 0.0)
    ledger.fold(BindFailed("a"), 0.0)  # a second attempt was refused, which says nothing about the first
    assert isinstance(ledger.assume("b", "n", 0.0), Refusal)

    ledger.fold(PodSeen(replace(pod, version=2)), 0.0)  # still unbound, and its old version can be bound no more
    assert isinstance(ledger.assume("b", "n", 0.0), Assumption)


def test_a_bind_whose_answer_was_lost_is_tried_again_on_the_same_gpu_and_nowhere_else() -> None:
    ledger = ready_ledger(replica("a", 600), nodes=(node_cards("n", 2), node_cards("m", 2)))
    first = ledger.assume("a", "n", 0.0)
    ledger.fold(BindUnsure("a"), 0.0)

    again = ledger.assume("a", "n", 1.0)
    elsewhere = ledger.assume("a", "m", 1.0)

    assert isinstance(first, Assumption)
    assert isinstance(again, Assumption)
    assert again.index == first.index
    assert isinstance(elsewhere, Refusal)


def test_a_bind_is_never_larger_than_the_wish_it_was_seen_with() -> None:
    ledger = ready_ledger(replica("a", 600))
    ledger.fold(PodSeen(replica("a", 200, version=2)), 0.0)

    decision = ledger.assume("a", "n", 0.0)

    assert isinstance(decision, Assumption)
    assert (decision.rate, decision.replica.version) == (GpuRate(200), 2)


def test_a_raise_that_fits_is_ordered_at_once() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)

    orders = ledger.fold(PodSeen(wishing(pod, 900, 2)), 0.0)

    assert orders == [WriteGrant(wishing(pod, 900, 2), GpuRate(900))]
    assert ledger.cards("n")[0].free_milli == 100


def test_a_lowering_is_ordered_at_once_and_frees_its_share_when_it_is_written() -> None:
    pod = seated("a", 900)
    ledger = ready_ledger(pod)
    lower = wishing(pod, 200, 2)

    assert ledger.fold(PodSeen(lower), 0.0) == [WriteGrant(lower, GpuRate(200))]
    assert ledger.cards("n")[0].free_milli == 100

    ledger.fold(PodSeen(granted(lower, GpuRate(200), 3)), 0.0)
    assert ledger.cards("n")[0].free_milli == 800


def test_a_raise_that_does_not_fit_waits_and_what_is_free_is_kept_for_it() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod, seated("b", 600), replica("new", 100))

    orders = ledger.fold(PodSeen(wishing(pod, 500, 2)), 0.0)

    assert orders == [
        Report(
            wishing(pod, 500, 2), Outcome.WAITING, "0.3 → 0.5: gpu 0 has 0.1 of the 0.2 more that it takes; kept for it"
        )
    ]
    assert ledger.assume("new", "n", 0.0) == Refusal("gpu 0: 0 of 0.1 free (0.1 kept for waiting raises)")


def test_a_waiting_raise_is_granted_as_soon_as_a_neighbour_leaves() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod, seated("b", 600))
    wish = wishing(pod, 500, 2)
    ledger.fold(PodSeen(wish), 0.0)

    assert ledger.fold(PodGone("b"), 0.0) == [WriteGrant(wish, GpuRate(500))]


def test_a_waiting_raise_is_granted_when_a_neighbour_has_ended_though_its_pod_is_still_there() -> None:
    pod, neighbour = seated("a", 300), seated("b", 600)
    ledger = ready_ledger(pod, neighbour)
    wish = wishing(pod, 500, 2)
    ledger.fold(PodSeen(wish), 0.0)

    assert ledger.fold(PodSeen(replace(neighbour, ended=True, version=3)), 0.0) == [WriteGrant(wish, GpuRate(500))]


def test_raises_are_served_in_the_order_of_their_wishes_even_if_a_later_one_would_fit() -> None:
    early, late = seated("z-early", 300), seated("a-late", 300)
    ledger = ready_ledger(early, late, seated("other", 300))
    early, late = wishing(early, 600, 2), wishing(late, 400, 3)

    ledger.fold(PodSeen(early), 0.0)
    orders = ledger.fold(PodSeen(late), 0.0)

    assert orders == [
        Report(late, Outcome.WAITING, "0.3 → 0.4: gpu 0 serves the earlier wish of default/z-early first")
    ]
    assert [pod.uid for pod in ledger.waiting()] == ["z-early", "a-late"]
    # The neighbour goes: both fit now, the early one first.
    assert ledger.fold(PodGone("other"), 0.0) == [WriteGrant(early, GpuRate(600)), WriteGrant(late, GpuRate(400))]


def test_a_wish_that_is_withdrawn_lets_the_next_one_through() -> None:
    early, late = seated("early", 300), seated("late", 300)
    ledger = ready_ledger(early, late, seated("other", 300))
    ledger.fold(PodSeen(wishing(early, 600, 2)), 0.0)
    ledger.fold(PodSeen(wishing(late, 400, 3)), 0.0)

    orders = ledger.fold(PodSeen(wishing(early, 300, 4)), 0.0)

    assert orders == [WriteGrant(wishing(late, 400, 3), GpuRate(400))]


def test_a_wish_keeps_its_turn_when_it_changes_while_it_waits() -> None:
    early, late = seated("early", 300), seated("late", 300)
    ledger = ready_ledger(early, late, seated("other", 300))
    ledger.fold(PodSeen(wishing(early, 600, 2)), 0.0)
    ledger.fold(PodSeen(wishing(late, 500, 3)), 0.0)
    ledger.fold(PodSeen(wishing(early, 550, 4)), 0.0)

    assert [pod.uid for pod in ledger.waiting()] == ["early", "late"]


def test_the_queue_survives_a_restart() -> None:
    pods = (seated("late", 300, 500, version=9), seated("early", 300, 600, version=4), seated("other", 300))

    assert [pod.uid for pod in ready_ledger(*pods).waiting()] == ["early", "late"]


def test_a_grant_that_met_a_changed_pod_is_ordered_again_for_the_pod_as_it_is() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(PodSeen(wishing(pod, 500, 2)), 0.0)

    orders = ledger.fold(PodSeen(wishing(pod, 700, 3)), 0.0)  # read again after the conflict

    assert orders == [WriteGrant(wishing(pod, 700, 3), GpuRate(700))]


def test_a_raise_without_an_answer_stays_charged_and_is_ordered_again() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    wish = wishing(pod, 800, 2)
    ledger.fold(PodSeen(wish), 0.0)

    orders = ledger.fold(GrantFailed("a"), 1.0)

    assert orders == [WriteGrant(wish, GpuRate(800))]
    assert ledger.cards("n")[0].free_milli == 200


def test_a_write_unanswered_for_long_is_looked_up_and_then_given_up() -> None:
    pod = replica("a", 600)
    ledger = ready_ledger(pod, unresolved_s=120.0)
    ledger.assume("a", "n", 0.0)
    ledger.fold(BindUnsure("a"), 0.0)

    assert ledger.fold(Tick(), 119.0) == []
    assert ledger.fold(Tick(), 121.0) == [LookUp(pod)]
    assert ledger.fold(Tick(), 122.0) == []
    ledger.fold(LookedUp("a", 1), 123.0)

    assert ledger.cards("n")[0].free_milli == 1000


def test_a_look_up_does_not_give_up_an_attempt_made_since() -> None:
    pod = replica("a", 600)
    ledger = ready_ledger(pod, unresolved_s=120.0)
    ledger.assume("a", "n", 0.0)
    ledger.fold(Tick(), 121.0)
    ledger.assume("a", "n", 121.5)

    ledger.fold(LookedUp("a", 1), 122.0)

    assert ledger.cards("n")[0].free_milli == 400


def test_what_is_wished_for_a_stage_is_granted_to_all_its_replicas_whatever_their_annotations_say() -> None:
    one, two, other = seated("one", 300), seated("two", 300, index=1), seated("other", 200, stage="detect")
    ledger = ready_ledger(one, two, other, nodes=(node_cards("n", 2),))

    orders = ledger.fold(wished(inference=500), 0.0)

    # Wish and grant are one write: nothing but it happens to the pod.
    assert orders == [WriteGrant(one, GpuRate(500)), WriteGrant(two, GpuRate(500))]
    assert ledger.fold(PodSeen(granted(wishing(one, 500, 2), GpuRate(500), 2)), 0.0) == []
    assert [card.free_milli for card in ledger.cards("n")] == [300, 500]


def test_a_stages_wish_stays_within_the_replicas_own_bounds_and_within_its_pipelines_before_these() -> None:
    pod = replace(seated("a", 300), bounds=Bounds(gpu_rate_min=GpuRate(200), gpu_rate_max=GpuRate(600)))
    ledger = ready_ledger(pod)

    assert ledger.fold(wished(inference=900), 0.0) == [WriteGrant(pod, GpuRate(600))]

    wide = StageWish(GpuRate(900), low=GpuRate(100), high=GpuRate(800))
    ledger = ready_ledger(pod)
    assert ledger.fold(WishesSeen(PipelineWishes("default/vision", {"inference": wide})), 0.0) == [
        WriteGrant(pod, GpuRate(800))
    ]


def test_a_pipeline_that_wishes_no_more_leaves_its_replicas_what_they_have() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(wished(inference=500), 0.0)
    raised = granted(wishing(pod, 500, 2), GpuRate(500), 2)
    ledger.fold(PodSeen(raised), 0.0)

    assert ledger.fold(wished(), 0.0) == []
    assert ledger.fold(PodSeen(wishing(raised, 400, 3)), 0.0) == [WriteGrant(wishing(raised, 400, 3), GpuRate(400))]


def test_a_share_annotated_by_hand_gives_way_to_the_stages_wish() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(wished(inference=300), 0.0)

    assert ledger.fold(PodSeen(wishing(pod, 900, 2)), 0.0) == [WriteWish(wishing(pod, 900, 2), GpuRate(300))]
    assert ledger.cards("n")[0].free_milli == 700


def test_a_new_replica_is_bound_with_the_stages_wish_though_it_was_created_with_another() -> None:
    pod = replica("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(wished(inference=500), 0.0)

    decision = ledger.assume("a", "n", 0.0)

    assert isinstance(decision, Assumption)
    assert decision.rate == GpuRate(500)
    assert ledger.cards("n")[0].free_milli == 500
    assert ledger.wished(pod).desired == GpuRate(500)


def test_a_stages_wish_that_does_not_fit_is_written_alone_once_and_granted_when_there_is_room() -> None:
    pod, neighbour = seated("a", 300), seated("b", 600, stage="detect")
    ledger = ready_ledger(pod, neighbour)
    waiting = wishing(pod, 500, 2)

    assert ledger.fold(wished(inference=500), 0.0) == [
        Report(
            wishing(pod, 500, 1), Outcome.WAITING, "0.3 → 0.5: gpu 0 has 0.1 of the 0.2 more that it takes; kept for it"
        ),
        WriteWish(pod, GpuRate(500)),
    ]
    assert ledger.cards("n")[0].reserved_milli == 100
    assert ledger.fold(PodSeen(waiting), 0.0) == []
    assert ledger.fold(PodGone("b"), 0.0) == [WriteGrant(waiting, GpuRate(500))]


def test_a_raise_that_waits_for_a_neighbours_lowering_is_one_change_of_its_pod() -> None:
    pod, neighbour = seated("a", 300), seated("b", 600, stage="detect")
    ledger = ready_ledger(pod, neighbour)

    # Both in one status: the wish is not shown alone while the neighbour's lowering is on its way.
    assert ledger.fold(wished(inference=600, detect=400), 0.0) == [WriteGrant(neighbour, GpuRate(400))]
    assert ledger.cards("n")[0].reserved_milli == 100
    lowered = granted(wishing(neighbour, 400, 2), GpuRate(400), 2)
    assert ledger.fold(PodSeen(lowered), 0.0) == [WriteGrant(pod, GpuRate(600))]


def test_a_wish_withdrawn_while_it_waits_is_withdrawn_on_the_pod() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod, seated("b", 600, stage="detect"))
    ledger.fold(wished(inference=500), 0.0)
    waiting = wishing(pod, 500, 2)
    ledger.fold(PodSeen(waiting), 0.0)

    assert ledger.fold(wished(inference=300), 0.0) == [WriteWish(waiting, GpuRate(300))]
    assert ledger.cards("n")[0].reserved_milli == 0


def test_a_wish_that_changes_while_a_grant_is_on_its_way_is_granted_after_it() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(wished(inference=800), 0.0)

    # What was ordered may be in force already: it stays charged, is repeated as it was, and then followed by the new wish.
    assert ledger.fold(wished(inference=200), 0.0) == []
    assert ledger.cards("n")[0].free_milli == 200
    assert ledger.fold(GrantFailed("a"), 1.0) == [WriteGrant(pod, GpuRate(800))]
    raised = granted(wishing(pod, 800, 2), GpuRate(800), 2)
    assert ledger.fold(PodSeen(raised), 1.0) == [WriteGrant(raised, GpuRate(200))]


def test_a_wish_that_could_not_be_written_is_decided_anew() -> None:
    pod, neighbour = seated("a", 300), seated("b", 600, stage="detect")
    ledger = ready_ledger(pod, neighbour)
    ledger.fold(wished(inference=500), 0.0)
    ledger.fold(PodGone("b"), 0.0)

    # The one write conditional on the pod's version is still out: nothing else is sent until that is settled.
    assert ledger.fold(GrantFailed("a"), 1.0) == [WriteGrant(pod, GpuRate(500))]


def test_wishes_for_stages_and_on_pods_stand_in_one_queue() -> None:
    early, late = seated("early", 300), seated("late", 300, stage="detect")
    ledger = ready_ledger(early, late, seated("other", 300, stage="store"))
    ledger.fold(wished(inference=600), 0.0)
    ledger.fold(PodSeen(wishing(late, 500, 7)), 0.0)

    assert [pod.uid for pod in ledger.waiting()] == ["early", "late"]


def test_after_a_restart_a_wish_that_no_pod_shows_yet_queues_up_behind_those_that_do() -> None:
    unseen, shown = seated("unseen", 300, version=3), seated("shown", 300, 500, version=9, stage="detect")
    ledger = Ledger()
    ledger.fold(NodeSeen(node_cards()), 0.0)
    ledger.fold(wished(inference=600), 0.0)
    for pod in (unseen, shown, seated("other", 300, stage="store")):
        ledger.fold(PodSeen(pod), 0.0)
    ledger.fold(PodsListed(frozenset(("unseen", "shown", "other")), 20), 0.0)

    assert [pod.uid for pod in ledger.waiting()] == ["shown", "unseen"]


def test_nothing_is_decided_before_the_pipelines_are_known() -> None:
    ledger = Ledger()
    for entry in (NodeSeen(node_cards()), PodSeen(seated("a", 300)), PodsListed(frozenset(("a",)), 1), NodesListed()):
        ledger.fold(entry, 0.0)
    ledger.fold(Granting(True), 0.0)
    assert ledger.fold(wished(inference=500), 0.0) == []

    assert ledger.fold(WishesListed(), 0.0) == [WriteGrant(seated("a", 300), GpuRate(500))]


def test_nothing_is_decided_before_everything_is_known_or_by_one_that_does_not_lead() -> None:
    ledger = Ledger()
    ledger.fold(PodSeen(replica("a", 100)), 0.0)
    ledger.fold(NodeSeen(node_cards()), 0.0)
    ledger.fold(Granting(True), 0.0)
    assert ledger.assume("a", "n", 0.0) == Refusal(
        "the GPU ledger is still being rebuilt from the cluster's annotations"
    )

    ready = ready_ledger(replica("a", 100), seated("b", 100))
    ready.fold(Granting(False), 0.0)
    assert ready.assume("a", "n", 0.0) == Refusal("this extender's scheduler does not hold the Lease")
    assert ready.fold(PodSeen(seated("b", 100, 50, version=2)), 0.0) == []
    # What was wished for meanwhile is granted by whoever leads next.
    assert ready.fold(Granting(True), 0.0) == [WriteGrant(seated("b", 100, 50, version=2), GpuRate(50))]


def test_a_gpu_that_vanished_is_reported_and_nothing_is_raised_on_it() -> None:
    pod = seated("a", 300, index=1)
    ledger = ready_ledger(pod, nodes=(node_cards("n", 2),))

    assert ledger.fold(NodeSeen(node_cards("n", 1)), 0.0) == [
        CardProblem("n", 1, "no such GPU on the node any more, but 1 replicas hold shares of it")
    ]
    wish = wishing(pod, 500, 2)
    assert ledger.fold(PodSeen(wish), 0.0) == [
        Report(wish, Outcome.REFUSED, "gpu 1 is not in the inventory of node n (sair.dev/gpus)")
    ]
    # It comes back: the wish was not lost.
    orders = ledger.fold(NodeSeen(node_cards("n", 2)), 0.0)
    assert orders == [WriteGrant(wish, GpuRate(500)), CardProblem("n", 1, "")]


def test_a_gpu_that_shrank_below_what_its_replicas_hold_is_reported() -> None:
    pod = seated("a", 300, memory=12_000)
    ledger = ready_ledger(pod)

    orders = ledger.fold(NodeSeen(node_cards(memory_mi=8_000)), 0.0)
    refused = ledger.fold(PodSeen(wishing(pod, 500, 2)), 0.0)

    text = "it has 8000Mi, its replicas are entitled to 12000Mi"
    assert orders == [CardProblem("n", 0, text)]
    assert refused == [Report(wishing(pod, 500, 2), Outcome.REFUSED, f"gpu 0: {text}")]


def test_a_lowering_goes_through_even_on_a_gpu_in_trouble() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod)
    ledger.fold(NodeGone("n"), 0.0)

    assert ledger.fold(PodSeen(wishing(pod, 100, 2)), 0.0) == [WriteGrant(wishing(pod, 100, 2), GpuRate(100))]


def test_a_pod_that_another_scheduler_bound_is_reported_and_one_it_granted_counts() -> None:
    ledger = ready_ledger()
    foreign = replica("a", 300, node="n", version=5)

    orders = ledger.fold(PodSeen(foreign), 0.0)
    ledger.fold(PodSeen(seated("b", 600, version=6)), 0.0)

    assert orders == [
        Report(
            foreign, Outcome.REFUSED, "bound to n by another scheduler: no GPU was granted, its hook holds it at 0.05"
        )
    ]
    assert ledger.cards("n")[0].free_milli == 400


def test_an_over_full_card_is_reported_and_takes_nothing_more() -> None:
    ledger = ready_ledger(seated("a", 700), replica("new", 50))

    orders = ledger.fold(PodSeen(seated("b", 600, version=2)), 0.0)

    assert orders == [CardProblem("n", 0, "1.3 of it granted")]
    assert isinstance(ledger.assume("new", "n", 0.0), Refusal)


def test_a_waiting_raise_is_reported_once() -> None:
    pod = seated("a", 300)
    ledger = ready_ledger(pod, seated("b", 600), seated("c", 100))
    ledger.fold(PodSeen(wishing(pod, 500, 2)), 0.0)

    again = ledger.fold(PodSeen(wishing(pod, 500, 3)), 0.0)
    neighbours = ledger.fold(PodSeen(seated("c", 100, version=4)), 0.0)

    assert [*again, *neighbours] == []


def test_old_news_changes_nothing() -> None:
    pod = seated("a", 300, version=5)
    ledger = ready_ledger(pod)

    assert ledger.fold(PodSeen(seated("a", 900, version=4)), 0.0) == []
    assert ledger.cards("n")[0].free_milli == 700


def test_a_late_answer_does_not_bring_a_deleted_pod_back() -> None:
    ledger = ready_ledger(seated("a", 300))
    ledger.fold(PodGone("a"), 0.0)

    ledger.fold(PodSeen(seated("a", 300, version=9)), 0.0)

    assert ledger.cards("n")[0].free_milli == 1000


def test_a_list_drops_what_it_no_longer_has_but_not_what_came_after_it() -> None:
    ledger = ready_ledger(seated("old", 300, version=5), seated("new", 200, version=20))

    ledger.fold(PodsListed(frozenset(), version=10), 0.0)

    assert ledger.cards("n")[0].free_milli == 800


def test_a_pod_that_wants_no_gpu_leaves_no_trace() -> None:
    ledger = ready_ledger(replica("cpu", None, node="n"))

    assert ledger.replica("cpu") is None


def test_memory_limits_placement_as_shares_do() -> None:
    ledger = ready_ledger(seated("a", 100, memory=10_000), replica("b", 100, memory=8_000))

    assert ledger.assume("b", "n", 0.0) == Refusal("gpu 0: 0.9 of 0.1 free, 6000Mi of 8000Mi free")
