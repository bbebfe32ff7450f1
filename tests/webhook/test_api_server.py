"""The webhook under a real API server: its own certificates, real admission, real outages, and no right it does not need."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from sair.errors import WireError
from sair.generated import SECRETS, decode_data, encode_data
from sair.kube.client import Api, PatchKind
from sair.kube.errors import Refused
from sair.kube.resources import DEPLOYMENTS, PIPELINES, PODS
from sair.serving import serve
from sair.tls import client_context
from tests.controlplane import give_up
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.errors import Unavailable
from tests.webhook.cluster import SERVICE_ACCOUNT, installed, own_address, route
from tests.webhook.requests import CPU_STAGE, GPU_STAGE, pod, review
from webhook.__main__ import Running, running
from webhook.certificates import CONFIGURATIONS, CertificateKeeper
from webhook.material import Material, from_secret, names
from webhook.server import Admission, admission_application
from webhook.settings import WebhookSettings

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

SETTINGS = WebhookSettings(
    hook_image="example/sair-hook:1", listen_port=0, metrics_port=0, certificate_check_s=0.1, trust_delay_s=0.2
)
SECRET = SECRETS.path("sair-system", "sair-webhook-tls")
CONFIGURATION = CONFIGURATIONS.path(None, "sair-webhook")


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    with installed(control_plane):
        yield control_plane


@pytest_asyncio.fixture
async def admin(cluster: ControlPlane) -> AsyncIterator[Api]:
    async with await Api.from_environment(cluster.kubeconfig) as api:
        yield api


@pytest_asyncio.fixture
async def own(cluster: ControlPlane) -> AsyncIterator[Api]:
    """A client with the webhook's own rights and no others."""
    async with await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api:
        yield api


@pytest_asyncio.fixture(autouse=True)
async def _clean(admin: Api) -> AsyncIterator[None]:
    await _reset(admin)
    yield
    await _reset(admin)


async def _reset(admin: Api) -> None:
    for secret in await admin.list(SECRETS.path("sair-system")):
        await admin.delete(SECRETS.path("sair-system", secret["metadata"]["name"]))
    await _set_bundle(admin, None)


async def _set_bundle(admin: Api, text: str | None) -> None:
    hooks = ("pods.sair.dev", "workloads.sair.dev")
    body = {"webhooks": [{"name": name, "clientConfig": {"caBundle": text}} for name in hooks]}
    await admin.patch(CONFIGURATION, body, PatchKind.STRATEGIC)


async def bundle_of(admin: Api) -> bytes:
    hooks = (await admin.get(CONFIGURATION))["webhooks"]
    (text,) = {hook["clientConfig"].get("caBundle", "") for hook in hooks}
    return base64.b64decode(text)


async def material_of(admin: Api) -> Material:
    return from_secret(decode_data(await admin.get(SECRET)))


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 10.0) -> None:
    for _ in range(int(timeout_s / 0.02)):
        if await condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"not within {timeout_s} s: {what}")


@contextlib.asynccontextmanager
async def serving(cluster: ControlPlane, api: Api, settings: WebhookSettings = SETTINGS) -> AsyncIterator[Running]:
    """The whole webhook, reached by the API server through its Service."""
    address = own_address()
    if address is None:
        give_up(Unavailable("this machine has no address besides loopback that a Service could lead to"))
    async with running(settings, api, registry=CollectorRegistry()) as server:
        async with asyncio.timeout(15):
            await server.up.wait()
        assert server.mutate is not None
        await asyncio.to_thread(route, cluster, address, server.mutate.port)
        yield server


async def create(api: Api, raw: dict[str, Any], *, dry_run: bool = False, patience_s: float = 10.0) -> dict[str, Any]:
    """Create a pod; a webhook that the API server does not reach yet is waited for."""
    body = {**raw, "metadata": {**raw["metadata"], "namespace": "default"}}
    body["spec"]["containers"][0].setdefault("image", "example/app:1")
    async with asyncio.timeout(patience_s):
        while True:
            try:
                return await api.create(PODS.path("default"), body, {"dryRun": "All"} if dry_run else None)
            except Exception as error:
                if "failed calling webhook" not in str(error):
                    raise
                await asyncio.sleep(0.1)


