import pytest

from controller.settings import load_settings
from sair.errors import SettingsError


def test_redis_url_stands_in_for_the_own_name_and_gives_way_to_it() -> None:
    common = {"REDIS_URL": "redis://a:1/0"}
    assert load_settings(common).redis_url == "redis://a:1/0"
    assert load_settings(common | {"SAIR_CONTROLLER_REDIS_URL": "redis://b:1/0"}).redis_url == "redis://b:1/0"


@pytest.mark.parametrize(
    "environment",
    [
        {"SAIR_CONTROLLER_WINDOW_S": "60"},
        {"SAIR_CONTROLLER_WINDOW_S": "61", "SAIR_CONTROLLER_INTERVAL_S": "600"},
        {"SAIR_CONTROLLER_WINDOW": "15"},
        {"SAIR_CONTROLLER_GPU_DOLLARS_PER_HOUR": "0"},
        {"SAIR_CONTROLLER_SHARDS": "17"},
        {"SAIR_CONTROLLER_METRICS_SOURCE": "prometheus"},
        {"SAIR_CONTROLLER_METRICS_SOURCE": "prometheus", "SAIR_CONTROLLER_PROMETHEUS_URL": "prometheus:9090"},
        {"SAIR_CONTROLLER_PROMETHEUS_POD_LABEL": 'pod"} or {'},
    ],
    ids=[
        "longer than the round",
        "longer than is remembered",
        "misspelt",
        "free GPUs",
        "more shards than the Role names",
        "no server",
        "no scheme",
        "no label",
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="SAIR_CONTROLLER_"):
        load_settings(environment)


def test_a_round_may_be_as_long_as_its_window() -> None:
    settings = load_settings({"SAIR_CONTROLLER_WINDOW_S": "30"})
    assert settings.window_s == settings.interval_s == 30
