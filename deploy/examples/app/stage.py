"""One stage: takes work from its stream, works, passes it on, and says how it goes in Prometheus' format."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from app.device import Device

__all__ = ["run_stage"]

Client = Any
"""redis-py types its answers as the union of all protocols and both worlds; a stage reads three of them."""

_BUCKETS = tuple(0.005 * 1.35**n for n in range(25))  # 5 ms to 6.7 s, 35 % apart
_GROUP = "stage"
_BLOCK_MS = 200
_IDLE_MS = 5_000
_LOOK_S = 0.5
_ABANDONED_MS = 15_000
_CLAIM_S = 2.0
_LONGEST_STREAM = 50_000
_RESULTS = "results"
"""Where the last stage leaves what is done, with the time of its end in ``queued``."""
_SIMULATED = os.environ.get("EXAMPLE_SIMULATED_DRIVER", "/opt/example/simulated/libcuda.so.1")

LATENCY = Histogram("sair_stage_latency_seconds", "Time in the stage, waiting included.", buckets=_BUCKETS)
SERVICE = Histogram("sair_stage_service_seconds", "Time worked on a request.", buckets=_BUCKETS)
PIPELINE = Histogram("sair_pipeline_latency_seconds", "Time from the client to the last stage's end.", buckets=_BUCKETS)
QUEUE = Gauge("sair_stage_queue_depth", "Requests waiting for the stage; told by one replica for all.")
ARRIVALS = Counter("sair_stage_arrivals_total", "Requests that reached the stage; told by one replica for all.")


def run_stage(
    name: str, following: str, *, redis_url: str, device: str, cpu_ms: float, gpu_ms: float, port: int
) -> None:
    """Work until SIGTERM; what is under way is finished.

    Args:
        name: Of the stage; its stream is ``stage:<name>``.
        following: Next stage, empty for the last.
        redis_url: Where the streams are.
        device: ``none``, ``gpu`` or ``simulated``.
        cpu_ms: CPU time per request.
        gpu_ms: GPU time per request at a full card.
        port: Of the metrics.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    client: Client = redis.from_url(redis_url, decode_responses=True, retry_on_timeout=True)
    consumer, stream = socket.gethostname(), f"stage:{name}"
    _join(client, stream)
    work = _work(device, cpu_ms, gpu_ms)
    start_http_server(port)
    threading.Thread(target=_watch, args=(client, stream, consumer, stop), daemon=True).start()
    claim_s = 0.0
    while not stop.is_set():
        abandoned = time.monotonic() >= claim_s
        if abandoned:
            claim_s = time.monotonic() + _CLAIM_S
        try:
            taken = _take(client, stream, consumer, abandoned=abandoned)
            if taken is not None:
                _serve(client, stream, following, *taken, work)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            _join(client, stream)
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.2)
    with contextlib.suppress(redis.RedisError):  # the queue may be gone before its stages are
        client.xgroup_delconsumer(stream, _GROUP, consumer)


def _join(client: Client, stream: str) -> None:
    try:
        client.xgroup_create(stream, _GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


def _take(client: Client, stream: str, consumer: str, *, abandoned: bool) -> tuple[str, dict[str, str]] | None:
    """The next request; now and then one that a replica took and died over."""
    if abandoned:
        [_, claimed, *_] = client.xautoclaim(stream, _GROUP, consumer, min_idle_time=_ABANDONED_MS, count=1)
        if claimed:
            [[identifier, fields]] = claimed
            return identifier, fields
    taken = client.xreadgroup(_GROUP, consumer, {stream: ">"}, count=1, block=_BLOCK_MS)
    if not taken:
        return None
    [[_, [[identifier, fields]]]] = taken
    return identifier, fields


def _serve(
    client: Client, stream: str, following: str, identifier: str, fields: dict[str, str], work: Callable[[], None]
) -> None:
    began = time.time()
    work()
    done = time.time()
    with client.pipeline(transaction=True) as both:
        passed = {"born": fields["born"], "queued": repr(done)}
        both.xadd(f"stage:{following}" if following else _RESULTS, passed, maxlen=_LONGEST_STREAM, approximate=True)
        both.xack(stream, _GROUP, identifier)
        both.execute()
    SERVICE.observe(done - began)
    LATENCY.observe(done - float(fields["queued"]))
    if not following:
        PIPELINE.observe(done - float(fields["born"]))


def _watch(client: Client, stream: str, consumer: str, stop: threading.Event) -> None:
    """The queue is one for all replicas: the first of them in the alphabet that is alive tells its length and what was added."""
    added_before: int | None = None
    while not stop.wait(_LOOK_S):
        try:
            [group] = client.xinfo_groups(stream)
            alive = sorted(c["name"] for c in client.xinfo_consumers(stream, _GROUP) if c["idle"] < _IDLE_MS)
            added = int(client.xinfo_stream(stream)["entries-added"])
        except (redis.RedisError, ValueError, KeyError):
            added_before = None
            continue
        tells = bool(alive) and alive[0] == consumer
        QUEUE.set(group["lag"] or 0 if tells else 0)
        if tells and added_before is not None:
            ARRIVALS.inc(max(0, added - added_before))
        added_before = added


def _work(device: str, cpu_ms: float, gpu_ms: float) -> Callable[[], None]:
    card = None if device == "none" else Device(_SIMULATED if device == "simulated" else "libcuda.so.1")

    def work() -> None:
        _burn(cpu_ms / 1000)
        if card is not None:
            card.work(gpu_ms / 1000)

    return work


def _burn(seconds: float) -> None:
    """Use so much CPU time, however long the container's quota makes it take."""
    until = time.thread_time() + seconds
    digest = b"work"
    while time.thread_time() < until:
        digest = hashlib.sha256(digest * 64).digest()
