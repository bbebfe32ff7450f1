"""Self-made certificates and kubeconfigs: every connection of the cluster is mutual TLS, as in a real one."""

import base64
import datetime as dt
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Long enough for a cluster that somebody keeps open, short enough that a leaked key is soon worthless.
_VALIDITY = dt.timedelta(days=30)
# A clock that was set back a little must not make the cluster's own certificates "not yet valid".
_CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, as PEM files; the key is readable by its owner only."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority whose files lie in one directory."""

    def __init__(self, directory: Path, name: str) -> None:
        """Make a new authority.

        Args:
            directory: where its own and every issued file is written; made when absent.
            name: common name, and stem of its file names.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(name)
        self._certificate = (
            _builder(self._subject, self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.files = _write(directory, name, self._certificate, self._key)

    @property
    def certificate(self) -> Path:
        """PEM file of the authority's own certificate."""
        return self.files.certificate

    def issue(
        self, stem: str, common_name: str, *, organizations: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> KeyPair:
        """Issue a certificate.

        Args:
            stem: stem of the file names.
            common_name: to Kubernetes, the user's name.
            organizations: to Kubernetes, the user's groups.
            hosts: DNS names and IP addresses it may serve; empty: a client's certificate only.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])
        builder = (
            _builder(_name(common_name, organizations), self._subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_alternative_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return _write(self._directory, stem, builder.sign(self._key, hashes.SHA256()), key)


def write_signing_key(directory: Path, stem: str) -> KeyPair:
    """A bare key pair, for service-account tokens; `certificate` is the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    pair = KeyPair(directory / f"{stem}.pub", directory / f"{stem}.key")
    pair.certificate.write_bytes(public)
    _write_secret(pair.key, _private_bytes(key))
    return pair


def write_kubeconfig(path: Path, *, server: str, authority: Path, client: KeyPair) -> Path:
    """Write a self-contained kubeconfig (as JSON, which is YAML), readable by its owner only; returns its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sair",
        "clusters": [{"name": "sair", "cluster": {"server": server, "certificate-authority-data": _base64(authority)}}],
        "users": [
            {
                "name": "sair",
                "user": {
                    "client-certificate-data": _base64(client.certificate),
                    "client-key-data": _base64(client.key),
                },
            }
        ],
        "contexts": [{"name": "sair", "context": {"cluster": "sair", "user": "sair"}}],
    }
    _write_secret(path, json.dumps(config, indent=1).encode())
    return path


def _name(common_name: str, organizations: Sequence[str] = ()) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(directory: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    pair = KeyPair(directory / f"{stem}.crt", directory / f"{stem}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_secret(pair.key, _private_bytes(key))
    return pair


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
