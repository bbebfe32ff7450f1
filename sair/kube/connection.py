"""Where the API server is and who we are to it: the only module that speaks kubernetes_asyncio, for its configuration and session."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import load_incluster_config, load_kube_config

from sair.errors import SettingsError

__all__ = ["Connection"]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_AGE_S = 60.0
"""kubelet renews a projected token when 80 % of its life (at least 10 minutes) has passed; the old one stays valid meanwhile."""

_RENEWAL_PAUSE_S = 10.0
"""Credentials that were refused are read again at most this often."""


def _own_version() -> str:
    try:
        return version("sair")
    except PackageNotFoundError:
        return "unknown"


_AGENT = f"sair/{_own_version()}"

_HOW = "a kubeconfig file, a pod with a service account, or $KUBECONFIG or ~/.kube/config"


class Connection:
    """An HTTP session with one API server that keeps its credentials fresh.

    Service-account tokens are read again every minute; whatever the source, they are read again when the server answers 401.
    Tokens appear in no log and in no repr.

    Args:
        configuration: Host, CA, client certificate and token.
        load: Reads the credentials again into a configuration; None if they cannot change.
        monotonic: Local time in seconds.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        load: Callable[[Configuration], Awaitable[None]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = ApiClient(configuration)
        self._load = load
        self._monotonic = monotonic
        self._loaded_at_s = monotonic()
        self._renewal = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Connection({self.host})"

    @property
    def host(self) -> str:
        """Address of the API server, without credentials."""
        return str(self._client.configuration.host)

    @classmethod
    async def from_environment(cls, kubeconfig: Path | None = None) -> Self:
        """Find the configuration as ``Api.from_environment`` says.

        Raises:
            SettingsError: If there is none or it is unusable.
        """
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and (_SERVICE_ACCOUNT / "token").exists():
            return await cls.in_cluster(_SERVICE_ACCOUNT, os.environ)
        return await cls.from_kubeconfig(kubeconfig)

    @classmethod
    async def in_cluster(
        cls, service_account: Path, environment: Mapping[str, str], *, monotonic: Callable[[], float] = time.monotonic
    ) -> Self:
        """Use a pod's service account.

        Args:
            service_account: Folder with ``token`` and ``ca.crt``.
            environment: Holds KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
            monotonic: Local time in seconds.

        Raises:
            SettingsError: If something is missing.
        """

        def read(configuration: Configuration) -> None:
            load_incluster_config(  # type: ignore[no-untyped-call]  # the library has no annotation here
                configuration,
                try_refresh_token=False,
                token_filename=str(service_account / "token"),
                cert_filename=str(service_account / "ca.crt"),
                environ=dict(environment),
            )
            # Editors and secret stores like to end a file with a newline, which no header may contain.
            configuration.api_key["BearerToken"] = configuration.api_key["BearerToken"].strip()

        async def load(configuration: Configuration) -> None:
            await asyncio.to_thread(read, configuration)

        return await cls._loaded(load, str(service_account), monotonic)

    @classmethod
    async def from_kubeconfig(cls, kubeconfig: Path | None = None) -> Self:
        """Use a kubeconfig file's current context; None for $KUBECONFIG or ~/.kube/config.

        Raises:
            SettingsError: If the file is missing or unusable.
        """

        async def load(configuration: Configuration) -> None:
            # It reads files, parses YAML and may run a credential plugin: off this loop, on one of its own.
            await asyncio.to_thread(lambda: asyncio.run(_read_kubeconfig(kubeconfig, configuration)))

        shown = kubeconfig if kubeconfig is not None else os.environ.get("KUBECONFIG", "~/.kube/config")
        return await cls._loaded(load, str(shown))

    @classmethod
    async def _loaded(
        cls,
        load: Callable[[Configuration], Awaitable[None]],
        source: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        configuration = Configuration()
        try:
            await load(configuration)
            return cls(configuration, load=load, monotonic=monotonic)
        except Exception as error:  # the library stumbles over odd files in ways of its own, TypeError among them
            raise SettingsError("Kubernetes configuration", f"{source}: {error}", _HOW) from error

    async def open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's own, not a cancel scope
    ) -> aiohttp.ClientResponse:
        """Send a request and return once the headers are here; raises what aiohttp raises."""
        if self._load is not None and self._monotonic() - self._loaded_at_s > _TOKEN_AGE_S:
            await self.renew_credentials()
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": _AGENT}
        token = self._client.configuration.api_key.get("BearerToken")
        if token:
            headers["Authorization"] = token
        response: aiohttp.ClientResponse = await self._client.rest_client.request(
            method,
            self.host + path,
            query_params=dict(params) if params else None,
            headers=headers,
            body=body,
            _preload_content=False,
            _request_timeout=timeout,
        )
        return response

    async def renew_credentials(self) -> bool:
        """Read the credentials again unless that has just been done; say whether the ones in use are newer than before."""
        if self._load is None:
            return False
        before = self._client.configuration.api_key.get("BearerToken")
        async with self._renewal:
            if self._monotonic() - self._loaded_at_s >= _RENEWAL_PAUSE_S:
                self._loaded_at_s = self._monotonic()
                try:
                    await self._load(self._client.configuration)
                except Exception:
                    # Rotation replaces the file; in between, the credentials at hand are still the best there are.
                    return False
        return bool(self._client.configuration.api_key.get("BearerToken") != before)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


async def _read_kubeconfig(kubeconfig: Path | None, configuration: Configuration) -> None:
    file = str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG")
    await load_kube_config(config_file=file, client_configuration=configuration, persist_config=False)
