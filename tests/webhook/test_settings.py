"""Settings of the webhook."""

from __future__ import annotations

import pytest

from sair.errors import InvalidInput, SettingsError
from sair.settings import describe, load
from webhook.settings import WebhookSettings

IMAGE = {"SAIR_WEBHOOK_HOOK_IMAGE": "example/sair-hook:1"}


def test_the_image_of_the_hook_is_all_that_must_be_said() -> None:
    assert load(WebhookSettings, IMAGE).hook_image == "example/sair-hook:1"
    with pytest.raises(SettingsError, match="SAIR_WEBHOOK_HOOK_IMAGE"):
        load(WebhookSettings, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAIR_WEBHOOK_HOOK_IMAGE", "two words"),
        ("SAIR_WEBHOOK_HOOK_IMAGE_PULL_POLICY", "Sometimes"),
        ("SAIR_WEBHOOK_HOOK_CPU", "much"),
        ("SAIR_WEBHOOK_HOOK_MEMORY", "1"),
        ("SAIR_WEBHOOK_HOOK_USER", "0"),
        ("SAIR_WEBHOOK_LISTEN_PORT", "65536"),
        ("SAIR_WEBHOOK_CERTIFICATE_DAYS", "0"),
        ("SAIR_WEBHOOK_TRUST_DELAY_S", "-1"),
        ("SAIR_WEBHOOK_LISTENPORT", "8443"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=variable):
        load(WebhookSettings, {**IMAGE, variable: value})


def test_a_certificate_that_outlives_its_authority_is_refused() -> None:
    with pytest.raises(SettingsError, match="SAIR_WEBHOOK_AUTHORITY_DAYS"):
        load(WebhookSettings, {**IMAGE, "SAIR_WEBHOOK_AUTHORITY_DAYS": "60"})


def test_variables_that_kubernetes_adds_for_a_service_of_the_same_name_do_no_harm() -> None:
    added = {"SAIR_WEBHOOK_SERVICE_HOST": "10.0.0.1", "SAIR_WEBHOOK_PORT": "tcp://10.0.0.1:443"}

    assert load(WebhookSettings, {**IMAGE, **added}).listen_port == 8443


def test_every_setting_is_documented() -> None:
    assert all(setting.text for setting in describe(WebhookSettings))
