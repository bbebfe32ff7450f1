from dataclasses import replace
from pathlib import Path

from controller.knowledge import moved_by
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.simulation.session import Scenario, run_sair
from controller.simulation.trial import run_trial
from controller.simulation.workloads import recurring_bursts
from tests.controller.simulation.builders import cpu, gpu, two_stages

SETUP = two_stages(cpu(2), gpu(1, 500))
SERIES = recurring_bursts(8.0, 400.0, 3, gap_s=(120.0, 140.0), length_s=(20.0, 30.0))


async def test_a_trial_is_the_controller_to_the_last_request(tmp_path: Path) -> None:
    trial = run_trial(SETUP, SERIES, 3)
    async with embedded_server(tmp_path) as url:
        store = Store.from_url(url)
        run = await run_sair(Scenario(SETUP, SERIES, 3), MirroredMemory(store))
        await store.close()
    assert replace(trial.summary(), policy="") == replace(run.summary, policy="")


def test_what_one_trial_learned_is_where_the_next_begins() -> None:
    first = run_trial(SETUP, SERIES, 3)
    known = first.knowledge.learned
    assert known.peaks.remembered > 2 * 8.0
    carried = replace(first.knowledge, learned=moved_by(known, -SERIES.duration_s))
    second = run_trial(SETUP, SERIES, 4, knowledge=carried)
    assert second.knowledge.learned.round > known.round
    assert second.knowledge.learned.peaks.remembered > 2 * 8.0
