"""Secrets that SAIR makes itself, once, so that an installation ships none and asks for none."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sair import wire
from sair.errors import NotFound, WireError
from sair.kube.client import Api
from sair.kube.errors import AlreadyExists
from sair.kube.resources import Resource

__all__ = ["SECRETS", "decode_data", "encode_data", "generate_password", "read_or_create"]

SECRETS: Final = Resource("", "v1", "secrets", True, "Secret")

_PASSWORD_BYTES = 32
_LABELS: Final = {"app.kubernetes.io/part-of": "sair", "app.kubernetes.io/managed-by": "sair"}


async def read_or_create(
    api: Api, namespace: str, name: str, make: Callable[[], Mapping[str, bytes]]
) -> dict[str, Any]:
    """Read a Secret, or create it if there is none; of several that try at once one wins and the others read what it made.

    Args:
        api: Client.
        namespace: Of the Secret.
        name: Of the Secret.
        make: Gives the content, called only if there is none yet.

    Returns:
        The Secret, raw.
    """
    try:
        return await api.get(SECRETS.path(namespace, name))
    except NotFound:
        pass
    body = {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(_LABELS)},
        "type": "Opaque",
        "data": encode_data(make()),
    }
    try:
        return await api.create(SECRETS.path(namespace), body)
    except AlreadyExists:
        return await api.get(SECRETS.path(namespace, name))


def encode_data(content: Mapping[str, bytes]) -> dict[str, str]:
    """Write a Secret's content as its ``data`` field holds it."""
    return {key: base64.b64encode(value).decode("ascii") for key, value in content.items()}


def decode_data(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """Read a raw Secret's content.

    Raises:
        WireError: If its data is no map of base64 text; the message shows no value.
    """
    content = {}
    for key, text in (wire.field(secret, "data", default={})).items():
        try:
            content[key] = base64.b64decode(text, validate=True)
        except (TypeError, ValueError) as error:
            raise WireError(f"Secret data.{key}", "(not shown)", "base64 text") from error
    return content


def generate_password(
    name: Annotated[str, typer.Argument(help="Name of the Secret.")],
    namespace: Annotated[str, typer.Option(help="Namespace of the Secret.", envvar="POD_NAMESPACE")],
    key: Annotated[str, typer.Option(help="Key under which the password is kept.")] = "password",
) -> None:
    """Create a Secret with a random password unless it exists."""
    asyncio.run(_generate_password(namespace, name, key))
    typer.echo(f"Secret {namespace}/{name} has its {key}", err=True)


async def _generate_password(namespace: str, name: str, key: str) -> None:
    kubeconfig = os.environ.get("KUBECONFIG")
    async with await Api.from_environment(Path(kubeconfig) if kubeconfig else None) as api:
        secret = await read_or_create(
            api, namespace, name, lambda: {key: secrets.token_urlsafe(_PASSWORD_BYTES).encode("ascii")}
        )
    if not decode_data(secret).get(key):
        raise WireError(f"Secret {namespace}/{name} data.{key}", None, "a password; delete the Secret to have one made")
