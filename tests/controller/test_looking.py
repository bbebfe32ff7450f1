from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from controller.knowledge import Knowledge
from controller.looking import Looks
from controller.peak import Peaks
from controller.simulation.plant import Plant
from controller.tuning import Tuning
from controller.worlds.simulated import Faults, SimulatedWorld
from sair.pipeline import Mode
from tests.controller.simulation.builders import two_stages
from tests.controller.situations import experienced

SETUP = replace(two_stages(), slo_s=0.5)
VIEW = SETUP.view
EVERY_S = 1.0
"""Two SLOs; a glance five times as often."""
STEADY = np.arange(0.05, 60.0, 0.1)
BURST = np.arange(30.25, 40.0, 0.01)


def knowing(remembered_per_s: float = 100.0) -> Knowledge:
    """Of a usual rate of ten requests per second, and of bursts."""
    known = experienced()
    peaks = Peaks(recent=((30.0, 10.0),), remembered=remembered_per_s, remembered_s=30.0, updated_s=30.0, first_s=0.0)
    return replace(known, learned=replace(known.learned, peaks=peaks))


def world(arrivals: Sequence[float] | np.ndarray = STEADY, faults: Faults | None = None) -> SimulatedWorld:
    return SimulatedWorld([Plant(SETUP, np.sort(np.asarray(arrivals)), 1)], faults=faults or Faults())


async def looked_at(
    one: SimulatedWorld,
    knowledge: Knowledge | None,
    *,
    mode: Mode = "auto",
    latest_s: float = 60.0,
    tuning: Tuning | None = None,
) -> float:
    """When the reflex looks after 30 s."""
    await one.clock.sleep(30.0)
    looks = Looks(SETUP.key, one, tuning or Tuning(), lambda: 1)
    await looks.next(replace(VIEW, mode=mode), knowledge, latest_s)
    await one.clock.aclose()
    return one.clock.now()


async def test_it_looks_at_regular_times_and_not_after_the_latest() -> None:
    assert await looked_at(world(), None) == pytest.approx(31.0)
    assert await looked_at(world(), knowing()) == pytest.approx(31.0)
    assert await looked_at(world(), knowing(), latest_s=30.5) == pytest.approx(30.5)


async def test_it_looks_at_the_first_glance_that_finds_a_burst_of_a_known_kind() -> None:
    bursting = np.concatenate([STEADY, BURST])
    assert await looked_at(world(bursting), knowing()) == pytest.approx(30.6)


async def test_a_burst_that_goes_on_is_looked_at_as_usual() -> None:
    long = np.concatenate([STEADY, BURST - 5.0])
    assert await looked_at(world(long), knowing()) == pytest.approx(31.0)


@pytest.mark.parametrize(
    ("knowledge", "mode", "tuning"),
    [
        pytest.param(None, "auto", Tuning(), id="nothing is known"),
        pytest.param(knowing(11.0), "auto", Tuning(), id="no bursts are known"),
        pytest.param(knowing(), "recommend", Tuning(), id="nothing would come of it"),
        pytest.param(knowing(), "auto", Tuning(reflex=False), id="switched off"),
        pytest.param(knowing(), "auto", Tuning(remember_peaks=False), id="without memory of peaks"),
    ],
)
async def test_nobody_glances_where_nothing_would_come_of_it(
    knowledge: Knowledge | None, mode: Mode, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, glances = world(np.concatenate([STEADY, BURST])), []
    monkeypatch.setattr(one, "entering", lambda *asked: glances.append(asked))
    assert await looked_at(one, knowledge, mode=mode, tuning=tuning) == pytest.approx(31.0)
    assert not glances


async def test_a_glance_that_finds_no_metrics_changes_nothing() -> None:
    blind = world(np.concatenate([STEADY, BURST]), Faults(metrics_down=((29.0, 60.0),)))
    assert await looked_at(blind, knowing()) == pytest.approx(31.0)
