import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.identification import given_fit
from controller.knowledge import Learned
from controller.model import ServiceCurve
from controller.reflex import (
    Queues,
    acted_since,
    freeze,
    frozen,
    look_every_s,
    queue_threshold_s,
    react,
    surge_rate,
    wakes,
    watch_every_s,
)
from controller.state import HOLD, Action, StageGauge, project_all
from controller.tuning import Tuning
from tests.controller.situations import allocations, chain, experienced, observation, room

VIEW, TUNING = chain(), Tuning()
LEARNED = experienced().learned
BURSTY = replace(LEARNED, peaks=replace(LEARNED.peaks, remembered=170.0, remembered_s=LEARNED.peaks.updated_s))
"""Knows of bursts to 170 requests per second; the usual are nearly 40."""


def gauges(
    queues: dict[str, float] | None = None, arrivals: float = 40.0, ready: dict[str, int] | None = None
) -> list[StageGauge]:
    return [
        StageGauge(name, (queues or {}).get(name, 0.0), arrivals, each, (ready or {}).get(name, each.replicas))
        for name, each in allocations().items()
    ]


def test_nothing_queued_nothing_done() -> None:
    assert react(LEARNED, VIEW, gauges(), room(), TUNING) == HOLD


def test_a_few_waiting_requests_are_no_alarm() -> None:
    assert react(LEARNED, VIEW, gauges({"infer": 5.0}, arrivals=90.0), room(), TUNING) == HOLD


def test_a_burst_is_answered_in_one_go_and_not_by_grid_steps_of_a_round() -> None:
    action = react(LEARNED, VIEW, gauges({"infer": 200.0}, arrivals=170.0), room(), TUNING)
    assert action.on("infer").gpu_milli > 200


def test_the_rise_is_no_larger_than_what_arrives_and_waits_needs() -> None:
    small = react(LEARNED, VIEW, gauges({"infer": 40.0}, arrivals=110.0), room(), TUNING)
    large = react(LEARNED, VIEW, gauges({"infer": 400.0}, arrivals=110.0), room(), TUNING)
    assert 0 < small.on("infer").gpu_milli < large.on("infer").gpu_milli


def test_stages_that_the_queue_would_move_on_to_are_raised_with_it() -> None:
    action = react(LEARNED, VIEW, gauges({"pre": 300.0}, arrivals=400.0), room(), TUNING)
    assert action.on("pre").cpu > 0
    assert action.on("infer").gpu_milli > 0


def test_a_stage_that_could_serve_its_queue_anyway_is_left_alone() -> None:
    assert react(LEARNED, VIEW, gauges({"post": 100.0}, arrivals=5.0), room(), TUNING) == HOLD


def test_a_queue_that_stays_although_the_model_sees_capacity_enough_gets_one_step() -> None:
    waiting = gauges({"post": 100.0}, arrivals=5.0)
    assert react(LEARNED, VIEW, waiting, room(), TUNING, {"post": 120.0}) == HOLD
    assert react(LEARNED, VIEW, waiting, room(), TUNING, {"post": 100.0}).on("post").cpu == 500


def test_a_queue_stays_when_it_is_no_shorter_than_a_while_ago_however_often_it_is_looked_at() -> None:
    queues = Queues()
    lengths = {0.0: 100.0, 0.5: 90.0, 1.0: 80.0, 1.5: 70.0, 2.0: 60.0}
    told = {at_s: dict(queues.seen(at_s, gauges({"post": length}))).get("post") for at_s, length in lengths.items()}
    assert told == {0.0: None, 0.5: None, 1.0: None, 1.5: 100.0, 2.0: 90.0}

    # The step that this was worth has to show before there is another.
    queues.changed()
    assert not queues.seen(2.5, gauges({"post": 60.0}))
    assert not queues.seen(3.5, gauges({"post": 60.0}))
    assert queues.seen(4.5, gauges({"post": 60.0}))["post"] == 60.0


