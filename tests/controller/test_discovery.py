from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cluster import ScaleTarget, Workload
from controller.discovery import Discovery, Found, discover
from sair.pipeline import Pipeline, parse_pipeline
from sair.quantities import GpuRate, parse_moment
from tests.controller.workloads import workload


def pipeline(status: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Pipeline]:
    raw = {"metadata": {"name": "shop", "namespace": "default"}, "spec": spec, "status": status or {}}
    return {"default/shop": parse_pipeline(raw)}


def found(*workloads: Workload, **more: Any) -> Found:
    (one,) = discover(workloads, more.pop("pipelines", {}), **more).values()
    return one


def stage(name: str, *after: str, **annotations: str) -> Workload:
    own = {key.replace("_", "-"): value for key, value in annotations.items()}
    return workload(name, {**({"after": ",".join(after)} if after else {}), **own})


def test_a_chain_is_found_in_order() -> None:
    view = found(stage("post", "infer"), stage("pre"), stage("infer", "pre", gpu_rate="0.5")).view
    assert view.key == "default/shop"
    assert [(each.name, each.after, each.uses_gpu) for each in view.stages] == [
        ("pre", (), False),
        ("infer", ("pre",), True),
        ("post", ("infer",), False),
    ]
    assert (view.mode, view.slo_s, view.budget_per_hour, view.preference) == ("auto", 1.0, 100.0, 0.85)


@given(st.permutations(["a", "b", "c", "d", "e"]), st.data())
def test_in_a_dag_every_stage_follows_all_of_its_upstreams(names: list[str], data: st.DataObject) -> None:
    workloads = [
        stage(name, *data.draw(st.lists(st.sampled_from(names[:place]), unique=True) if place else st.just([])))
        for place, name in enumerate(names)
    ]
    seen = found(*data.draw(st.permutations(workloads)))
    assert seen.conflicts == ()
    place = {each.name: number for number, each in enumerate(seen.view.stages)}
    assert len(place) == 5
    for each in seen.view.stages:
        assert all(place[upstream] < place[each.name] for upstream in each.after)


def test_pipelines_of_two_names_or_namespaces_are_two() -> None:
    other = workload("pre", {}, pipeline="search")
    assert set(discover([stage("pre"), other], {})) == {"default/shop", "default/search"}


def test_an_unknown_upstream_is_told_and_the_rest_stays_in_order() -> None:
    seen = found(stage("post", "infer", "gone"), stage("infer"))
    assert [(each.name, each.after) for each in seen.view.stages] == [("infer", ()), ("post", ("infer",))]
    assert seen.view.mode == "recommend"
    assert seen.conflicts == ("stage post comes after gone, which the pipeline does not have",)


def layered(layers: int) -> list[Workload]:
    """So many layers of two stages, each after both of the layer above: 2 to the power of layers paths."""
    above = [[f"{side}{layer - 1}" for side in "ab"] if layer else [] for layer in range(layers)]
    return [stage(f"{side}{layer}", *above[layer]) for layer in range(layers) for side in "ab"]


def test_a_graph_with_more_paths_than_p99_is_worked_out_along_is_held_in_recommend() -> None:
    assert found(*layered(8)).conflicts == ()
    seen = found(*layered(9))
    assert seen.conflicts == ("512 paths lead through its stages, P99 is worked out along at most 256",)
    assert seen.view.mode == "recommend"


def test_of_a_cycle_all_stages_count_as_sources() -> None:
    seen = found(stage("a", "b"), stage("b", "a"))
    assert [(each.name, each.after) for each in seen.view.stages] == [("a", ()), ("b", ())]
    assert seen.view.mode == "recommend"
    assert "without a cycle" in seen.conflicts[0]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({"slo_p99": "10s"}, {"slo_p99": "2s"}, "slo-p99: 2.0, 10.0"),
        ({"mode": "auto"}, {"mode": "recommend"}, "mode: auto, recommend"),
        ({"budget_per_hour": "5"}, {"budget_per_hour": "12"}, "budget-per-hour: 5.0, 12.0"),
    ],
)
def test_stages_that_disagree_hold_the_pipeline_in_recommend(
    one: dict[str, str], other: dict[str, str], says: str
) -> None:
    seen = found(stage("a", **one), stage("b", **other))
    assert seen.conflicts == (f"the stages disagree on {says}",)
    assert seen.view.mode == "recommend"


def test_of_two_slos_the_stricter_one_is_watched_meanwhile() -> None:
    assert found(stage("a", slo_p99="10s"), stage("b", slo_p99="2s")).view.slo_s == 2.0


def test_what_the_pipeline_object_says_goes_before_the_stages_and_settles_their_disagreement() -> None:
    own = pipeline(sloP99="250ms", mode="auto", budgetPerHour=7.5, preference=0.6)
    seen = found(stage("a", slo_p99="10s", mode="off"), stage("b", slo_p99="2s"), pipelines=own)
    view = seen.view
    assert seen.conflicts == ()
    assert (view.slo_s, view.mode, view.budget_per_hour, view.preference) == (0.25, "auto", 7.5, 0.6)


