"""The examples as the webhook sees them."""

from __future__ import annotations

import pytest

from sair.annotations import is_opted_in, parse_stage
from sair.pipeline import topological_order
from tests.deploy.rendered import EXAMPLES, workloads
from tests.webhook.requests import SETTINGS
from webhook.mutation import Mutated, mutate
from webhook.review import view_pod


@pytest.mark.parametrize("folder", EXAMPLES)
def test_every_stage_is_admitted_and_together_they_are_a_pipeline(folder: str) -> None:
    stages = {}
    for workload in workloads(folder):
        if not is_opted_in(workload.template["metadata"].get("annotations", {})):
            continue
        view = view_pod(workload.template)
        spec = parse_stage(view.annotations)
        assert isinstance(mutate(workload.template, view, spec, SETTINGS, None), Mutated)
        stages[spec.stage] = spec

    assert topological_order({name: spec.after for name, spec in stages.items()}) == (
        "preprocess",
        "inference",
        "postprocess",
    )
    assert {spec.pipeline for spec in stages.values()} == {"image-classification"}
    assert len({spec.slo_p99_s for spec in stages.values()}) == 1
    assert [name for name, spec in stages.items() if spec.gpu_rate is not None] == ["inference"]


@pytest.mark.parametrize("folder", EXAMPLES)
def test_a_stage_is_guaranteed_its_cpu_so_that_resizing_it_changes_what_it_gets(folder: str) -> None:
    for workload in workloads(folder):
        if is_opted_in(workload.template["metadata"].get("annotations", {})):
            for name, container in workload.containers():
                assert container["resources"]["requests"] == container["resources"]["limits"], name
