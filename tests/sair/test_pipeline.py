from pathlib import Path
from typing import Any

import pytest
import yaml

from sair.crd import custom_resource_definition
from sair.errors import InvalidInput, WireError
from sair.pipeline import Condition, PipelineSpec, PipelineStatus, parse_pipeline, topological_order, with_condition


def raw(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sair.dev/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "vision", "namespace": "shop"},
        "spec": spec,
    }


def test_a_pipeline_survives_being_written_and_read() -> None:
    pipeline = parse_pipeline(raw(sloP99="250ms", mode="auto", bounds={"inference": {"gpuRateMax": "0.8"}}))
    assert pipeline.key == "shop/vision"
    assert parse_pipeline(pipeline.to_raw()) == pipeline


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"sloP99": "fast"}, "spec.sloP99"),
        ({"budgetPerHour": -1}, "spec.budgetPerHour"),
        ({"preference": 1.5}, "spec.preference"),
        ({"mode": "on"}, "Pipeline.spec.mode"),
        ({"bounds": {"a": {"gpuRateMin": "0.9", "gpuRateMax": "0.1"}}}, "spec.bounds.a.gpuRateMin"),
        ({"bounds": {"a": {"replicasMin": 5, "replicasMax": 1}}}, "spec.bounds.a.replicasMin"),
        ({"bounds": {"a": {"cpuMin": "x"}}}, "spec.bounds.a.cpuMin"),
    ],
)
def test_a_malformed_spec_names_its_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_pipeline(raw(**spec))
    assert refused.value.field == field


def test_stages_follow_their_upstreams() -> None:
    assert topological_order({"post": ["b", "a"], "a": ["pre"], "b": ["pre"], "pre": []}) == ("pre", "a", "b", "post")


def test_a_cycle_is_refused_by_name() -> None:
    with pytest.raises(WireError, match=r"a → b → a|b → a → b"):
        topological_order({"a": ["b"], "b": ["a"]})


def test_an_unknown_upstream_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="'ghost'"):
        topological_order({"a": ["ghost"]})


def test_a_condition_keeps_its_transition_time_while_its_status_stays() -> None:
    old = Condition(type="Paused", status="True", reason="User", last_transition_time="2026-01-01T00:00:00Z")
    same = Condition(type="Paused", status="True", reason="Other", last_transition_time="2026-02-01T00:00:00Z")
    other = Condition(type="Paused", status="False", reason="Other", last_transition_time="2026-02-01T00:00:00Z")
    assert with_condition([old], same)[0].last_transition_time == "2026-01-01T00:00:00Z"
    assert with_condition([old], other) == (other,)


def test_the_committed_crd_is_the_one_the_code_builds() -> None:
    committed = yaml.safe_load(Path("deploy/crds/pipelines.yaml").read_text())
    assert committed == custom_resource_definition(), "run: sair crd > deploy/crds/pipelines.yaml"


@pytest.mark.parametrize(("kind", "part"), [(PipelineSpec, "spec"), (PipelineStatus, "status")])
def test_the_schema_has_exactly_the_fields_of_the_type(kind: type[PipelineSpec | PipelineStatus], part: str) -> None:
    version = custom_resource_definition()["spec"]["versions"][0]
    assert set(version["schema"]["openAPIV3Schema"]["properties"][part]["properties"]) == set(
        kind.__struct_encode_fields__
    )
