"""The two HTTP servers of the webhook: ``POST /mutate`` over TLS, and health and metrics on a plain port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram

from sair.logs import get_logger
from sair.pipeline import Pipeline
from webhook.mutation import decide
from webhook.review import AdmissionRequest, MalformedReview, Verdict, answer, parse_request
from webhook.settings import WebhookSettings

__all__ = ["Admission", "admission_application"]

OUTCOMES = ("patched", "unchanged", "denied", "malformed", "failed")
ABOUT = ("pods", "workloads", "other")
# An answer takes about a millisecond; the API server gives up after ten seconds.
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Admission:
    """Answers reviews and counts its answers.

    Args:
        settings: What to inject, and how long a client may take.
        find_pipeline: Gives the last known Pipeline by ``namespace/name``, None if there is none.
        registry: Where the metrics go.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        find_pipeline: Callable[[str], Pipeline | None],
        registry: CollectorRegistry,
    ) -> None:
        self._settings = settings
        self._find_pipeline = find_pipeline
        self._log = get_logger("webhook")
        self._requests = Counter(
            "sair_webhook_requests",
            "Admission requests by outcome and by what was asked about.",
            ["outcome", "about"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            for about in ABOUT:
                self._requests.labels(outcome, about)
        self._seconds = Histogram(
            "sair_webhook_request_seconds",
            "Time from a whole request to its answer.",
            registry=registry,
            buckets=_BUCKETS_S,
        )

    async def mutate(self, request: web.Request) -> web.Response:
        """Handle ``POST /mutate``."""
        if request.content_type != "application/json":
            self._count("malformed")
            raise web.HTTPUnsupportedMediaType(text=f"Content-Type {request.content_type}: expected application/json\n")
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await request.read()
        except TimeoutError as error:
            self._count("malformed")
            raise web.HTTPRequestTimeout(text="the request took too long to arrive\n") from error
        except web.HTTPRequestEntityTooLarge:
            self._count("malformed")
            raise
        with self._seconds.time():
            return self._respond(body)

    def _respond(self, body: bytes) -> web.Response:
        try:
            review = parse_request(body)
        except MalformedReview as error:
            self._count("malformed")
            self._log.warning("malformed review", error=str(error))
            if error.uid is None:
                return web.Response(status=400, text=f"{error}\n")
            return _json(answer(error.uid, Verdict(reason=str(error), code=400)))
        try:
            verdict = decide(review, self._settings, self._find_pipeline)
        except Exception:
            # The API server must hear of it under this uid; it denies the pod, as it does when nobody answers at all.
            self._count("failed", review)
            self._log.exception("review failed", uid=review.uid, namespace=review.namespace)
            return _json(answer(review.uid, Verdict(reason="SAIR's webhook failed; its log says why", code=500)))
        outcome = "denied" if verdict.reason is not None else "patched" if verdict.patch else "unchanged"
        self._count(outcome, review)
        if verdict.reason is not None:
            self._log.info(
                "denied",
                resource=review.resource.resource,
                namespace=review.namespace,
                reason=verdict.reason,
                dry_run=review.dry_run,
            )
        return _json(answer(review.uid, verdict))

    def _count(self, outcome: str, review: AdmissionRequest | None = None) -> None:
        about = "other"
        if review is not None and review.creates_pod:
            about = "pods"
        elif review is not None and review.writes_workload:
            about = "workloads"
        self._requests.labels(outcome, about).inc()


def admission_application(admission: Admission, settings: WebhookSettings) -> web.Application:
    """The application behind the TLS port."""
    app = web.Application(client_max_size=settings.max_body_bytes)
    app.router.add_post("/mutate", admission.mutate)
    return app


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
