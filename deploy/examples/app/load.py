"""A client that replays a trace of arrivals: Poisson at the rate of the moment, as open as the world is."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path

import redis

__all__ = ["parse_trace", "replay"]

_LONGEST_STREAM = 50_000


def parse_trace(text: str, name: str) -> list[tuple[float, float]]:
    """Read ``<seconds from the start> <requests per second>`` lines; ``#`` begins a comment.

    Raises:
        ValueError: Names the line.
    """
    steps: list[tuple[float, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split("#")[0].split()
        if not parts:
            continue
        try:
            at, rate = map(float, parts)
        except ValueError:
            raise ValueError(
                f"{name}:{number}: {line!r} is not allowed; expected two numbers: seconds and requests per second"
            ) from None
        if not (0 <= at < 1e9 and 0 <= rate < 1e6) or (steps and at <= steps[-1][0]):
            raise ValueError(
                f"{name}:{number}: {line!r} is not allowed; expected ascending seconds and a rate below a million"
            )
        steps.append((at, rate))
    if not steps:
        raise ValueError(f"{name}: expected at least one line")
    return steps


def replay(first: str, trace: Path, *, redis_url: str, repeat: bool, seed: int) -> int:
    """Send requests to the first stage's stream; gives how many were sent."""
    steps = parse_trace(trace.read_text(), str(trace))
    client = redis.from_url(redis_url, decode_responses=True, retry_on_timeout=True)
    draw = random.Random(seed)
    sent = 0
    while True:
        started = time.time()
        for (at, rate), (until, _) in pairwise([*steps, (steps[-1][0] + 60.0, 0.0)]):
            due = started + at
            while rate > 0:
                due += draw.expovariate(rate)
                if due >= started + until:
                    break
                time.sleep(max(0.0, due - time.time()))
                sent += _send(client, first, due)
            time.sleep(max(0.0, started + until - time.time()))
        if not repeat:
            return sent


def _send(client: redis.Redis, first: str, due: float) -> int:
    """A request that could not be sent is lost, as a client's would be; its lateness counts from when it was due."""
    try:
        client.xadd(
            f"stage:{first}", {"born": repr(due), "queued": repr(due)}, maxlen=_LONGEST_STREAM, approximate=True
        )
    except (redis.ConnectionError, redis.TimeoutError):
        return 0
    return 1
