from __future__ import annotations

import pytest

from controller.worlds.sustained import sustained_service_s


def test_a_request_costs_its_cpu_time_over_the_quota_however_fast_it_seems_at_low_load() -> None:
    # 6 ms of CPU each at a tenth of a core: 60 ms when the next one is always waiting, though a rested replica takes 6.
    seen = sustained_service_s(0.006, departures_per_s=8.0, cpu_cores=0.048, replicas=1, cores_each=0.1)

    assert seen == pytest.approx(0.060)


def test_over_several_replicas_it_is_the_time_that_one_of_them_is_kept() -> None:
    seen = sustained_service_s(0.006, departures_per_s=24.0, cpu_cores=0.144, replicas=3, cores_each=0.1)

    assert seen == pytest.approx(0.060)


def test_a_stage_that_waits_for_something_else_than_its_cpu_is_believed() -> None:
    assert sustained_service_s(0.2, departures_per_s=4.0, cpu_cores=0.04, replicas=1, cores_each=0.1) == 0.2


def test_what_a_nearly_idle_stage_uses_anyway_is_not_put_down_to_its_few_requests() -> None:
    # 20 ms a second and a request every five seconds do not make it a request of 100 ms: it took 6.
    seen = sustained_service_s(0.006, departures_per_s=0.2, cpu_cores=0.02, replicas=1, cores_each=0.1)

    assert seen == pytest.approx(0.060)


def test_a_whole_core_lets_nothing_run_ahead() -> None:
    assert sustained_service_s(0.006, departures_per_s=8.0, cpu_cores=0.1, replicas=1, cores_each=1.0) == 0.006


@pytest.mark.parametrize(
    ("departures_per_s", "cpu_cores", "replicas", "cores_each"),
    [(0.0, 0.09, 1, 0.1), (8.0, None, 1, 0.1), (8.0, 0.09, 0, 0.0)],
)
def test_where_nothing_is_told_the_service_time_is_believed(
    departures_per_s: float, cpu_cores: float | None, replicas: int, cores_each: float
) -> None:
    assert sustained_service_s(0.006, departures_per_s, cpu_cores, replicas, cores_each) == 0.006


def test_without_a_measurement_there_is_none() -> None:
    assert sustained_service_s(None, departures_per_s=8.0, cpu_cores=0.09, replicas=1, cores_each=0.1) is None
