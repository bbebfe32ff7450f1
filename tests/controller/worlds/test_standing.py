from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.cluster import PodState, parse_pod
from controller.discovery import discover
from controller.worlds.standing import Standing, standings
from tests.controller.workloads import raw_pod, raw_workload, workload

QUOTA = 'pods "detect-7d9" is forbidden: exceeded quota: team, requested: cpu=1, used: cpu=4, limited: cpu=4'
FULL = "0/3 nodes are available: 3 GPU share 0.3 does not fit on any card"


def pod(number: int, state: str) -> PodState:
    """One that is ready, starts on its node, waits for one, was tried in vain, or is held back from the scheduler."""
    conditions: dict[str, list[dict[str, Any]]] = {
        "ready": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        "starting": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
        "new": [],
        "unschedulable": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": FULL},
        ],
        "gated": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
    }
    placed = state in ("ready", "starting")
    raw = raw_pod({"pipeline": "shop", "stage": "detect"}, conditions=conditions[state])
    raw["metadata"] |= {"name": f"detect-{number}", "uid": f"uid-{number}"}
    raw["spec"]["nodeName"] = "node-a" if placed else None
    return parse_pod(raw)


def stage(replicas: int, *states: str, failure: str = "") -> Standing:
    status = {"type": "ReplicaFailure", "status": "True" if failure else "False", "reason": "FailedCreate"}
    raw = raw_workload("detect", replicas=replicas) | {"status": {"conditions": [status | {"message": failure}]}}
    found = discover([workload("detect", raw=raw)], {})["default/shop"]
    return standings(found, [pod(number, state) for number, state in enumerate(states)])["detect"]


@pytest.mark.parametrize(
    ("replicas", "states", "failure", "starting", "absent"),
    [
        (3, ("ready", "starting", "new"), "", 2, []),
        (4, ("ready", "ready"), "", 2, []),
        (4, ("ready", "ready"), QUOTA, 0, [f"FailedCreate: {QUOTA}"] * 2),
        (4, ("ready", "starting", "unschedulable"), "", 2, [f"Unschedulable: {FULL}"]),
        (4, ("ready", "unschedulable"), QUOTA, 0, [f"Unschedulable: {FULL}", *[f"FailedCreate: {QUOTA}"] * 2]),
        (2, ("ready", "gated"), "", 0, ["SchedulingGated: no message"]),
        (2, ("ready", "ready", "unschedulable"), QUOTA, 0, []),
    ],
    ids=[
        "on their way",
        "not created yet",
        "a quota",
        "no node has room",
        "both",
        "held back",
        "one more, of a new version",
    ],
)
def test_replicas_count_as_starting_unless_it_is_known_why_they_do_not(
    replicas: int, states: tuple[str, ...], failure: str, starting: int, absent: list[str]
) -> None:
    seen = stage(replicas, *states, failure=failure)
    assert (seen.starting, list(seen.absent)) == (starting, absent)


def resized(number: int, has: str | None) -> PodState:
    """Ready; asked for 1500 millicores, of which its node has given so much."""
    status = [] if has is None else [{"name": "main", "resources": {"requests": {"cpu": has}}}]
    raw = raw_pod({"pipeline": "shop", "stage": "detect"}, conditions=[{"type": "Ready", "status": "True"}])
    raw["metadata"] |= {"name": f"detect-{number}", "uid": f"uid-{number}"}
    raw["spec"]["containers"] = [{"name": "main", "resources": {"requests": {"cpu": "1500m"}}}]
    raw["status"]["containerStatuses"] = status
    return parse_pod(raw)


@pytest.mark.parametrize(
    ("given", "granted"),
    [
        ((None, None), 1500),
        (("1500m", "1500m"), 1500),
        (("1500m", "1"), 1000),
        (("2", "2"), 2000),
        (("1480m", None), 1500),
        ((), None),
    ],
    ids=["nobody says", "done", "not done by one", "a fall not done", "rounded by a cgroup", "no replica"],
)
def test_a_stage_has_the_cpu_that_its_nodes_give_whatever_was_asked_for(
    given: tuple[str | None, ...], granted: int | None
) -> None:
    pods = tuple(resized(number, has) for number, has in enumerate(given))
    seen = replace(stage(len(given)), pods=pods)
    assert seen.granted_cpu == granted
    assert seen.allocation(None).cpu == (1500 if pods else 1000)


def test_a_failure_that_is_over_says_nothing() -> None:
    raw = raw_workload("detect", replicas=4) | {
        "status": {"conditions": [{"type": "ReplicaFailure", "status": "False", "message": QUOTA}]}
    }
    assert workload("detect", raw=raw).failure == ""
    assert pod(0, "ready").unplaced == ""
