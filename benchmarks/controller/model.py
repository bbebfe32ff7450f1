"""How many calls of a language model are under way: of all pipelines, and of one, as the model's server sees it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from aiohttp import web

from benchmarks.controller.rows import INTERVAL_S, Row, Sizes
from controller.decision import Decision
from controller.knowledge import Knowledge
from controller.llm.account import Account
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy, Trace
from controller.llm.settings import ModelSettings
from controller.memory.embedded import embedded_server
from controller.memory.store import Store
from controller.menu import Menu
from controller.simulation.pipelines import pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.trial import run_trial
from controller.simulation.workloads import constant
from sair.errors import ModelUnavailable

__all__ = ["model"]

AT_ONCE: Final = 3
"""Calls that each pipeline wants at the same moment: all but one are refused and decided by the built-in policy."""
_ANSWER_S: Final = 0.05
_ANSWER: Final = {"choice": 1, "bottleneck": "none", "rationale": "any"}
_CODE: Final = re.compile(r"code of this round is (\w+)")
_SLO: Final = re.compile(r"SLO (\d+) ms")


class Endpoint:
    """An OpenAI-compatible server that counts. It knows a pipeline by its SLO, which is all of a pipeline's own that a prompt shows."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self.most = 0
        """Calls under way at once, of all pipelines."""
        self.most_of_one = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Choose the first candidate after a while."""
        asked = "\n".join(each["content"] for each in (await request.json())["messages"])
        found = _SLO.search(asked)
        code = _CODE.search(asked)
        assert found is not None and code is not None, asked
        self._under_way[found[1]] += 1
        self.most = max(self.most, self._under_way.total())
        self.most_of_one = max(self.most_of_one, self._under_way[found[1]])
        await asyncio.sleep(_ANSWER_S)
        self._under_way[found[1]] -= 1
        message = {"role": "assistant", "content": json.dumps({"code": code[1], **_ANSWER})}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "any", "choices": [choice]}
        )


def _round() -> tuple[Knowledge, Menu]:
    """What a round of a simulated pipeline knows and offers."""
    seen: list[tuple[Knowledge, Menu]] = []

    def keep(_plant: Plant, knowledge: Knowledge, menu: Menu, _decision: Decision) -> None:
        seen.append((knowledge, menu))

    setup = pipeline_named("image-classification")
    run_trial(setup, constant(setup.base_rate_per_s, 100.0), 1, on_round=keep)
    return seen[-1]


def _of_pipeline(number: int, knowledge: Knowledge, menu: Menu) -> tuple[Knowledge, Menu]:
    """The same round of a pipeline of its own, its SLO one millisecond longer than the one before's."""
    case = menu.case
    view = replace(case.situation.view, key=f"bench/shop-{number}", slo_s=(number + 1) / 1000)
    changed: Any = replace(case, situation=replace(case.situation, view=view))
    return replace(knowledge, learned=replace(knowledge.learned, pipeline=view.key)), replace(menu, case=changed)


async def _ask(pipelines: int, bars: Mapping[str, float], folder: Path) -> list[Row]:
    async with embedded_server(folder) as url:
        store = Store.from_url(url)
        try:
            return await _asked(pipelines, bars, store)
        finally:
            await store.close()


async def _asked(pipelines: int, bars: Mapping[str, float], store: Store) -> list[Row]:
    endpoint, application = Endpoint(), web.Application()
    application.router.add_post("/v1/chat/completions", endpoint.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    settings = ModelSettings(base_url=url, enforcement="text", deadline_s=INTERVAL_S)
    policy, seen = LlmPolicy(ModelClient(settings), settings), _round()
    answers: Counter[str] = Counter()

    async def call(knowledge: Knowledge, menu: Menu) -> None:
        try:
            account = accounts[knowledge.pipeline]
            await policy.propose(knowledge, menu, lambda _: None, np.random.default_rng(0), Trace(), account)
            answers[knowledge.pipeline] += 1
        except ModelUnavailable:
            pass  # the built-in policy would decide

    began_s = time.perf_counter()
    wanting = [_of_pipeline(number, *seen) for number in range(pipelines)]
    accounts = {knowledge.pipeline: Account(knowledge.pipeline, store) for knowledge, _ in wanting}
    await asyncio.gather(*(call(*each) for each in wanting for _ in range(AT_ONCE)))
    took_s = time.perf_counter() - began_s
    await policy.close()
    await runner.cleanup()
    size = f"{pipelines} pipelines, {AT_ONCE} calls each"
    return [
        Row("language model: calls under way at most", size, endpoint.most, "calls", bars["model calls"]),
        Row("  of one pipeline", size, endpoint.most_of_one, "calls", bars["pipeline calls"]),
        Row("  pipelines without an answer in 30 s", size, pipelines - len(answers), "pipelines", bars["unanswered"]),
        Row("  answered", size, answers.total() / took_s, "/s"),
    ]


def model(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """The limits on concurrent calls."""
    for pipelines in sizes.callers:
        yield from asyncio.run(_ask(pipelines, bars, folder))