@pytest.mark.parametrize(
    ("slo_s", "least_s", "pipelines", "every_s"),
    [
        (0.25, 0.5, 1, 0.5),
        (0.1, 0.5, 1, 0.5),
        (0.4, 0.5, 1, 0.8),
        (4.0, 0.5, 1, 2.0),
        (0.25, 5.0, 1, 5.0),
        (0.25, 0.5, 100, 0.5),
        (0.25, 0.5, 200, 1.0),
        (4.0, 0.5, 200, 2.0),
        (0.25, 0.5, 1_000, 5.0),
        (0.25, 0.5, 5_000, 5.0),
    ],
)
def test_it_looks_every_two_slos_within_bounds_and_less_often_at_very_many(
    slo_s: float, least_s: float, pipelines: int, every_s: float
) -> None:
    assert look_every_s(chain(slo_s=slo_s), Tuning(reflex_interval_s=least_s), pipelines) == every_s


def test_a_stage_never_measured_gets_one_step() -> None:
    action = react(Learned("test/chain"), VIEW, gauges({"infer": 100.0}), room(), TUNING)
    assert action.on("infer").gpu_milli == 50


def test_no_more_is_asked_for_than_the_card_has() -> None:
    action = react(LEARNED, VIEW, gauges({"infer": 500.0}, arrivals=300.0), room(free_milli=240), TUNING)
    assert action.on("infer").gpu_milli == 120
    assert (
        react(LEARNED, VIEW, gauges({"infer": 500.0}, arrivals=300.0), room(free_milli=0), TUNING).on("infer").gpu_milli
        == 0
    )


def test_the_budget_holds_for_the_reflex_too() -> None:
    poor = chain(budget_per_hour=0.5)
    assert react(LEARNED, poor, gauges({"infer": 500.0}, arrivals=300.0), room(), TUNING) == HOLD


def test_switched_off_it_does_nothing() -> None:
    assert react(LEARNED, VIEW, gauges({"infer": 500.0}, arrivals=300.0), room(), Tuning(reflex=False)) == HOLD


def test_a_slow_pipeline_has_a_longer_threshold() -> None:
    assert queue_threshold_s(chain(slo_s=0.2), TUNING) == 0.25
    assert queue_threshold_s(chain(slo_s=4.0), TUNING) == 1.0


def test_while_arrivals_have_left_the_usual_a_quarter_of_a_short_slo_is_an_alarm() -> None:
    quick = replace(VIEW, slo_s=0.25)

    def least_alarm(arrivals: float) -> int:
        return next(
            queue for queue in range(2, 500) if wakes(LEARNED, quick, gauges({"infer": queue}, arrivals), TUNING)
        )

    # A quarter of a second of work, and a quarter of the SLO.
    assert least_alarm(90.0) == pytest.approx(least_alarm(40.0) / 4, abs=1)
    assert least_alarm(60.0) == least_alarm(40.0), "1.5 times the usual is no burst"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e18])
def test_gauges_that_show_no_number_trigger_nothing(value: float) -> None:
    poisoned = [replace(gauge, queue_depth=value, arrivals_per_s=value) for gauge in gauges()]
    assert react(LEARNED, VIEW, poisoned, room(), TUNING) == HOLD


def test_a_missing_gauge_holds() -> None:
    assert react(LEARNED, VIEW, gauges({"infer": 500.0})[:2], room(), TUNING) == HOLD


@given(
    st.dictionaries(st.sampled_from(["pre", "infer", "post"]), st.floats(0.0, 1e4)),
    st.floats(0.0, 1e4),
    st.integers(0, 1000),
    st.integers(0, 32000),
    st.integers(0, 2),
)
def test_it_only_ever_adds_and_stays_inside_bounds_room_and_budget(
    queues: dict[str, float], arrivals: float, free_milli: int, free_cpu: int, ready: int
) -> None:
    at = allocations()
    seen = gauges(queues, arrivals, {"infer": ready})
    action: Action = react(LEARNED, VIEW, seen, room(free_milli=free_milli, free_cpu=free_cpu), TUNING)
    # Whoever does not wake it for want of a reason misses nothing.
    assert not action or wakes(LEARNED, VIEW, seen, TUNING)
    for delta in action.deltas:
        assert delta.is_up
        assert not delta.is_down
        assert delta.replicas == 0
    after = project_all(at, action)
    assert all(each.cpu <= 4000 for each in after.values())
    share = after["infer"].gpu_rate
    assert share is not None
    assert 2 * (share.milli - 500) <= free_milli
    assert sum(each.replicas * each.cpu for each in after.values()) - 5000 <= free_cpu


