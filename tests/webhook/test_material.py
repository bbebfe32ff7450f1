"""When certificates are renewed, and what is trusted meanwhile."""

from __future__ import annotations

import datetime as dt
import ssl

import pytest
from cryptography import x509

from sair.errors import WireError
from sair.tls import client_context
from webhook.material import Material, bundle, from_secret, issue, names, renewed, to_secret
from webhook.settings import WebhookSettings

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
SETTINGS = WebhookSettings(hook_image="example/sair-hook:1", certificate_days=90, authority_days=1000)


def after(days: float) -> dt.datetime:
    return START + dt.timedelta(days=days)


@pytest.fixture(scope="module")
def fresh() -> Material:
    return issue(SETTINGS, now=START)


def test_nothing_is_renewed_before_its_time(fresh: Material) -> None:
    assert renewed(fresh, SETTINGS, now=after(59.9)) is fresh


def test_the_certificate_is_renewed_in_its_last_third_under_the_same_authority(fresh: Material) -> None:
    later = renewed(fresh, SETTINGS, now=after(60.1))

    assert later.authority == fresh.authority
    assert later.serving != fresh.serving
    assert later.expires_at == after(60.1 + 90)


def test_the_authority_is_renewed_in_its_last_tenth_and_the_old_one_stays_trusted_until_it_ends(
    fresh: Material,
) -> None:
    later = renewed(fresh, SETTINGS, now=after(900.1))

    assert later.authority != fresh.authority
    assert bundle(later, now=after(999)) == later.authority.certificate + fresh.authority.certificate
    assert bundle(later, now=after(1001)) == later.authority.certificate
    assert _issuer_of(later) == _subject_of_authority(later)


def test_a_long_absence_renews_both_at_once(fresh: Material) -> None:
    later = renewed(fresh, SETTINGS, now=after(5000))

    assert later.expires_at == after(5090)
    assert bundle(later, now=after(5000)) == later.authority.certificate


def test_another_name_of_the_service_asks_for_another_certificate(fresh: Material) -> None:
    moved = WebhookSettings(hook_image="x", namespace="elsewhere", certificate_days=90, authority_days=1000)

    later = renewed(fresh, moved, now=after(1))

    assert later.authority == fresh.authority
    assert "sair-webhook.elsewhere.svc" in names(moved)
    assert renewed(later, moved, now=after(1)) is later


def test_a_bundle_of_two_authorities_is_trusted_by_a_client(fresh: Material) -> None:
    later = renewed(fresh, SETTINGS, now=after(901))

    context = client_context(bundle(later, now=after(901)))

    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 2


def test_it_survives_the_secret_it_is_kept_in(fresh: Material) -> None:
    later = renewed(fresh, SETTINGS, now=after(901))

    assert from_secret(to_secret(fresh)) == fresh
    assert from_secret(to_secret(later)) == later


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_a_secret_that_lacks_something_is_named_by_the_key_and_shows_no_content(fresh: Material, key: str) -> None:
    content = to_secret(fresh)
    del content[key]
    with pytest.raises(WireError, match=key.replace(".", r"\.")) as caught:
        from_secret(content)
    assert "PRIVATE" not in str(caught.value)


def test_a_secret_that_holds_no_certificate_is_refused(fresh: Material) -> None:
    with pytest.raises(WireError, match=r"tls\.crt"):
        from_secret({**to_secret(fresh), "tls.crt": b"something else"})


def _issuer_of(material: Material) -> x509.Name:
    return x509.load_pem_x509_certificate(material.serving.certificate).issuer


def _subject_of_authority(material: Material) -> x509.Name:
    return x509.load_pem_x509_certificate(material.authority.certificate).subject
