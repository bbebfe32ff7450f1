"""The webhook's own certificate authority: made once, kept in a Secret, renewed in time, announced in the caBundle."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from sair import wire
from sair.errors import Conflict, SairError, WireError
from sair.generated import SECRETS, decode_data, encode_data, read_or_create
from sair.kube.client import Api, PatchKind
from sair.kube.resources import Resource
from sair.logs import get_logger
from sair.tls import load_pair, server_context
from webhook.material import Material, bundle, from_secret, issue, renewed, to_secret
from webhook.settings import WebhookSettings

__all__ = ["CertificateKeeper"]

CONFIGURATIONS: Final = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    namespaced=False,
    kind="MutatingWebhookConfiguration",
)

_FIRST_RETRY_S = 1.0
"""The configuration may be applied a moment after the webhook starts."""


class CertificateKeeper:
    """Keeps certificate, Secret and caBundle in agreement, together with the other replicas of the webhook.

    The order is what makes a change of authority go unnoticed: first the Secret (one replica wins, the others read it), then
    the caBundle with the new and the previous authority, then a wait until every API server has heard of it, and only then
    the new certificate is served.

    Args:
        api: Client.
        settings: Names, lives and delays.
        now: Current time, aware of its zone.
        sleep: Waits a number of seconds.
    """

    def __init__(
        self,
        api: Api,
        settings: WebhookSettings,
        *,
        now: Callable[[], dt.datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._settings = settings
        self._now = now
        self._sleep = sleep
        self._served: Material | None = None
        self._context: ssl.SSLContext | None = None
        self._log = get_logger("webhook")
        self.problem: str | None = "no certificate yet"
        """Why the last look failed, None if it did not."""

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context to serve with; its certificate changes underneath. There is one after the first ``refresh``."""
        if self._context is None:
            raise WireError("certificate", None, "a first successful refresh")
        return self._context

    @property
    def expires_at(self) -> dt.datetime | None:
        """When the certificate that is served ends."""
        return self._served.expires_at if self._served is not None else None

    async def obtain(self) -> None:
        """Try until there is a certificate to serve and the API servers have been told to trust it."""
        obtained = await self.attempt()
        while not obtained:
            await self._sleep(_FIRST_RETRY_S)
            obtained = await self.attempt()

    async def run(self) -> None:
        """Look again and again until cancelled; what fails is logged, and what is served stays."""
        while True:
            await self.attempt()
            await self._sleep(self._settings.certificate_check_s)

    async def attempt(self) -> bool:
        """Refresh once and say whether it went well; ``problem`` tells why not."""
        try:
            await self.refresh()
        except SairError as error:
            self.problem = str(error)
            self._log.warning("certificate not refreshed", error=str(error))
            return False
        self.problem = None
        return True

    async def refresh(self) -> None:
        """Bring Secret, caBundle and served certificate into agreement.

        Raises:
            SairError: If the API server cannot be reached or refuses, or the Secret holds something else.
        """
        material = await self._agreed()
        changed = await self._announce(bundle(material, now=self._now()))
        served = self._served
        if material == served:
            return
        if served is not None and served.authority != material.authority:
            # Also if the bundle was announced by another replica: how long ago is not known. And again if somebody who read
            # the Secret before it changed put the old bundle back meanwhile.
            changed = True
            while changed:
                await self._sleep(self._settings.trust_delay_s)
                changed = await self._announce(bundle(material, now=self._now()))
        await asyncio.to_thread(self._load, material)
        self._served = material
        self._log.info("certificate loaded", expires=material.expires_at.isoformat(), serial=material.serial)

    def _load(self, material: Material) -> None:
        try:
            if self._context is None:
                self._context = server_context(material.serving)
            else:
                load_pair(self._context, material.serving)
        except ssl.SSLError as error:
            raise self._unusable(f"tls.crt and tls.key do not fit together: {error.reason}") from error

    async def _agreed(self) -> Material:
        settings = self._settings
        previous = self._served.authority.certificate if self._served is not None else b""

        def make() -> Mapping[str, bytes]:
            return to_secret(issue(settings, now=self._now(), previous=previous))

        secret = await read_or_create(self._api, settings.namespace, settings.secret, make)
        material = self._parse(secret)
        due = renewed(material, settings, now=self._now())
        if due == material:
            return material
        body = {**secret, "data": encode_data(to_secret(due))}
        path = SECRETS.path(settings.namespace, settings.secret)
        try:
            # The resource version in the body is the precondition: another replica may renew at the same moment.
            return self._parse(await self._api.replace(path, body))
        except Conflict:
            return self._parse(await self._api.get(path))

    def _parse(self, secret: Mapping[str, Any]) -> Material:
        try:
            return from_secret(decode_data(secret))
        except WireError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> WireError:
        name = f"Secret {self._settings.namespace}/{self._settings.secret}"
        return WireError(name, why, "what the webhook wrote; delete the Secret to have it made again")

    async def _announce(self, trusted: bytes) -> bool:
        """Write the authorities into every webhook of the configuration that leads to this Service; say if one lacked them."""
        settings = self._settings
        path = CONFIGURATIONS.path(None, settings.configuration)
        raw = await self._api.get(path)
        text = base64.b64encode(trusted).decode("ascii")
        wrong = [
            hook["name"]
            for hook in wire.field(raw, "webhooks", default=[])
            if wire.field(hook, "clientConfig", "service", "name") == settings.service
            and wire.field(hook, "clientConfig", "service", "namespace") == settings.namespace
            and wire.field(hook, "clientConfig", "caBundle", default="") != text
        ]
        if not wrong:
            return False
        body = {
            "metadata": {"resourceVersion": wire.field(raw, "metadata", "resourceVersion")},
            "webhooks": [{"name": name, "clientConfig": {"caBundle": text}} for name in wrong],
        }
        await self._api.patch(path, body, PatchKind.STRATEGIC, field_manager="sair-webhook")
        self._log.info("caBundle written", webhooks=wrong)
        return True