def test_after_it_acted_descents_are_frozen_for_twenty_seconds() -> None:
    frozen = freeze(LEARNED, 100.0, TUNING)
    assert frozen.frozen_until_s == 120.0
    assert freeze(frozen, 90.0, TUNING).frozen_until_s == 120.0


def test_the_same_observation_gives_the_same_answer() -> None:
    first = react(experienced(observation()).learned, VIEW, gauges({"infer": 200.0}, 170.0), room(), TUNING)
    assert first == react(experienced(observation()).learned, VIEW, gauges({"infer": 200.0}, 170.0), room(), TUNING)


def test_the_cpu_of_a_gpu_stage_is_raised_where_its_whole_share_is_not_enough() -> None:
    tight = replace(LEARNED, fits={**LEARNED.fits, "infer": given_fit(ServiceCurve(0.0, 0.02, 0.004), uses_gpu=True)})
    action = react(tight, VIEW, gauges({"infer": 300.0}, arrivals=150.0), room(), TUNING)
    assert action.on("infer").cpu > 0
    assert action.on("infer").gpu_milli > 0
    enough = react(LEARNED, VIEW, gauges({"infer": 200.0}, arrivals=110.0), room(), TUNING)
    assert enough.on("infer").cpu == 0


def test_the_cpu_of_a_gpu_stage_is_left_for_other_replicas_where_more_of_it_hardly_helps() -> None:
    idle = replace(LEARNED, fits={**LEARNED.fits, "infer": given_fit(ServiceCurve(0.0, 0.0005, 0.02), uses_gpu=True)})
    action = react(idle, VIEW, gauges({"infer": 300.0}, arrivals=150.0), room(), TUNING)
    assert action.on("infer").gpu_milli > 0
    assert action.on("infer").cpu == 0


def test_once_arrivals_leave_the_usual_shares_are_raised_to_the_remembered_peak_at_once() -> None:
    burst = gauges({"infer": 60.0}, arrivals=90.0)
    assert react(BURSTY, VIEW, burst, room(), TUNING).on("infer").gpu_milli > 0
    unknowing = react(BURSTY, VIEW, burst, room(), replace(TUNING, remember_peaks=False))
    assert react(BURSTY, VIEW, burst, room(), TUNING).on("infer").gpu_milli > unknowing.on("infer").gpu_milli
    usual = gauges({"infer": 60.0}, arrivals=42.0)
    without = replace(TUNING, remember_peaks=False)
    assert react(BURSTY, VIEW, usual, room(), TUNING) == react(BURSTY, VIEW, usual, room(), without)


def test_a_burst_of_a_known_kind_is_met_before_anything_is_queued() -> None:
    burst = gauges(arrivals=120.0)
    assert wakes(BURSTY, VIEW, burst, TUNING)
    met = react(BURSTY, VIEW, burst, room(), TUNING)
    assert met == react(BURSTY, VIEW, gauges(arrivals=160.0), room(), TUNING), "at once to all that is held in reserve"
    assert met.on("infer").gpu_milli > 0
    for learned, tuning in ((LEARNED, TUNING), (BURSTY, replace(TUNING, remember_peaks=False))):
        assert not wakes(learned, VIEW, burst, tuning)
        assert react(learned, VIEW, burst, room(), tuning) == HOLD


def test_only_arrivals_where_requests_enter_begin_a_burst() -> None:
    # What leaves a queue that is worked off arrives at the next stage.
    flushed = [replace(gauge, arrivals_per_s=40.0 if gauge.name == "pre" else 160.0) for gauge in gauges()]
    assert not wakes(BURSTY, VIEW, flushed, TUNING)