class TestAdmission:
    async def test_a_gpu_pod_comes_out_with_hook_rate_and_scheduler(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own):
            made = await create(admin, pod({**GPU_STAGE, "sair.dev/gpu-granted": "1"}))

        assert made["spec"]["schedulerName"] == "sair-scheduler"
        assert [one["name"] for one in made["spec"]["initContainers"]] == ["sair-hook"]
        assert "sair.dev/gpu-granted" not in made["metadata"]["annotations"]
        env = {one["name"]: one for one in made["spec"]["containers"][0]["env"]}
        assert env["LD_PRELOAD"]["value"] == "/opt/sair/libsair_cuda.so"
        assert (
            env["NVIDIA_VISIBLE_DEVICES"]["valueFrom"]["fieldRef"]["fieldPath"]
            == "metadata.annotations['sair.dev/gpu-index']"
        )

    async def test_a_created_pod_applied_again_stays_as_it_is(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own):
            first = await create(admin, pod(GPU_STAGE))
            again = {
                "metadata": {"generateName": "b-", "annotations": first["metadata"]["annotations"]},
                "spec": first["spec"],
            }
            second = await create(admin, {"apiVersion": "v1", "kind": "Pod", **again})

        assert second["spec"] == first["spec"]
        assert second["metadata"]["annotations"] == first["metadata"]["annotations"]

    async def test_a_restricted_namespace_takes_the_injected_pod(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        strict = {"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        with contextlib.suppress(Exception):
            await admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", **strict})
        context = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
        limits = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        raw = pod(GPU_STAGE, securityContext=context, container={"securityContext": limits})
        raw["metadata"]["namespace"] = "strict"
        async with serving(cluster, own):
            await create(admin, pod(GPU_STAGE))  # by now the API server reaches the webhook
            made = await admin.create(PODS.path("strict"), raw)

        assert made["spec"]["initContainers"][0]["name"] == "sair-hook"

    async def test_a_malformed_annotation_is_refused_with_key_value_and_what_is_allowed(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own):
            with pytest.raises(
                Refused, match=r"sair.dev/gpu-rate: '7' is not allowed; expected a decimal number in \(0, 1\]"
            ):
                await create(admin, pod({**GPU_STAGE, "sair.dev/gpu-rate": "7"}))

    async def test_a_pod_without_annotations_never_reaches_the_webhook(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own) as server:
            await create(admin, pod(GPU_STAGE))
            before = await _requests(server)
            await create(admin, pod())
            await create(admin, pod({"team": "vision"}))
            assert await _requests(server) == before
            await create(admin, pod(CPU_STAGE))
            assert await _requests(server) == before + 1

    async def test_a_deployment_with_a_malformed_template_is_refused_when_it_is_applied(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        path = DEPLOYMENTS.path("default")
        async with serving(cluster, own):
            await create(admin, pod(GPU_STAGE))  # by now the API server reaches the webhook
            with pytest.raises(Refused, match=r"spec.template of deployments inference: sair.dev/gpu-memory: 'lots'"):
                await admin.create(path, _deployment({**GPU_STAGE, "sair.dev/gpu-memory": "lots"}), {"dryRun": "All"})
            made = await admin.create(path, _deployment(GPU_STAGE), {"dryRun": "All"})

        assert made["spec"]["template"]["metadata"]["annotations"] == GPU_STAGE
        assert "initContainers" not in made["spec"]["template"]["spec"]

    async def test_a_deployment_is_taken_without_the_webhook_and_its_scale_never_asks_it(
        self, cluster: ControlPlane, admin: Api
    ) -> None:
        wrong = _deployment({**GPU_STAGE, "sair.dev/gpu-memory": "lots"})
        made = await admin.create(DEPLOYMENTS.path("default"), wrong)
        try:
            await admin.patch(
                DEPLOYMENTS.path("default", "inference", "scale"), {"spec": {"replicas": 2}}, PatchKind.MERGE
            )
        finally:
            await admin.delete(DEPLOYMENTS.path("default", "inference"))

        assert made["metadata"]["name"] == "inference"

    async def test_a_dry_run_leaves_nothing_behind(self, cluster: ControlPlane, own: Api, admin: Api) -> None:
        async with serving(cluster, own):
            made = await create(admin, pod(GPU_STAGE), dry_run=True)

        assert made["spec"]["schedulerName"] == "sair-scheduler"
        found = await admin.list(PODS.path("default"), {"fieldSelector": f"metadata.name={made['metadata']['name']}"})
        assert found == []

    async def test_new_replicas_get_the_rate_that_the_controller_set(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        raw = {"apiVersion": "sair.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "vision"}}
        await admin.create(PIPELINES.path("default"), raw)
        try:
            async with serving(cluster, own):
                await create(admin, pod(GPU_STAGE))
                status = {"mode": "auto", "stages": [{"name": "inference", "gpuRate": "0.65"}]}
                await admin.patch(PIPELINES.path("default", "vision", "status"), {"status": status}, PatchKind.MERGE)

                async def stamped() -> bool:
                    made = await create(admin, pod(GPU_STAGE), dry_run=True)
                    return bool(made["metadata"]["annotations"]["sair.dev/gpu-rate"] == "0.65")

                await until(stamped, "the rate of the Pipeline")
        finally:
            await admin.delete(PIPELINES.path("default", "vision"))

    async def test_it_serves_from_what_it_knows_while_the_api_server_is_away(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own) as server:
            await create(admin, pod(GPU_STAGE))
            trusted = await bundle_of(admin)
            try:
                await asyncio.to_thread(cluster.stop)
                await asyncio.sleep(0.3)
                assert await _status(f"http://127.0.0.1:{server.health.port}/readyz") == 200
                assert server.mutate is not None and await _certificate_at(server.mutate.port, trusted)
            finally:
                await asyncio.to_thread(cluster.start)
            await create(admin, pod(GPU_STAGE))


class TestCertificates:
    async def test_one_of_many_replicas_makes_the_secret_and_all_serve_what_it_holds(
        self, own: Api, admin: Api
    ) -> None:
        keepers = [CertificateKeeper(own, SETTINGS, now=_now) for _ in range(5)]

        await asyncio.gather(*(keeper.obtain() for keeper in keepers))

        agreed = await material_of(admin)
        assert {keeper.expires_at for keeper in keepers} == {agreed.expires_at}
        assert await bundle_of(admin) == agreed.authority.certificate

    async def test_of_many_replicas_that_renew_at_once_one_wins_and_all_agree(self, own: Api, admin: Api) -> None:
        clock = _Clock(_now() - dt.timedelta(days=80))
        keepers = [CertificateKeeper(own, SETTINGS, now=clock) for _ in range(5)]
        await asyncio.gather(*(keeper.obtain() for keeper in keepers))
        before = await material_of(admin)
        clock.time = _now()

        await asyncio.gather(*(keeper.obtain() for keeper in keepers))

        after = await material_of(admin)
        assert after.serving != before.serving
        assert {keeper.expires_at for keeper in keepers} == {after.expires_at}
        assert await bundle_of(admin) == before.authority.certificate

    async def test_a_bundle_that_somebody_resets_is_written_again(
        self, cluster: ControlPlane, own: Api, admin: Api
    ) -> None:
        async with serving(cluster, own):
            right = await bundle_of(admin)
            await _set_bundle(admin, None)

            async def repaired() -> bool:
                return await bundle_of(admin) == right

            await until(repaired, "the bundle")

    async def test_the_certificate_is_replaced_while_serving_and_no_client_notices(self, own: Api, admin: Api) -> None:
        clock = _Clock(_now() - dt.timedelta(days=80))
        keeper = CertificateKeeper(own, SETTINGS, now=clock)
        await keeper.obtain()
        app = admission_application(Admission(SETTINGS, lambda _key: None, CollectorRegistry()), SETTINGS)
        async with serve(app, host="127.0.0.1", port=0, tls=keeper.context) as served:
            trusted = await bundle_of(admin)
            connector = aiohttp.TCPConnector(ssl=client_context(trusted))
            async with aiohttp.ClientSession(connector=connector) as client:
                await _ask(client, served.port)
                before = await _certificate_at(served.port, trusted)
                clock.time = _now()
                await keeper.obtain()
                # One client goes on over its connection, another makes a new one.
                await _ask(client, served.port)
                after = await _certificate_at(served.port, trusted)

        assert before != after
        assert ssl.DER_cert_to_PEM_cert(after).encode() == (await material_of(admin)).serving.certificate
        assert await bundle_of(admin) == trusted

    async def test_a_new_authority_is_trusted_before_it_is_used_and_the_old_one_still_after(
        self, own: Api, admin: Api
    ) -> None:
        short = replace(SETTINGS, authority_days=100, certificate_days=30)
        clock = _Clock(_now() - dt.timedelta(days=95))
        naps: list[tuple[bytes, dt.datetime | None]] = []

        async def sleep(_seconds: float) -> None:
            naps.append((await bundle_of(admin), keeper.expires_at))

        keeper = CertificateKeeper(own, short, now=clock, sleep=sleep)
        await keeper.obtain()
        old, served = await material_of(admin), keeper.expires_at
        clock.time = _now()

        await keeper.obtain()

        new = await material_of(admin)
        both = new.authority.certificate + old.authority.certificate
        assert naps == [(both, served)]
        assert await bundle_of(admin) == both
        assert keeper.expires_at == new.expires_at

    async def test_a_bundle_put_back_by_a_slower_replica_delays_the_new_certificate(self, own: Api, admin: Api) -> None:
        short = replace(SETTINGS, authority_days=100, certificate_days=30)
        clock = _Clock(_now() - dt.timedelta(days=95))
        naps = 0

        async def sleep(_seconds: float) -> None:
            nonlocal naps
            naps += 1
            if naps == 1:
                await _set_bundle(admin, base64.b64encode(old.authority.certificate).decode())

        keeper = CertificateKeeper(own, short, now=clock, sleep=sleep)
        await keeper.obtain()
        old = await material_of(admin)
        clock.time = _now()

        await keeper.obtain()

        assert naps == 2
        assert (await material_of(admin)).authority.certificate in await bundle_of(admin)

    async def test_a_deleted_secret_is_made_anew_and_the_old_authority_stays_trusted(
        self, own: Api, admin: Api
    ) -> None:
        keeper = CertificateKeeper(own, SETTINGS, now=_now)
        await keeper.obtain()
        old = await material_of(admin)
        await admin.delete(SECRET)

        await keeper.obtain()

        new = await material_of(admin)
        assert new.authority != old.authority
        assert await bundle_of(admin) == new.authority.certificate + old.authority.certificate

    async def test_a_secret_with_foreign_content_is_never_overwritten(self, own: Api, admin: Api) -> None:
        body = {"metadata": {"name": "sair-webhook-tls"}, "data": encode_data({"tls.crt": b"mine"})}
        await admin.create(SECRETS.path("sair-system"), {"apiVersion": "v1", "kind": "Secret", **body})
        keeper = CertificateKeeper(own, SETTINGS, now=_now)

        assert not await keeper.attempt()

        assert keeper.problem is not None and "delete the Secret to have it made again" in keeper.problem
        assert decode_data(await admin.get(SECRET)) == {"tls.crt": b"mine"}
        with pytest.raises(WireError):
            _ = keeper.context

    async def test_key_and_certificate_that_do_not_fit_are_reported_and_the_old_pair_stays(
        self, own: Api, admin: Api
    ) -> None:
        keeper = CertificateKeeper(own, SETTINGS, now=_now)
        await keeper.obtain()
        served = keeper.expires_at
        wrong = {"data": encode_data({"tls.key": (await material_of(admin)).authority.key})}
        await admin.patch(SECRET, wrong, PatchKind.MERGE)

        assert not await keeper.attempt()

        assert keeper.problem is not None and "do not fit together" in keeper.problem
        assert keeper.expires_at == served


class TestRights:
    @pytest.mark.parametrize(
        "path",
        [
            SECRETS.path("sair-system"),
            SECRETS.path("sair-system", "sair-redis"),
            SECRETS.path("default"),
            PODS.path("default"),
            CONFIGURATIONS.path(),
            CONFIGURATIONS.path(None, "another"),
        ],
    )
    async def test_the_webhook_may_read_nothing_else(self, own: Api, path: str) -> None:
        with pytest.raises(Refused, match="Forbidden"):
            await own.get(path)

    async def test_the_webhook_may_not_change_a_pipeline(self, own: Api) -> None:
        with pytest.raises(Refused, match="Forbidden"):
            await own.patch(PIPELINES.path("default", "vision"), {"spec": {}}, PatchKind.MERGE)


async def test_it_is_not_ready_before_it_is_trusted_and_says_why(own: Api) -> None:
    settings = replace(SETTINGS, configuration="another")
    async with running(settings, own, registry=CollectorRegistry()) as server:
        url = f"http://127.0.0.1:{server.health.port}/readyz"

        async def explained() -> bool:
            status, text = await _text(url)
            return status == 503 and "mutatingwebhookconfigurations/another" in text

        await until(explained, "the reason")
        assert server.mutate is None


def _deployment(annotations: dict[str, str]) -> dict[str, Any]:
    labels = {"app": "inference"}
    template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod(container={})["spec"]}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "inference"}, "spec": spec}


class _Clock:
    def __init__(self, time: dt.datetime) -> None:
        self.time = self.started = time

    def __call__(self) -> dt.datetime:
        return self.time


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def _text(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        return response.status, await response.text()


async def _status(url: str) -> int:
    return (await _text(url))[0]


async def _requests(server: Running) -> float:
    _, text = await _text(f"http://127.0.0.1:{server.health.port}/metrics")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sair_webhook_requests_total{"))


async def _certificate_at(port: int, trusted: bytes) -> bytes:
    """The certificate (DER) a client is shown that trusts this bundle; fails if it does not trust it."""
    context = client_context(trusted)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=names(SETTINGS)[0])
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


async def _ask(client: aiohttp.ClientSession, port: int) -> None:
    url = f"https://127.0.0.1:{port}/mutate"
    async with client.post(url, json=review(pod(GPU_STAGE)), server_hostname=names(SETTINGS)[0]) as response:
        assert (await response.json())["response"]["allowed"]
