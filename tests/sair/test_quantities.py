from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sair.errors import InvalidInput
from sair.quantities import (
    GpuRate,
    Millicores,
    format_millicores,
    format_moment,
    parse_cpu,
    parse_duration,
    parse_memory,
    parse_moment,
    parse_quantity,
)


@given(st.integers(1, 1000))
def test_a_gpu_rate_survives_being_written_and_read(milli: int) -> None:
    assert GpuRate.parse(str(GpuRate(milli))) == GpuRate(milli)


@given(st.integers(1, 1000))
def test_a_gpu_rate_survives_its_fraction(milli: int) -> None:
    assert GpuRate.of(GpuRate(milli).fraction) == GpuRate(milli)


@pytest.mark.parametrize(
    "text",
    ["0", "0.0", "1.001", "1.5", "-0.1", "+0.1", "0.1234", "nan", "inf", "1e-1", " 0.5", "0.5 ", "", ".", "½", "٠.٥"],
)
def test_a_malformed_gpu_rate_is_refused_with_its_field_and_what_is_allowed(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"sair\.dev/gpu-rate: .*\(0, 1\]"):
        GpuRate.parse(text, field="sair.dev/gpu-rate")


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.0001, float("nan"), float("inf")])
def test_a_fraction_outside_the_unit_interval_is_no_rate(fraction: float) -> None:
    with pytest.raises(InvalidInput):
        GpuRate.of(fraction)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("500m", "0.5"),
        ("1.5Gi", 1.5 * 2**30),
        ("2e3", 2000),
        ("100n", "1e-7"),
        ("1k", 1000),
        ("1Ei", 2**60),
        ("1E", 10**18),
    ],
)
def test_quantities_mean_what_kubernetes_says(text: str, value: float | str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "m", "1.2.3", "1 Gi", "1gi", "0x10", "1e", "1Gi2", "one"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="memory: "):
        parse_quantity(text, field="memory")


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    assert parse_memory("1000000001") == 954
    assert parse_memory("512Mi") == 512
    assert parse_memory("1Gi") == 1024


@pytest.mark.parametrize("text", ["0", "-1Gi", "1", "2Ei", "1e30"])
def test_absurd_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_memory(text)


def test_cpu_is_rounded_up_to_whole_millicores() -> None:
    assert parse_cpu("1100u") == 2
    assert parse_cpu("2") == 2000
    assert format_millicores(Millicores(1500)) == "1500m"


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0)])
def test_durations_carry_their_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["250", "0s", "-1s", "1 s", "1d", "s", "1s1s"])
def test_a_duration_without_a_proper_unit_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"sair\.dev/slo-p99"):
        parse_duration(text, field="sair.dev/slo-p99")


@given(st.integers(0, 4_000_000_000_000))
def test_a_moment_survives_being_written_and_read(milliseconds: int) -> None:
    assert round(parse_moment(format_moment(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize("text", ["", "soon", "2026-03-01T03:00:00", "2026-13-01T03:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="until"):
        parse_moment(text, field="until")