@pytest.mark.parametrize("kind", ["HorizontalPodAutoscaler", "ScaledObject"])
def test_a_workload_that_another_autoscaler_scales_holds_the_pipeline_in_recommend(kind: str) -> None:
    owner = ScaleTarget(f"{kind}/own", "default", "Deployment", "a")
    others = [
        ScaleTarget(f"{kind}/x", "default", "StatefulSet", "a"),
        ScaleTarget(f"{kind}/y", "other", "Deployment", "a"),
    ]
    seen = found(stage("a"), owners=[owner, *others])
    assert seen.conflicts == (f"{kind}/own scales Deployment/a as well",)
    assert seen.view.mode == "recommend"
    assert found(stage("a"), owners=others).conflicts == ()


def test_off_stays_off_whatever_is_wrong() -> None:
    assert found(stage("a", "gone", mode="off")).view.mode == "off"


def test_a_stage_claimed_twice_goes_to_the_first_by_name() -> None:
    twin = workload("b", {"stage": "a"})
    seen = found(stage("a"), twin)
    assert seen.workloads["a"].name == "a"
    assert seen.conflicts == ("stage a is claimed by a and b",)


def test_a_workload_with_malformed_annotations_holds_its_own_pipeline_and_no_other() -> None:
    broken = stage("b", gpu_rate="2")
    other = workload("c", {}, pipeline="search")
    seen = discover([stage("a"), broken, other], {})
    assert seen["default/shop"].view.mode == "recommend"
    assert "Deployment/b: sair.dev/gpu-rate: '2'" in seen["default/shop"].conflicts[0]
    assert seen["default/search"].conflicts == ()


def test_a_pipeline_object_that_makes_no_sense_is_not_taken_for_none() -> None:
    seen = found(stage("a"), unreadable={"default/shop": "spec.mode: 'fast'"})
    assert seen.view.mode == "recommend"
    assert seen.conflicts == ("the Pipeline object: spec.mode: 'fast'",)


def test_bounds_of_the_pipeline_go_before_annotations_and_a_misspelt_stage_is_told() -> None:
    own = pipeline(bounds={"a": {"replicasMax": 3, "gpuRateMin": "0.2"}, "b": {"replicasMax": 1}})
    seen = found(stage("a", replicas_max="9", gpu_rate="0.3", cpu_max="2"), pipelines=own)
    limits = seen.view.stages[0].limits
    assert (limits.replicas_max, limits.gpu_milli_min, limits.cpu_max) == (3, 200, 2000)
    assert seen.conflicts == ("spec.bounds names b, which is no stage",)


def test_bounds_that_cross_between_object_and_annotation_are_told() -> None:
    own = pipeline(bounds={"a": {"replicasMin": 5}})
    seen = found(stage("a", replicas_max="3"), pipelines=own)
    assert "the least a replicas is above the most" in seen.conflicts[0]
    assert (seen.view.stages[0].limits.replicas_min, seen.view.stages[0].limits.replicas_max) == (3, 3)


counts = st.none() | st.integers(1, 200)


@given(st.lists(counts, min_size=6, max_size=6), st.integers(1, 60), st.sampled_from(["100m", "1", "12"]))
def test_limits_are_always_in_order_and_what_the_author_set_holds(
    drawn: list[int | None], replicas: int, cpu: str
) -> None:
    names = ("replicas", "gpu-rate", "cpu")
    units: dict[str, Callable[[int], str]] = {
        "replicas": str,
        "gpu-rate": lambda n: str(n / 1000),
        "cpu": lambda n: f"{n * 50}m",
    }
    annotations = {"gpu-rate": "0.1"}
    for name, (low, high) in zip(names, zip(drawn[::2], drawn[1::2], strict=True), strict=True):
        pair = sorted(each for each in (low, high) if each is not None)
        if name == "gpu-rate" and pair and not (pair[0] <= 100 <= pair[-1]):
            continue
        if low is not None:
            annotations[f"{name}-min"] = units[name](pair[0])
        if high is not None:
            annotations[f"{name}-max"] = units[name](pair[-1])
    made = workload("a", annotations, replicas=replicas, resources={"requests": {"cpu": cpu}})
    if made.spec is None:
        return
    limits, bounds = found(made).view.stages[0].limits, made.spec.bounds
    for low, high in (
        (limits.replicas_min, limits.replicas_max),
        (limits.cpu_min, limits.cpu_max),
        (limits.gpu_milli_min, limits.gpu_milli_max),
    ):
        assert low <= high
    assert bounds.replicas_max in (None, limits.replicas_max)
    assert bounds.cpu_min in (None, limits.cpu_min)
    if bounds.gpu_rate_max is not None:
        assert limits.gpu_milli_max == bounds.gpu_rate_max.milli
    if bounds.replicas_max is None and bounds.replicas_min is None:
        assert limits.replicas_max >= replicas


def test_the_status_an_earlier_leader_left_comes_along() -> None:
    own = pipeline({"stages": [{"name": "a", "gpuRate": "0.4"}]})
    seen = found(stage("a"), pipelines=own).status.stage("a")
    assert seen is not None
    assert seen.gpu_rate == "0.4"


