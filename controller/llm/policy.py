"""The language model as a proposer: asks once, repairs once, within a deadline and a budget; otherwise somebody else decides."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from controller.decision import Proposal, Verdict
from controller.knowledge import Knowledge
from controller.llm.account import Account, Spending
from controller.llm.breaker import Breaker
from controller.llm.client import Meter, ModelBusy, ModelClient, Usage
from controller.llm.prompt import Question, ask, repair
from controller.llm.reply import CODE_FIELD, Answer, read
from controller.llm.settings import ModelSettings
from controller.menu import Menu
from controller.state import Action
from sair.errors import ModelUnavailable, WireError

__all__ = ["Judge", "LlmPolicy", "Tally", "Trace"]

Judge = Callable[[Action], Verdict | None]
"""The guardrail that refuses an action as a whole, None if none does."""

Tally = Callable[[str, Usage, float], None]
"""Takes a pipeline, what a call took and what it cost, dollars."""


@dataclass(slots=True)
class Trace:
    """What the journal keeps of a model's part in a round."""

    model: str = ""
    prompt_hash: str = ""
    shown: tuple[str, ...] = ()
    """Ids of the experiences in the prompt."""
    replies: list[str] = field(default_factory=list)
    refusals: list[Verdict] = field(default_factory=list)
    """Of each answer that could not be used: by the round code, by the schema, or by a guardrail."""
    problem: str = ""
    rationale: str = ""
    bottleneck: str | None = None
    """The stage that the model takes for it; None if it named none."""
    tokens_in: int = 0
    """A probe's included, if this round began one."""
    tokens_out: int = 0
    dollars: float = 0.0
    duration_s: float = 0.0


class LlmPolicy:
    """Proposes what the model wants.

    Args:
        client: The model's server.
        settings: Deadline, budget and breaker.
        clock: Real seconds; deadlines and pauses are real even where the world is simulated.
        tally: Told of a pipeline's every call and its dollars.
    """

    def __init__(
        self,
        client: ModelClient,
        settings: ModelSettings,
        *,
        clock: Callable[[], float] = time.time,
        tally: Tally = lambda _pipeline, _usage, _dollars: None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._tally = tally
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_pause_s)
        self._under_way: Counter[str] = Counter()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def propose(
        self,
        knowledge: Knowledge,
        menu: Menu,
        judge: Judge,
        rng: np.random.Generator,
        trace: Trace,
        account: Account,
    ) -> Proposal:
        """Ask the model about this round.

        Args:
            knowledge: Of the pipeline.
            menu: Of the round.
            judge: The guardrails' word on an action; a refusal costs the one repair.
            rng: Shuffles the menu.
            trace: Filled in with what happened, also when this raises.
            account: The pipeline's.

        Raises:
            ModelUnavailable: If the model gave no usable answer, whatever the reason.
        """
        await account.settle(self._clock())
        now = self._clock()
        refused = account.refusal(now, self._settings.tokens_per_day, self._settings.dollars_per_day)
        if refused:
            raise self._failed(trace, refused)
        if not self._breaker.allows(now):
            raise self._failed(trace, f"the circuit breaker is open for another {self._breaker.closed_at - now:.0f} s")
        if self._under_way[knowledge.pipeline] >= self._settings.pipeline_concurrency:
            raise self._failed(trace, "as many calls of this pipeline as may be are still under way")
        self._under_way[knowledge.pipeline] += 1
        try:
            return await self._proposed(knowledge, menu, judge, rng, trace, account, now)
        finally:
            self._under_way[knowledge.pipeline] -= 1
            if not self._under_way[knowledge.pipeline]:
                del self._under_way[knowledge.pipeline]
            await account.settle(self._clock())

    async def _proposed(
        self,
        knowledge: Knowledge,
        menu: Menu,
        judge: Judge,
        rng: np.random.Generator,
        trace: Trace,
        account: Account,
        now: float,
    ) -> Proposal:
        question = ask(knowledge, menu, self._settings.mode, rng, self._settings.experience_tokens)
        trace.prompt_hash, trace.shown = question.digest, question.shown
        deadline = now + self._settings.deadline_s
        meter = partial(self._count, knowledge.pipeline, trace, account)
        problem = ""
        for attempt in range(2):
            try:
                answer = await self._answer(
                    repair(question, problem) if attempt else question, menu, deadline, trace, meter
                )
            except ModelBusy as error:
                # Our own queue, not the server: it must not open the breaker for everybody.
                raise self._failed(trace, str(error)) from error
            except ModelUnavailable as error:
                self._breaker = self._breaker.failed(self._clock())
                raise self._failed(trace, str(error)) from error
            except WireError as error:
                refusal: Verdict | None = Verdict(_rule(error), "rejected", str(error))
            else:
                refusal = judge(answer.action)
            if refusal is None:
                self._breaker = self._breaker.succeeded()
                trace.rationale, trace.bottleneck = answer.rationale, answer.bottleneck
                return Proposal(answer.action, "llm", answer.rationale, answer.candidate)
            trace.refusals.append(refusal)
            problem = f"{refusal.rule}: {refusal.reason}"
        self._breaker = self._breaker.failed(self._clock())
        raise self._failed(trace, f"no usable answer after one repair: {problem}")

    async def _answer(self, question: Question, menu: Menu, deadline: float, trace: Trace, meter: Meter) -> Answer:
        left = deadline - self._clock()
        if left <= 0:
            raise ModelUnavailable(f"no time was left of the deadline of {self._settings.deadline_s:g} s")
        completion = await self._client.complete(question.messages, question.schema, left, meter)
        trace.model = completion.model
        trace.replies.append(completion.text)
        trace.duration_s += completion.duration_s
        return read(completion.text, question, menu)

    def _count(self, pipeline: str, trace: Trace, account: Account, usage: Usage) -> None:
        settings = self._settings
        dollars = (
            usage.tokens_in * settings.dollars_per_million_in + usage.tokens_out * settings.dollars_per_million_out
        ) / 1e6
        account.add(self._clock(), Spending(usage.tokens_in + usage.tokens_out, dollars))
        trace.tokens_in += usage.tokens_in
        trace.tokens_out += usage.tokens_out
        trace.dollars += dollars
        self._tally(pipeline, usage, dollars)

    @staticmethod
    def _failed(trace: Trace, problem: str) -> ModelUnavailable:
        trace.problem = problem
        return ModelUnavailable(problem)


def _rule(error: WireError) -> str:
    return "round code" if error.field == CODE_FIELD else "schema"
