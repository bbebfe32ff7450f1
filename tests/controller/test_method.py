from dataclasses import fields

import pytest

from controller.method import Method
from controller.tuning import Tuning
from sair.errors import SettingsError
from sair.settings import load


def test_without_settings_the_tuning_is_its_own() -> None:
    assert load(Method, {}).tuning(Tuning(interval_s=12.0)) == Tuning(interval_s=12.0)


@pytest.mark.parametrize("name", [field.name for field in fields(Method)])
def test_every_piece_can_be_chosen(name: str) -> None:
    values = {"distance": "euclidean", "frontier_scope": "global", "examples_max": 5, "local_deviation": True}
    value = values.get(name, False if isinstance(getattr(Tuning(), name), bool) else 0.25)
    tuning = load(Method, {f"SAIR_METHOD_{name.upper()}": str(value)}).tuning(Tuning())
    assert getattr(tuning, name) == value != getattr(Tuning(), name)
    assert [each.name for each in fields(Tuning) if getattr(tuning, each.name) != getattr(Tuning(), each.name)] == [
        name
    ]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DISTANCE", "manhattan", "one of igd+, euclidean"),
        ("EXAMPLES_MAX", "-1", ">= 0"),
        ("REFLEX", "perhaps", "on"),
        ("LEAST_REWARD", "much", "number"),
        ("REFLEXES", "on", "SAIR_METHOD_REFLEX"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_can(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError, match=f"SAIR_METHOD_{name}.*{allowed}".replace("+", r"\+")):
        load(Method, {f"SAIR_METHOD_{name}": value})