def test_the_order_of_workloads_changes_nothing() -> None:
    workloads = [stage("a"), stage("b", "a"), stage("c", "a", "zzz"), workload("d", {"stage": "a"})]
    results = [found(*workloads[place:], *workloads[:place]) for place in range(4)]
    assert all(one == other for one, other in pairwise(results))


def test_what_did_not_change_is_not_worked_out_again_and_what_did_is() -> None:
    first, second = workload("detect"), workload("other", pipeline="else")
    pipelines, discovery = pipeline(), Discovery()
    before = discovery.discover([first, second], pipelines)
    with_status = discovery.discover([first, second], pipeline({"mode": "auto"}))
    assert with_status["default/shop"].status.mode == "auto"
    assert with_status["default/else"] is before["default/else"]
    before = discovery.discover([first, second], pipelines)
    again = discovery.discover([first, second], pipelines)
    assert again["default/shop"] is before["default/shop"]
    changed = discovery.discover([workload("detect", {"mode": "off"}), second], pipelines)
    assert changed["default/shop"].view.mode == "off"
    assert changed["default/else"] is before["default/else"]
    owner = ScaleTarget("HorizontalPodAutoscaler/own", "default", "Deployment", "other")
    owned = discovery.discover([first, second], pipelines, [owner])
    assert owned["default/else"].conflicts
    assert discovery.discover([first], pipelines).keys() == {"default/shop"}
    assert not discovery.discover([first, second], pipelines)["default/else"].conflicts


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["default/shop", "default/else", "default/nobody"]),
            st.sampled_from(["gone", "unreadable", "off", "recommend"]),
        ),
        max_size=12,
    )
)
def test_following_the_pipeline_objects_finds_what_discovering_anew_would(steps: list[tuple[str, str]]) -> None:
    workloads = [workload("detect"), workload("other", pipeline="else"), workload("odd", {"gpu-rate": "much"})]
    pipelines: dict[str, Pipeline] = {}
    unreadable: dict[str, str] = {}
    discovery = Discovery()
    before = discovery.discover(workloads, pipelines)
    for key, what in steps:
        pipelines, unreadable = dict(pipelines), {name: text for name, text in unreadable.items() if name != key}
        if what == "gone":
            pipelines.pop(key, None)
        elif what == "unreadable":
            unreadable[key] = "odd"
        else:
            pipelines[key] = next(iter(pipeline(mode=what).values()))
        now = discovery.follow(pipelines, unreadable)
        assert now == discover(workloads, pipelines, (), unreadable)
        assert all(now[other] is before[other] for other in now if other != key)
        before = now


ASKED = {
    "at": "2026-03-01T03:10:00Z",
    "round": 41,
    "until": "2026-03-01T04:10:00Z",
    "stages": [
        {"name": "infer", "replicas": 2, "cpu": "1500m", "gpuRate": "0.3"},
        {"name": "gone", "replicas": 1, "cpu": "1"},
    ],
}


def test_a_rollback_that_is_asked_for_is_read_for_the_stages_there_are_and_held_until_it_ends() -> None:
    view = found(stage("infer", gpu_rate="0.5"), pipelines=pipeline(rollback=ASKED)).view
    request = view.rollback
    assert request is not None
    assert (request.round, request.done, list(request.stages)) == (41, False, ["infer"])
    assert (request.stages["infer"].cpu, request.stages["infer"].gpu_rate) == (1500, GpuRate(300))
    until_s = parse_moment(ASKED["until"])  # type: ignore[arg-type]  # a text among others
    assert view.held(until_s - 1)
    assert not view.held(until_s)
    forever = {name: value for name, value in ASKED.items() if name != "until"}
    assert found(stage("infer"), pipelines=pipeline(rollback=forever)).view.held(1e12)


@pytest.mark.parametrize(
    ("at", "outcome", "done"),
    [
        (ASKED["at"], "Done", True),
        (ASKED["at"], "Partly", True),
        (ASKED["at"], "Refused", None),
        ("2026-02-28T00:00:00Z", "Refused", False),
    ],
)
def test_what_became_of_a_rollback_stands_in_the_status(at: str, outcome: str, done: bool | None) -> None:
    status = {"rollback": {"at": at, "outcome": outcome, "round": 57}}
    request = found(stage("infer"), pipelines=pipeline(status, rollback=ASKED)).view.rollback
    assert (None if request is None else request.done) is done


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"until": "2026-03-01T04:10:00"}, "until"),
        ({"stages": [{"name": "infer", "replicas": 1, "cpu": "0"}]}, "stages[infer].cpu"),
        ({"stages": [{"name": "infer", "replicas": 1, "cpu": "1", "gpuRate": "0.0"}]}, "stages[infer].gpuRate"),
    ],
)
def test_a_rollback_that_makes_no_sense_is_a_conflict_that_names_the_field(wrong: dict[str, Any], says: str) -> None:
    seen = found(stage("infer"), pipelines=pipeline(rollback={**ASKED, **wrong}))
    assert seen.view.mode == "recommend"
    assert seen.view.rollback is None
    assert seen.conflicts[0].startswith(f"spec.rollback: {says}")
