import pytest
from hypothesis import given
from hypothesis import strategies as st

from sair.annotations import PREFIX, is_opted_in, parse_grant, parse_stage
from sair.errors import AnnotationError
from sair.quantities import GpuRate

MINIMAL = {"sair.dev/pipeline": "vision", "sair.dev/stage": "inference"}

KEYS = st.sampled_from(
    [
        *(
            "pipeline",
            "stage",
            "after",
            "gpu-rate",
            "gpu-memory",
            "gpu-rate-min",
            "gpu-rate-max",
            "replicas-min",
            "replicas-max",
        ),
        *(
            "cpu-min",
            "cpu-max",
            "slo-p99",
            "mode",
            "budget-per-hour",
            "metrics-port",
            "metrics-path",
            "latency-metric",
            "container",
        ),
        *("queue-metric", "arrivals-metric", "gpu-granted", "gpu-granted-at", "gpu-index", "injected", "no-such-key"),
    ]
)


def with_(**annotations: str) -> dict[str, str]:
    return MINIMAL | {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}


def test_a_pod_without_the_annotations_did_not_opt_in() -> None:
    assert not is_opted_in({"app": "x", "sair.dev/other": "y"})
    assert is_opted_in({"sair.dev/stage": "inference"})


def test_a_stage_without_a_gpu_rate_runs_on_cpu_alone() -> None:
    spec = parse_stage(MINIMAL)
    assert spec.gpu_rate is None
    assert spec.after == ()
    assert spec.metrics.port == 9090


def test_everything_a_user_can_say_is_read() -> None:
    spec = parse_stage(
        with_(
            after="preprocess, enrich",
            gpu_rate="0.35",
            gpu_memory="8Gi",
            gpu_rate_min="0.1",
            gpu_rate_max="0.8",
            replicas_min="2",
            replicas_max="10",
            cpu_min="500m",
            cpu_max="4",
            slo_p99="250ms",
            mode="recommend",
            budget_per_hour="12.50",
            metrics_port="8080",
            metrics_path="/stats",
            latency_metric="my_latency",
            container="model",
        )
    )
    assert spec.after == ("preprocess", "enrich")
    assert spec.gpu_rate == GpuRate(350)
    assert spec.gpu_memory == 8192
    assert (spec.bounds.replicas_min, spec.bounds.replicas_max) == (2, 10)
    assert (spec.bounds.cpu_min, spec.bounds.cpu_max) == (500, 4000)
    assert spec.slo_p99_s == 0.25
    assert (spec.mode, spec.budget_per_hour) == ("recommend", 12.5)
    assert (spec.metrics.port, spec.metrics.path, spec.metrics.latency) == (8080, "/stats", "my_latency")
    assert spec.container == "model"


@pytest.mark.parametrize(
    ("annotations", "key", "allowed"),
    [
        ({"sair.dev/pipeline": "vision"}, "sair.dev/stage", "needed to opt in"),
        ({"sair.dev/stage": "inference"}, "sair.dev/pipeline", "needed to opt in"),
        (with_(pipeline="Vision"), "sair.dev/pipeline", "DNS label"),
        (with_(pipeline="a" * 64), "sair.dev/pipeline", "DNS label"),
        (with_(gpu_rate="1.5"), "sair.dev/gpu-rate", "(0, 1]"),
        (with_(gpu_rate="half"), "sair.dev/gpu-rate", "(0, 1]"),
        (with_(gpu_rate="0.5", gpu_rate_max="0.4"), "sair.dev/gpu-rate", "at most sair.dev/gpu-rate-max, which is 0.4"),
        (
            with_(gpu_rate="0.1", gpu_rate_min="0.2"),
            "sair.dev/gpu-rate",
            "at least sair.dev/gpu-rate-min, which is 0.2",
        ),
        (
            with_(gpu_rate="0.5", gpu_rate_min="0.9", gpu_rate_max="0.4"),
            "sair.dev/gpu-rate-min",
            "at most sair.dev/gpu-rate-max",
        ),
        (with_(gpu_rate_max="0.5"), "sair.dev/gpu-rate-max", "only beside sair.dev/gpu-rate"),
        (with_(gpu_memory="8Gi"), "sair.dev/gpu-memory", "only beside sair.dev/gpu-rate"),
        (
            with_(replicas_min="3", replicas_max="2"),
            "sair.dev/replicas-min",
            "at most sair.dev/replicas-max, which is 2",
        ),
        (with_(replicas_min="0"), "sair.dev/replicas-min", "1 to 10000"),
        (with_(cpu_min="lots"), "sair.dev/cpu-min", "Kubernetes quantity"),
        (with_(slo_p99="250"), "sair.dev/slo-p99", "duration with its unit"),
        (with_(mode="on"), "sair.dev/mode", "off, recommend, auto"),
        (with_(budget_per_hour="-3"), "sair.dev/budget-per-hour", "dollars per hour"),
        (with_(metrics_port="70000"), "sair.dev/metrics-port", "1 to 65535"),
        (with_(metrics_path="http://evil"), "sair.dev/metrics-path", "absolute URL path"),
        (with_(latency_metric="a{b}"), "sair.dev/latency-metric", "Prometheus metric name"),
        (with_(after="inference"), "sair.dev/after", "the stage itself not among them"),
        (with_(after="a,a"), "sair.dev/after", "different upstream stages"),
        (with_(gpu_rat="0.5"), "sair.dev/gpu-rat", "one of the keys"),
    ],
)
def test_a_malformed_annotation_is_named_with_its_value_and_what_is_allowed(
    annotations: dict[str, str], key: str, allowed: str
) -> None:
    with pytest.raises(AnnotationError) as refused:
        parse_stage(annotations)
    assert refused.value.field == key
    assert allowed in str(refused.value)
    assert str(refused.value).startswith(key + ": ")


@given(st.dictionaries(KEYS.map(PREFIX.__add__), st.text(max_size=40)))
def test_whatever_stands_in_the_annotations_is_read_or_refused_with_a_key_that_exists(
    annotations: dict[str, str],
) -> None:
    try:
        parse_stage(annotations)
    except AnnotationError as error:
        assert error.field.startswith(PREFIX)


def test_what_the_components_write_does_not_disturb_the_users_part() -> None:
    assert parse_stage(with_(gpu_granted="0.5", gpu_index="3", injected="1")) == parse_stage(MINIMAL)


def test_a_grant_is_a_share_and_a_card() -> None:
    assert parse_grant({"sair.dev/gpu-granted": "0.35", "sair.dev/gpu-index": "2"}) == (GpuRate(350), 2)
    assert parse_grant({}) is None


@pytest.mark.parametrize(
    "annotations",
    [
        {"sair.dev/gpu-granted": "0.35"},
        {"sair.dev/gpu-index": "0"},
        {"sair.dev/gpu-granted": "2", "sair.dev/gpu-index": "0"},
        {"sair.dev/gpu-granted": "0.5", "sair.dev/gpu-index": "-1"},
    ],
)
def test_half_a_grant_or_a_malformed_one_is_refused(annotations: dict[str, str]) -> None:
    with pytest.raises(AnnotationError):
        parse_grant(annotations)
