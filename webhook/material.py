"""Certificate authority and serving certificate as one value: when it is renewed, and how it is kept in a Secret. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509

from sair.errors import WireError
from sair.tls import KeyPair, expires_within, issue_ca, issue_server
from webhook.settings import WebhookSettings

__all__ = ["Material", "bundle", "from_secret", "issue", "names", "renewed", "to_secret"]


@dataclass(frozen=True, slots=True)
class Material:
    """The authority, the certificate it signed, and the certificate of the authority before it (empty if there was none)."""

    authority: KeyPair
    serving: KeyPair
    previous: bytes = b""

    @property
    def expires_at(self) -> dt.datetime:
        """When the serving certificate ends."""
        return x509.load_pem_x509_certificate(self.serving.certificate).not_valid_after_utc

    @property
    def serial(self) -> str:
        """Serial number of the serving certificate, hexadecimal."""
        return f"{x509.load_pem_x509_certificate(self.serving.certificate).serial_number:x}"


def names(settings: WebhookSettings) -> tuple[str, ...]:
    """The names of the Service; the API server asks for ``<service>.<namespace>.svc``."""
    service, namespace = settings.service, settings.namespace
    short = f"{service}.{namespace}.svc"
    return (short, f"{short}.cluster.local", f"{service}.{namespace}", service)


def issue(settings: WebhookSettings, *, now: dt.datetime, previous: bytes = b"") -> Material:
    """Make a new authority and a certificate of it.

    Args:
        settings: Names and lives.
        now: Current time, aware of its zone.
        previous: Certificate of the authority that is trusted until now.
    """
    authority = issue_ca(f"{settings.service}.{settings.namespace} authority", now=now, days=settings.authority_days)
    return Material(authority, _serving(authority, settings, now), previous)


def renewed(material: Material, settings: WebhookSettings, *, now: dt.datetime) -> Material:
    """Renew what is due: the authority in the last tenth of its life, the certificate in its last third or for other names.

    Returns:
        The same value if nothing is due.
    """
    if expires_within(material.authority, dt.timedelta(days=settings.authority_days) / 10, now=now):
        return issue(settings, now=now, previous=material.authority.certificate)
    due = expires_within(material.serving, dt.timedelta(days=settings.certificate_days) / 3, now=now)
    if due or not set(names(settings)) <= _names_of(material.serving):
        return Material(material.authority, _serving(material.authority, settings, now), material.previous)
    return material


def bundle(material: Material, *, now: dt.datetime) -> bytes:
    """The authorities to trust: this one, and the previous one while it lives."""
    old = material.previous
    keep = old and x509.load_pem_x509_certificate(old).not_valid_after_utc > now
    return material.authority.certificate + (old if keep else b"")


def to_secret(material: Material) -> dict[str, bytes]:
    """Write it as a Secret's content."""
    content = {
        "ca.crt": material.authority.certificate,
        "ca.key": material.authority.key,
        "tls.crt": material.serving.certificate,
        "tls.key": material.serving.key,
    }
    return {**content, "previous-ca.crt": material.previous} if material.previous else content


def from_secret(content: Mapping[str, bytes]) -> Material:
    """Read it back from a Secret's content.

    Raises:
        WireError: Names the key that is missing or holds no certificate; no content is shown.
    """
    for key in ("ca.crt", "ca.key", "tls.crt", "tls.key"):
        if not content.get(key):
            raise WireError(f"data[{key}]", None, "PEM text")
    for key in ("ca.crt", "tls.crt", "previous-ca.crt"):
        if content.get(key):
            _check(key, content[key])
    return Material(
        KeyPair(content["ca.crt"], content["ca.key"]),
        KeyPair(content["tls.crt"], content["tls.key"]),
        content.get("previous-ca.crt", b""),
    )


def _check(key: str, pem: bytes) -> None:
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise WireError(f"data[{key}]", "(not shown)", "a certificate in PEM") from error


def _serving(authority: KeyPair, settings: WebhookSettings, now: dt.datetime) -> KeyPair:
    return issue_server(authority, names(settings), now=now, days=settings.certificate_days)


def _names_of(pair: KeyPair) -> set[str]:
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(extension.value.get_values_for_type(x509.DNSName))
