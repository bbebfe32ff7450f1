"""A self-issued certificate authority and the serving certificates it signs, so that SAIR needs no certificate manager."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sair.errors import InvalidInput

__all__ = ["KeyPair", "client_context", "expires_within", "issue_ca", "issue_server", "load_pair", "server_context"]

_CLOCK_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate (PEM, its chain's leaf first) with its private key (PEM)."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "KeyPair(certificate=…, key=[masked])"


def issue_ca(common_name: str, *, now: dt.datetime, days: int = 3650) -> KeyPair:
    """Make a self-signed CA that may sign leaf certificates only.

    Args:
        common_name: Subject of the CA.
        now: Current time, aware of its zone.
        days: Life in days.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue_server(ca: KeyPair, names: Sequence[str], *, now: dt.datetime, days: int = 365) -> KeyPair:
    """Sign a serving certificate for DNS names and IP addresses.

    Args:
        ca: The authority, as ``issue_ca`` made it.
        names: DNS names or IP addresses; the first is the subject.
        now: Current time, aware of its zone.
        days: Life in days.

    Raises:
        InvalidInput: If no name is given.
    """
    if not names:
        raise InvalidInput("names", names, "at least one DNS name or IP address")
    authority = x509.load_pem_x509_certificate(ca.certificate)
    authority_key = serialization.load_pem_private_key(ca.key, password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)  # noqa: S101  # issue_ca makes no other
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def expires_within(pair: KeyPair, margin: dt.timedelta, *, now: dt.datetime) -> bool:
    """Say whether the certificate ends within the margin, or already has."""
    return x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc - margin <= now


def server_context(pair: KeyPair) -> ssl.SSLContext:
    """Make a TLS server context, TLS 1.2 or later. Touches files: from a coroutine call it in a thread."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, pair)
    return context


def load_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Put a certificate into a context; connections made from now on use it, so certificates rotate without a restart.

    Touches files: from a coroutine call it in a thread.
    """
    # ssl reads files only; the directory is private to this user and gone at once.
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        certificate.write_bytes(pair.certificate)
        key.touch(mode=0o600)
        key.write_bytes(pair.key)
        context.load_cert_chain(certificate, key)


def client_context(ca_certificate: bytes) -> ssl.SSLContext:
    """Make a TLS client context that trusts this CA alone."""
    return ssl.create_default_context(cadata=ca_certificate.decode("ascii"))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
