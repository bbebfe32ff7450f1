"""What the reflex is not granted, it has not done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.applying import Reflex
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.replay import replay
from controller.state import Allocation, KnobOutcome
from controller.tuning import Tuning
from controller.worlds.simulated import SimulatedWorld
from sair.quantities import GpuRate, Millicores
from tests.controller.histories import history
from tests.controller.scenes import Rounds, setup, simulated

KEY = setup().key


class Grudging(SimulatedWorld):
    """Grants the reflex at most a part of what it asks for, knob by knob."""

    part = 0.0

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        if not reason.startswith("reflex"):
            return await super().apply(key, wanted, reason=reason)
        had, outcomes, granted = self.plants[key].wished, [], {}
        for name, wish in wanted.items():
            cpu = had[name].cpu + int(self.part * (wish.cpu - had[name].cpu))
            granted[name] = replace(had[name], cpu=Millicores(cpu))
            outcomes.append(KnobOutcome(name, "cpu", wish.cpu, cpu, "no room"))
            if wish.gpu_rate is not None and (old := had[name].gpu_rate) is not None:
                rate = old.milli + int(self.part * (wish.gpu_rate.milli - old.milli))
                granted[name] = replace(granted[name], gpu_rate=GpuRate(rate))
                outcomes.append(KnobOutcome(name, "gpu_rate", wish.gpu_rate.milli, rate, "the card is full"))
        await super().apply(key, granted, reason=reason)
        return outcomes


async def burst(store: Store, part: float) -> tuple[Rounds, list[Reflex]]:
    """A burst in which the reflex is granted only a part of what it asks for."""
    world, watcher = Grudging(list(simulated("burst", 900.0).plants.values())), Rounds()
    world.part = part
    tuning = Tuning(prices=setup().prices, probing=False)
    loop = PipelineLoop(KEY, world, MirroredMemory(store), tuning, watcher=watcher)
    await loop.run(lambda: world.clock.now() >= 600)
    await world.clock.aclose()
    recorded, experiences = await history(store)
    # Whoever reads the journal knows of it what the loop knew.
    assert all(each.faithful for each in replay(recorded, experiences).comparisons)
    return watcher, [reflex for each in recorded for reflex in each.reflexes()]


async def test_a_reflex_that_was_refused_has_done_nothing_and_does_not_ask_again_for_a_while(store: Store) -> None:
    watcher, reflexes = await burst(store, 0.0)
    assert reflexes
    assert {each.action for each in reflexes} == {"hold"}
    assert {short.reason for each in reflexes for short in each.short} <= {"no room", "the card is full"}
    assert watcher.reflexes == []
    assert {report.learned.frozen_until_s for report in watcher.reports if report.learned} == {0.0}
    told = [(short.stage, short.knob, each.time_s) for each in reflexes for short in each.short]
    for stage, knob, time_s in told:
        again = [at for name, what, at in told if (name, what) == (stage, knob) and at > time_s]
        assert all(at - time_s > Tuning().interval_s for at in again)
    first = min(each.time_s for each in reflexes)
    after = next(report.learned for report in watcher.reports if report.time_s > first)
    assert after is not None
    assert {(each.stage, each.knob) for each in after.refusals} >= {
        (short.stage, short.knob) for each in reflexes if each.time_s == first for short in each.short
    }


async def test_a_reflex_that_was_granted_a_part_has_done_that_part(store: Store) -> None:
    watcher, reflexes = await burst(store, 0.5)
    acts = [each for each in reflexes if each.acted]
    assert acts
    assert [each.action for each in acts] == [str(action) for action in watcher.reflexes][: len(acts)]
    halved = [short for each in acts for short in each.short]
    assert any(short.granted < short.wished for short in halved)
    assert any(report.learned and report.learned.frozen_until_s > 0 for report in watcher.reports)
