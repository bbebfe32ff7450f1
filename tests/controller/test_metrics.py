from prometheus_client import CollectorRegistry

from controller.llm.client import Usage
from controller.metrics import ControllerMetrics


def test_calls_of_the_model_are_counted_with_their_tokens_and_dollars() -> None:
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry)
    metrics.asked("default/vision", Usage("probe", 30, 2), 0.25)
    metrics.asked("default/vision", Usage("decision", 1000, 50), 0.5)
    place = {"namespace": "default", "pipeline": "vision"}

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"sair_controller_model_{name}_total", place | labels)

    assert (value("calls", purpose="probe"), value("calls", purpose="decision")) == (1, 1)
    assert (value("tokens", direction="in"), value("tokens", direction="out")) == (1030, 52)
    assert value("dollars") == 0.75
