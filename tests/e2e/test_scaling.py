"""The example pipeline under a ramp: with SAIR, with nothing, and with the cluster's own autoscaler on CPU, side by side."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.installation import Installation
from tests.e2e.controller import redis, short_rounds
from tests.e2e.example import HEADER, PIPELINE, STAGES, Example
from tests.e2e.pods import execute, ready
from tests.e2e.sampling import Sample, Sampler
from tests.e2e.stages import give_gpus

SLO_S = 0.5
# From 5 to 20 requests a second in 48 s, then 20 for as long as what was added needs to pay off. What the stages start with
# serves about 15. With the cluster itself, all three take little more than one core.
_STEPS = 15
RAMP = "".join(f"{12 + 3.2 * step:g} {5 + step}\n" for step in range(1, _STEPS + 1))
RAMP = f"0 5\n{RAMP}78 5\n88 0\n"
RAMP_S = 90.0
HPA_PERCENT = 60
_TOO_BUSY = 0.8


@pytest.fixture(scope="module", autouse=True)
def _fast_controller(cluster: Cluster, installation: Installation) -> Iterator[None]:
    """GPUs on paper and short rounds; afterwards as it was."""
    give_gpus(cluster, per_node=4)
    with short_rounds(cluster):
        yield
    give_gpus(cluster, per_node=0)


@pytest.mark.timeout(400)
def test_under_a_ramp_sair_keeps_the_slo_where_the_same_pipeline_without_it_does_not(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.install_metrics_server()
    examples = {
        "SAIR": Example(cluster, "e2e-scaling-sair", RAMP),
        "none": Example(cluster, "e2e-scaling-none", RAMP, mode="off"),
        f"HPA on CPU, {HPA_PERCENT} %": Example(cluster, "e2e-scaling-hpa", RAMP, mode="off", hpa_percent=HPA_PERCENT),
    }
    scaled = examples["SAIR"]
    try:
        before = _cpu_s()
        sampler, status = side_by_side(list(examples.values()))
        busy = _busy(before, _cpu_s())
        outcomes = {name: each.outcome(SLO_S, *sampler.spent(each.namespace)) for name, each in examples.items()}
        table = "\n".join([HEADER, *(f"| {name} | {each.row} |" for name, each in outcomes.items())])
        report = tmp_path_factory.mktemp("scaling") / "scalers.md"
        report.write_text(f"{table}\n")
        with capsys.disabled():
            print(f"\n{table}\n({report}; the machine was busy to {busy:.0%})")
        assert sampler.overbooked() == []
        _assert_scaled_in_place(cluster, scaled, sampler.of(scaled.namespace))
        _assert_decisions_can_be_seen(cluster, scaled, status)
    finally:
        for each in examples.values():
            each.delete()

    sair, nothing, hpa = outcomes.values()
    assert nothing.p99_s > 2 * SLO_S
    assert hpa.p99_s > SLO_S or (hpa.core_s > sair.core_s and hpa.share_s > sair.share_s)
    assert sair.missed < nothing.missed / 5
    # Where others keep the machine busy, requests wait for its processors, and no scaler of pods can help.
    if busy < _TOO_BUSY:
        assert sair.p99_s <= SLO_S


def side_by_side(examples: Sequence[Example]) -> tuple[Sampler, Mapping[str, Any]]:
    """Run the ramp through all of them at the same time, on the same machine; returns what they had, and the first's status under load."""
    with ThreadPoolExecutor(len(examples)) as pool:
        list(pool.map(Example.deploy, examples))
        with Sampler(examples[0].cluster, [each.namespace for each in examples]) as sampler:
            list(pool.map(Example.start_load, examples))
            time.sleep(RAMP_S)
            status = examples[0].status()
        list(pool.map(Example.stop_load, examples))
    return sampler, status


def _cpu_s() -> list[int]:
    """The machine's processor time since it started, by what it was spent on, in ticks."""
    return [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]


def _busy(before: list[int], after: list[int]) -> float:
    """Share of the processors' time that was neither idle nor spent waiting for a disk."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent)


def _assert_scaled_in_place(cluster: Cluster, example: Example, samples: Sequence[Sample]) -> None:
    seen: dict[str, set[tuple[float, str]]] = {}
    for sample in samples:
        for uid, setting in sample.settings.items():
            seen.setdefault(uid, set()).add(setting)
    # Pods that lived through a change, and none that was restarted for it.
    assert any(len({cpu for cpu, _ in each}) > 1 for each in seen.values()), "CPU of a live pod changed"
    assert any(len({share for _, share in each}) > 1 for each in seen.values()), "share of a live pod changed"
    assert {sample.restarts for sample in samples} == {0}
    for pod in example.pods():
        granted = pod["metadata"]["annotations"].get("sair.dev/gpu-granted")
        if granted and ready(pod):
            shown = execute(cluster, example.namespace, pod["metadata"]["name"], "cat", "/etc/sair/gpu-granted")
            assert shown == granted


def _assert_decisions_can_be_seen(cluster: Cluster, example: Example, status: Mapping[str, Any]) -> None:
    shown = cluster.kubectl("get", "pipelines", f"--namespace={example.namespace}")
    assert PIPELINE in shown
    assert status["lastDecision"]["round"] >= 3
    assert {stage["name"] for stage in status["stages"]} == set(STAGES)
    assert status["p99Seconds"] > 0
    events = json.loads(cluster.kubectl("get", "events", f"--namespace={example.namespace}", "--output=json"))["items"]
    told = [event for event in events if event["involvedObject"]["kind"] == "Pipeline"]
    assert {event["reason"] for event in told} & {"Scaled", "Reflex"}
    # Each decision in its own words, not only the first of a series.
    assert len({event["message"] for event in told if event["reason"] in ("Scaled", "Reflex")}) >= 3
    journal = f"sair:{{{example.namespace}/{PIPELINE}}}:decisions"
    assert int(redis(cluster, "XLEN", journal)) >= status["lastDecision"]["round"]
