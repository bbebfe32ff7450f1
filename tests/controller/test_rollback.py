from controller.rollback import plan_rollback
from tests.builders import allocation


def test_what_differs_is_listed_knob_by_knob_and_only_that_is_asked_for() -> None:
    then = {"pre": allocation(2, gpu_milli=None), "inference": allocation(2, gpu_milli=300)}
    now = {"pre": allocation(2, gpu_milli=None), "inference": allocation(4, cpu=1500, gpu_milli=500)}
    plan = plan_rollback(then, now)
    assert [str(change) for change in plan.changes] == [
        "inference: replicas 4 → 2",
        "inference: cpu 1500m → 1000m",
        "inference: gpu_rate 500/1000 of a GPU → 300/1000 of a GPU",
    ]
    assert dict(plan.wanted) == {"inference": then["inference"]}


def test_stages_that_came_and_went_are_named_and_left_alone() -> None:
    plan = plan_rollback({"old": allocation(), "same": allocation()}, {"new": allocation(), "same": allocation()})
    assert (plan.changes, plan.gone, plan.new) == ((), ("old",), ("new",))
    assert not plan.wanted


def test_a_stage_that_left_the_gpu_since_gets_no_share_back() -> None:
    plan = plan_rollback({"a": allocation(2, gpu_milli=300)}, {"a": allocation(3, gpu_milli=None)})
    assert [change.knob for change in plan.changes] == ["replicas"]
    assert plan.wanted["a"].gpu_rate is None
