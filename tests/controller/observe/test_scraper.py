"""Pods that answer beside hundreds that take a connection and never say a word, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest_asyncio

from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.observe.source import Target
from sair.annotations import MetricsEndpoint

ANSWER = """\
# TYPE sair_stage_arrivals_total counter
# TYPE sair_stage_latency_seconds histogram
sair_stage_queue_depth 1
"""
MANY = 200
SOON_S = 20.0
"""Far less than a pod that never answers is given in these tests, far more than answers take."""


@dataclass
class Pod:
    """An endpoint whose requests are counted; it answers while it is told to."""

    key: str
    port: int = 0
    answers: bool = True
    asked: int = 0
    refuses: bool = False
    late_s: float = 0.0
    _speakers: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def target(self) -> Target:
        return Target(f"ns/{self.key}/uid", "127.0.0.1", MetricsEndpoint(port=self.port))

    async def speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        speaker = asyncio.current_task()
        assert speaker is not None
        self._speakers.add(speaker)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                if not self.answers:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.late_s)
                status = "503 Unavailable" if self.refuses else "200 OK"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(ANSWER)}\r\n\r\n{ANSWER}".encode())
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of both has hung up
        finally:
            writer.transport.abort()

    def hang_up(self) -> None:
        for speaker in self._speakers:
            speaker.cancel()


@contextlib.asynccontextmanager
async def listening(*pods: Pod) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods:
            server = await asyncio.start_server(pod.speak, "127.0.0.1", 0)
            stack.callback(server.close)
            stack.callback(pod.hang_up)
            pod.port = server.sockets[0].getsockname()[1]
        yield
    # A closed transport closes its socket when the loop turns.
    await asyncio.sleep(0.05)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Scene:
    scraper: Scraper
    clock: Clock

    async def over(self, pod: Pod) -> None:
        """Until what is asked beside is over."""
        async with asyncio.timeout(SOON_S):
            while pod.target.key in self.scraper._beside:  # noqa: ASYNC110  # nobody waits for it, that is the point
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def patient() -> AsyncIterator[Scene]:
    """Gives pods a minute, longer than any test."""
    async with opened(60.0) as scene:
        yield scene


@pytest_asyncio.fixture
async def hasty() -> AsyncIterator[Scene]:
    async with opened(0.3) as scene:
        yield scene


@contextlib.asynccontextmanager
async def opened(patience_s: float) -> AsyncIterator[Scene]:
    clock = Clock()
    async with Fetcher(timeout_s=patience_s) as fetcher:
        scraper = Scraper(fetcher, clock)
        try:
            yield Scene(scraper, clock)
        finally:
            await scraper.aclose()


async def test_pods_that_are_known_are_asked_however_many_new_ones_never_answer(patient: Scene) -> None:
    scraper, live = patient.scraper, [Pod(f"live-{number}") for number in range(10)]
    dead = [Pod(f"dead-{number}", answers=False) for number in range(MANY)]
    async with listening(*live, *dead):
        await scraper.scrape(pod.target for pod in live)
        hanging = asyncio.create_task(scraper.scrape(pod.target for pod in dead))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(SOON_S):
            for turn in range(3):
                patient.clock.now_s += 2.0
                await scraper.scrape(pod.target for pod in live)
                assert [pod.asked for pod in live] == [turn + 2] * len(live)
                if turn == 0:
                    assert sum(pod.asked for pod in dead) < MANY, "they are before those that wait for their first turn"
        assert not hanging.done()
        assert scraper.failures == 0
        hanging.cancel()


async def test_new_pods_get_their_turn_among_new_ones_that_never_answer(patient: Scene) -> None:
    scraper, late = patient.scraper, Pod("late")
    dead = [Pod(f"dead-{number}", answers=False) for number in range(MANY)]
    async with listening(late, *dead):
        hanging = asyncio.create_task(scraper.scrape(pod.target for pod in dead))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(SOON_S):
            await scraper.scrape([late.target])
        assert late.target.key in scraper.series
        assert not hanging.done()
        hanging.cancel()


async def test_pods_that_fall_silent_all_at_once_do_not_keep_the_others_from_being_asked(patient: Scene) -> None:
    scraper, live = patient.scraper, [Pod(f"live-{number}") for number in range(10)]
    dying = [Pod(f"dying-{number}") for number in range(MANY)]
    async with listening(*live, *dying):
        await scraper.scrape(pod.target for pod in [*dying, *live])
        for pod in dying:
            pod.answers = False
        hanging = asyncio.create_task(scraper.scrape(pod.target for pod in dying))
        await asyncio.sleep(0.1)
        patient.clock.now_s += 2.0
        async with asyncio.timeout(SOON_S):
            await scraper.scrape(pod.target for pod in live)
        assert [pod.asked for pod in live] == [2] * len(live)
        assert not hanging.done()
        assert scraper.failures == 0
        hanging.cancel()


async def test_nobody_waits_for_a_pod_that_failed_and_it_is_asked_less_and_less_often(hasty: Scene) -> None:
    scraper, dead = hasty.scraper, Pod("dead", answers=False)
    async with listening(dead):
        asked_at = []
        for second in range(60):
            hasty.clock.now_s = 1000.0 + second
            before = dead.asked
            await scraper.scrape([dead.target])
            await hasty.over(dead)
            if dead.asked > before:
                asked_at.append(second)
        assert asked_at == [0, 1, 3, 7, 15, 23, 31, 39, 47, 55]
        assert scraper.failures == len(asked_at)
        assert "TimeoutError" in scraper.problems[dead.target.key]


async def test_a_call_returns_while_a_pod_that_failed_before_is_still_being_asked(patient: Scene) -> None:
    scraper, dead, live = patient.scraper, Pod("dead", refuses=True), Pod("live")
    async with listening(dead, live):
        await scraper.scrape([dead.target, live.target])
        assert "503" in scraper.problems[dead.target.key]
        dead.answers = False
        for turn in range(2):
            patient.clock.now_s += 2.0
            async with asyncio.timeout(SOON_S):
                await scraper.scrape([dead.target, live.target])
            assert live.asked == turn + 2
        await asyncio.sleep(0.1)
        assert dead.asked == 2, "a pod that is still being asked is not asked once more"


async def test_a_pod_that_is_well_again_is_soon_seen_and_then_waited_for(hasty: Scene) -> None:
    scraper, pod = hasty.scraper, Pod("pod", answers=False)
    async with listening(pod):
        for _ in range(30):
            hasty.clock.now_s += 2.0
            await scraper.scrape([pod.target])
            await hasty.over(pod)
        pod.hang_up()
        pod.answers = True
        well_s = hasty.clock.now_s
        while pod.target.key not in scraper.series:
            hasty.clock.now_s += 1.0
            await scraper.scrape([pod.target])
            await hasty.over(pod)
        assert hasty.clock.now_s - well_s <= 8.0
        assert scraper.problems == {}
        hasty.clock.now_s += 2.0
        await scraper.scrape([pod.target])
        last = scraper.series[pod.target.key].last
        assert last is not None
        assert last.time_s == hasty.clock.now_s


async def test_hundreds_that_failed_are_all_asked_again_and_in_turn(hasty: Scene) -> None:
    scraper = hasty.scraper
    dead = [Pod(f"dead-{number}", answers=False) for number in range(MANY)]
    async with listening(*dead):
        await scraper.scrape(pod.target for pod in dead)
        hasty.clock.now_s += 2.0
        await scraper.scrape(pod.target for pod in dead)
        for pod in dead:
            await hasty.over(pod)
        assert scraper.failures == 2 * MANY
        assert {each.failures for each in scraper._slow.values()} == {2}


async def test_a_slow_pod_is_heard_but_not_waited_for(patient: Scene) -> None:
    scraper, slow = patient.scraper, Pod("slow", late_s=0.7)
    async with listening(slow):
        await scraper.scrape([slow.target])
        for _ in range(2):
            patient.clock.now_s += 2.0
            await scraper.scrape([slow.target])
            assert slow.target.key in scraper._beside
            await patient.over(slow)
            last = scraper.series[slow.target.key].last
            assert last is not None
            assert last.time_s == patient.clock.now_s
        assert scraper.failures == 0
        slow.late_s = 0.0
        patient.clock.now_s += 2.0
        await scraper.scrape([slow.target])
        await patient.over(slow)
        patient.clock.now_s += 2.0
        await scraper.scrape([slow.target])
        assert slow.target.key not in scraper._beside, "it is quick again"


async def test_pods_that_are_gone_are_forgotten(hasty: Scene) -> None:
    scraper, live, dead = hasty.scraper, Pod("live"), Pod("dead", answers=False)
    async with listening(live, dead):
        await scraper.scrape([live.target, dead.target])
        scraper.keep_only([live.target.key])
        assert scraper.series.keys() == {live.target.key}
        assert not scraper.problems
        assert not scraper._slow
        scraper.keep_only([])
        assert scraper.series == {}
