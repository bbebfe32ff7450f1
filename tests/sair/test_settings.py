from typing import Annotated, Literal

import pytest
from msgspec import Meta

from sair.errors import SettingsError
from sair.settings import describe, load, settings


@settings("SAIR_TEST_")
class Example:
    """Settings of an example."""

    name: str
    """What it is called."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 8080
    """Port to listen on."""
    mode: Literal["fast", "slow"] = "fast"
    """How it goes."""
    verbose: bool = False
    """Say more."""
    hosts: tuple[str, ...] = ()
    """Where to look."""


def test_settings_come_from_the_environment() -> None:
    loaded = load(
        Example, {"SAIR_TEST_NAME": "x", "SAIR_TEST_PORT": "99", "SAIR_TEST_VERBOSE": "on", "SAIR_TEST_HOSTS": "a, b"}
    )
    assert loaded == Example(name="x", port=99, verbose=True, hosts=("a", "b"))


@pytest.mark.parametrize(
    ("environment", "field", "allowed"),
    [
        ({}, "SAIR_TEST_NAME", "a value: text"),
        ({"SAIR_TEST_NAME": "x", "SAIR_TEST_PORT": "0"}, "SAIR_TEST_PORT", "whole number >= 1 <= 65535"),
        ({"SAIR_TEST_NAME": "x", "SAIR_TEST_PORT": "http"}, "SAIR_TEST_PORT", "whole number"),
        ({"SAIR_TEST_NAME": "x", "SAIR_TEST_MODE": "warp"}, "SAIR_TEST_MODE", "one of fast, slow"),
        ({"SAIR_TEST_NAME": "x", "SAIR_TEST_VERBOSE": "maybe"}, "SAIR_TEST_VERBOSE", "true"),
        ({"SAIR_TEST_NAME": "x", "SAIR_TEST_PROT": "1"}, "SAIR_TEST_PROT", "SAIR_TEST_PORT"),
    ],
)
def test_a_malformed_setting_is_named_with_its_value_and_what_is_allowed(
    environment: dict[str, str], field: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(Example, environment)
    assert refused.value.field == field
    assert allowed in str(refused.value)


def test_variables_that_kubernetes_adds_for_services_do_not_disturb() -> None:
    assert load(
        Example,
        {"SAIR_TEST_NAME": "x", "SAIR_TEST_API_SERVICE_HOST": "10.0.0.1", "SAIR_TEST_API_PORT": "tcp://10.0.0.1"},
    )


def test_the_docstring_under_a_field_documents_it() -> None:
    port = next(doc for doc in describe(Example) if doc.variable == "SAIR_TEST_PORT")
    assert (port.type, port.default, port.text) == ("whole number >= 1 <= 65535", "8080", "Port to listen on.")
