import json
from dataclasses import replace
from pathlib import Path

import pytest

from controller.knowledge import restore, stored
from controller.memory.exchange import Archived, header
from controller.simulation.carry import bring, moved_before
from controller.tuning import Tuning
from sair.errors import InvalidInput
from tests.builders import experience
from tests.controller.situations import chain, experienced

VIEW = chain()
LEARNED = experienced(rounds_seen=8)


def archived(state_time_s: float = 1770.0) -> Archived:
    one = replace(experience(3, context=(0.1, 0.2), pipeline=VIEW.key), time_s=1700.0)
    state = {"round": "8", "updated_s": repr(state_time_s), "learned_json": json.dumps(stored(LEARNED))}
    return Archived({one.id: one}, state, [])


def test_an_earlier_run_lies_before_the_beginning_of_the_next() -> None:
    moved = moved_before(archived(), VIEW)
    (one,) = moved.experiences.values()
    assert one.time_s == 0.0
    assert float(moved.state["updated_s"]) == -30.0
    back = restore(VIEW, json.loads(moved.state["learned_json"]), [], Tuning()).learned
    assert back.peaks.updated_s == pytest.approx(LEARNED.learned.peaks.updated_s - 1800.0)
    assert back.fits["infer"].theta == LEARNED.learned.fits["infer"].theta


def test_a_state_that_cannot_be_is_refused() -> None:
    hostile = archived()
    raw = json.loads(hostile.state["learned_json"])
    raw["peaks"]["remembered"] = 1e18
    hostile.state = {**hostile.state, "learned_json": json.dumps(raw)}
    with pytest.raises(InvalidInput, match="remembered"):
        moved_before(hostile, VIEW)


async def test_a_file_of_another_pipeline_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    file.write_text(header())
    with pytest.raises(InvalidInput, match="knows"):
        await bring(None, file, VIEW)  # type: ignore[arg-type]  # never reached
