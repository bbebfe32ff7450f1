from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sair.kube.client import Api
from sair.kube.election import ElectionTiming
from sair.kube.lease import Leadership, lead, own_identity
from sair.kube.resources import LEASES
from tests.fakes.api_proxy import Answer, ApiProxy, Hang, Request, Reset
from tests.sair.kube.waiting import eventually

QUICK = ElectionTiming(lease_s=2, renew_deadline_s=1.2, retry_s=0.2)


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST")


def everything(_: Request) -> bool:
    return True


def term(api: Api, namespace: str, identity: str, on_lost: Callable[[], None] | None = None) -> Leadership:
    return Leadership(api, namespace, "leader", identity=identity, timing=QUICK, on_lost=on_lost)


async def holder(api: Api, namespace: str) -> str:
    spec = (await api.get(LEASES.path(namespace, "leader")))["spec"]
    return str(spec.get("holderIdentity", ""))


async def test_the_first_candidate_leads_and_the_lease_says_so(api: Api, namespace: str) -> None:
    async with term(api, namespace, "a") as leading:
        assert leading.is_leader()
        assert leading.holder == "a"
        lease = await api.get(LEASES.path(namespace, "leader"))
        assert lease["spec"]["holderIdentity"] == "a"
        assert lease["spec"]["leaseDurationSeconds"] == 2
    assert not leading.is_leader()


async def test_a_leader_stays_one_by_renewing(api: Api, namespace: str) -> None:
    async with term(api, namespace, "a") as leading:
        before = (await api.get(LEASES.path(namespace, "leader")))["spec"]["renewTime"]
        await asyncio.sleep(2.5)
        assert leading.is_leader()
        assert not leading.lost.is_set()
        assert (await api.get(LEASES.path(namespace, "leader")))["spec"]["renewTime"] > before


async def test_a_lease_released_is_taken_at_once(api: Api, namespace: str) -> None:
    second = term(api, namespace, "b")
    async with term(api, namespace, "a"):
        waiting = asyncio.create_task(second.__aenter__())
        await eventually(lambda: second.holder == "a")
        assert not second.is_leader()
    async with asyncio.timeout(1.0):
        await waiting
    assert second.is_leader()
    assert (await api.get(LEASES.path(namespace, "leader")))["spec"]["leaseTransitions"] == 1
    await second.__aexit__(None, None, None)
    assert await holder(api, namespace) == ""


@pytest.mark.parametrize("fault", [Hang(), Reset(), Answer(500)], ids=["hung", "reset", "500"])
async def test_a_leader_cut_off_knows_that_it_lost_before_another_can_lead(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str, fault: Hang | Reset | Answer
) -> None:
    told = []
    order: list[str] = []
    async with term(proxied, namespace, "a", on_lost=lambda: told.append("lost")) as first:
        proxy.on(everything, fault, times=1000)
        rival = term(api, namespace, "b")
        watching = asyncio.create_task(_note(first.lost.wait(), order, "a lost"))
        taking = asyncio.create_task(_note(rival.__aenter__(), order, "b leads"))
        async with asyncio.timeout(10):
            await asyncio.gather(watching, taking)
        assert order == ["a lost", "b leads"]
        assert not first.is_leader()
        assert told == ["lost"]
    await rival.__aexit__(None, None, None)


async def _note(done: Awaitable[object], order: list[str], what: str) -> None:
    await done
    order.append(what)


async def test_a_leader_whose_lease_somebody_took_steps_down(api: Api, namespace: str) -> None:
    async with term(api, namespace, "a") as leading:
        lease = await api.get(LEASES.path(namespace, "leader"))
        lease["spec"]["holderIdentity"] = "thief"
        await api.replace(LEASES.path(namespace, "leader"), lease)
        async with asyncio.timeout(1.0):
            await leading.lost.wait()
        assert not leading.is_leader()
        assert leading.holder == "thief"
    assert await holder(api, namespace) == "thief"


async def test_a_foreign_touch_on_the_lease_costs_no_leadership(api: Api, namespace: str) -> None:
    async with term(api, namespace, "a") as leading:
        lease = await api.get(LEASES.path(namespace, "leader"))
        lease["metadata"]["labels"] = {"touched": "yes"}
        await api.replace(LEASES.path(namespace, "leader"), lease)
        await asyncio.sleep(2.5)
        assert leading.is_leader()


async def test_a_renewal_that_worked_but_whose_answer_was_lost_costs_no_leadership(
    proxy: ApiProxy, proxied: Api, namespace: str
) -> None:
    async with term(proxied, namespace, "a") as leading:
        proxy.on(writes, Reset(after=True))
        await eventually(lambda: sum(map(writes, proxy.requests)) >= 4)
        assert leading.is_leader()


async def test_a_leader_that_was_stopped_for_a_while_knows_by_the_clock_alone(api: Api, namespace: str) -> None:
    now = 1000.0
    leading = Leadership(api, namespace, "leader", identity="a", timing=ElectionTiming(), local=lambda: now)
    async with leading:
        assert leading.is_leader()
        now += 10.0
        assert not leading.is_leader()


async def test_two_candidates_at_once_elect_one(api: Api, namespace: str) -> None:
    terms = [term(api, namespace, name) for name in ("a", "b", "c")]
    waiting = [asyncio.create_task(each.__aenter__()) for each in terms]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.5)
    assert sum(each.is_leader() for each in terms) == 1
    for task, each in zip(waiting, terms, strict=True):
        if task.done():
            await each.__aexit__(None, None, None)
        else:
            task.cancel()
    await asyncio.wait(waiting)


async def test_work_is_done_only_while_leading_and_begins_anew_with_the_next_term(
    proxy: ApiProxy, proxied: Api, namespace: str
) -> None:
    history: list[str] = []

    async def work(leading: Leadership) -> str:
        history.append("began")
        if len(history) > 1:
            return "done"
        proxy.on(everything, Answer(500), times=12)
        try:
            await asyncio.sleep(30)
        finally:
            history.append("stopped" if leading.lost.is_set() else "stopped too early")
        return "never"

    names = iter(("a", "b"))
    async with asyncio.timeout(20):
        assert await lead(lambda: term(proxied, namespace, next(names)), work) == "done"
    assert history == ["began", "stopped", "began"]


async def test_what_the_work_raises_comes_out_and_the_lease_is_free(api: Api, namespace: str) -> None:
    async def work(_: Leadership) -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError):
        await lead(lambda: term(api, namespace, "a"), work)
    assert await holder(api, namespace) == ""


def test_every_process_has_an_identity_of_its_own() -> None:
    assert own_identity() != own_identity()