def test_in_a_known_burst_a_gpu_stage_gets_all_the_cpu_that_the_reserve_counts_on() -> None:
    fit = given_fit(ServiceCurve(0.0, 0.0005, 0.02), uses_gpu=True)
    queued = gauges({"infer": 300.0}, arrivals=150.0)
    knowing = replace(BURSTY, fits={**LEARNED.fits, "infer": fit})
    assert react(knowing, VIEW, queued, room(), TUNING).on("infer").cpu > 0
    unknowing = replace(LEARNED, fits={**LEARNED.fits, "infer": fit})
    assert react(unknowing, VIEW, queued, room(), TUNING).on("infer").cpu == 0


def test_chance_in_a_short_count_is_no_burst() -> None:
    usual = 40.0
    assert surge_rate(BURSTY, 100.0, TUNING) == pytest.approx(TUNING.burst_ratio * usual, rel=0.1)
    half_a_second = surge_rate(BURSTY, 0.5, TUNING)
    # Six standard deviations of a count of twenty.
    assert half_a_second == pytest.approx(usual + 6.0 * math.sqrt(usual / 0.5), rel=0.1)
    assert surge_rate(LEARNED, 0.5, TUNING) == math.inf
    assert surge_rate(BURSTY, 0.01, TUNING) == math.inf, "more than any burst that is known"


def test_bursts_that_are_no_longer_waited_for_are_neither_watched_for_nor_raised_to() -> None:
    over = replace(BURSTY, peaks=replace(BURSTY.peaks, remembered_s=BURSTY.peaks.updated_s - 2400.0))
    assert surge_rate(over, 0.5, TUNING) == math.inf
    by_chance = gauges({"infer": 120.0}, arrivals=90.0)
    without = react(over, VIEW, by_chance, room(), replace(TUNING, remember_peaks=False))
    assert react(over, VIEW, by_chance, room(), TUNING) == without != HOLD


@pytest.mark.parametrize(
    ("slo_s", "pipelines", "every_s"),
    [(0.25, 1, 0.1), (0.4, 1, 0.16), (4.0, 1, 0.4), (0.25, 50, 0.25), (0.25, 200, None)],
)
def test_arrivals_are_glanced_at_five_times_between_looks_as_far_as_there_is_time_for_it(
    slo_s: float, pipelines: int, every_s: float | None
) -> None:
    found = watch_every_s(BURSTY, chain(slo_s=slo_s), TUNING, pipelines)
    assert found == (every_s and pytest.approx(every_s))
    assert watch_every_s(LEARNED, chain(slo_s=slo_s), TUNING, pipelines) is None


def test_what_analogues_foresee_is_raised_to_before_any_queue_is_there() -> None:
    foreseeing = replace(LEARNED, foreseen_per_s=160.0)
    assert react(foreseeing, VIEW, gauges(), room(), TUNING).on("infer").gpu_milli > 0
    assert react(foreseeing, VIEW, gauges(), room(), replace(TUNING, analogues=False)) == HOLD


def test_nothing_wakes_it_where_nothing_waits_and_nothing_is_foreseen() -> None:
    alarming, foreseeing = gauges({"infer": 200.0}, arrivals=170.0), replace(LEARNED, foreseen_per_s=160.0)
    assert not wakes(LEARNED, VIEW, gauges({"infer": 5.0}, arrivals=90.0), TUNING)
    assert wakes(LEARNED, VIEW, alarming, TUNING)
    assert wakes(foreseeing, VIEW, gauges(), TUNING)
    assert not wakes(foreseeing, VIEW, alarming, replace(TUNING, reflex=False))


def test_a_freeze_ends_and_one_that_no_controller_can_have_written_is_none() -> None:
    held = freeze(LEARNED, 300.0, TUNING)
    assert frozen(held, 300.0)
    assert not frozen(held, 300.0 + TUNING.freeze_s)
    assert freeze(held, 290.0, TUNING) == held
    assert acted_since(held, 290.0, 305.0, TUNING)
    assert not acted_since(held, 300.0, 315.0, TUNING)
    absurd = replace(LEARNED, frozen_until_s=4e9)
    assert not frozen(absurd, 300.0)
    assert not acted_since(absurd, 290.0, 305.0, TUNING)
    assert freeze(absurd, 300.0, TUNING) == held
