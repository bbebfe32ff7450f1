import json
from dataclasses import replace

from controller.explain import explain
from controller.memory.store import Store
from controller.recorded import RecordedRound
from tests.controller.histories import KEY, history, recorded_run


async def test_a_round_is_told_from_what_was_seen_to_how_it_ended(store: Store) -> None:
    await recorded_run(store, 500)
    rounds, _ = await history(store)
    acted = next(each for each in rounds if each.applied is not None and each.concluded is not None)
    lines = explain(acted, KEY)
    text = "\n".join(lines)
    assert lines[0].startswith(f"Round {acted.round} of {KEY}, 1970-01-01T00:")
    for part in (
        "Seen: ",
        "requests/s",
        "Remembered",
        "Offered",
        "Decided by ",
        "Guardrails that let it pass: ",
        "Applied:",
    ):
        assert part in text
    observation, reward = acted.observation(), acted.reward()
    assert observation is not None
    assert reward is not None
    assert f"{observation.arrivals_per_s:.1f} requests/s" in text
    assert f"Reward {reward.total:+.3f} = latency {reward.latency:+.3f}, cost {reward.cost:+.3f}" in text
    for retrieved in acted.retrieved():
        assert f"  {retrieved.id}: score {retrieved.score:.3f}" in text
    assert sum(": granted" in line or "refused in part" in line for line in lines) == len(acted.outcomes() or ())


async def test_a_round_without_an_outcome_says_so(store: Store) -> None:
    await recorded_run(store, 100)
    rounds, _ = await history(store)
    assert "How it ended is not known yet" in explain(rounds[-1], KEY)
    assert "How it ended was not measured" in explain(rounds[-1], KEY, newest=rounds[-1].round + 1)


async def test_why_nothing_was_applied_is_told_apart(store: Store) -> None:
    await recorded_run(store, 100)
    acting = {**(await history(store))[0][-1].decision, "action": "inference: replicas +1"}
    for mode, words in (
        ("recommend", "Applied: nothing, the pipeline was in mode recommend"),
        ("auto", "Applied: no record; the controller stopped before it was done"),
    ):
        view = json.dumps({**json.loads(acting["view_json"]), "mode": mode})
        recorded = RecordedRound("k", "1-0", 3, {**acting, "view_json": view})
        assert words in explain(recorded, KEY)


async def test_what_a_guardrail_refused_and_what_was_not_granted_is_told(store: Store) -> None:
    await recorded_run(store, 100)
    rounds, _ = await history(store)
    changed = replace(
        rounds[-1],
        decision={
            **rounds[-1].decision,
            "wished": "inference: ρ -0.1",
            "action": "hold",
            "verdicts_json": '[{"rule":"safe descent","outcome":"rejected","reason":"P99 is above the SLO"}]',
        },
        applied={
            "outcomes_json": '[{"stage":"inference","knob":"gpu_rate","wished":500,"granted":300,"reason":"no card has room"}]'
        },
    )
    lines = explain(changed, KEY)
    assert "  safe descent refused it: P99 is above the SLO" in lines
    assert "What was left of it: hold" in lines
    assert "  inference gpu_rate 0.5: refused in part or whole, 0.3 granted, because no card has room" in lines


async def test_of_an_exchange_it_is_told_what_it_leads_to(store: Store) -> None:
    await recorded_run(store, 100)
    rounds, _ = await history(store)
    menu = json.loads(rounds[-1].decision["menu_json"])
    menu[0] |= {"origin": "exchange", "leads_to_usd": 1.984}
    del menu[1]["leads_to_usd"]  # as before there were any
    lines = explain(replace(rounds[-1], decision={**rounds[-1].decision, "menu_json": json.dumps(menu)}), KEY)
    assert [", leads to $1.98/h with a replica less" in line for line in lines if "(exchange)" in line] == [True]
    assert sum("leads to" in line for line in lines) == 1


async def test_a_round_without_metrics_says_why_nothing_was_decided(store: Store) -> None:
    await recorded_run(store, 100)
    rounds, _ = await history(store)
    held = replace(
        rounds[-1], decision={"kind": "decision", "round": "3", "problem": "held: no scrape"}, concluded=None
    )
    lines = explain(held, KEY)
    assert "Seen: nothing, the metrics could not be had" in lines
    assert "Not decided: held: no scrape" in lines


async def test_hostile_text_cannot_steer_the_terminal_and_a_damaged_field_hides_nothing_else(store: Store) -> None:
    await recorded_run(store, 200)
    rounds, _ = await history(store)
    hostile = {
        **rounds[1].decision,
        "reason": "\x1b[2J\x1b]0;owned\x07" + "x" * 10_000,
        "reply": "one\rtwo\u202e",
        "menu_json": "{",
    }
    lines = explain(replace(rounds[1], decision=hostile), KEY)
    assert all(line.isprintable() and len(line) < 700 for line in lines)
    assert any("menu_json" in line and line.startswith("Cannot be told") for line in lines)
    assert any(line.startswith("It ended at") for line in lines)


async def test_what_the_reflex_was_refused_is_told_apart_from_what_it_did(store: Store) -> None:
    await recorded_run(store, 100)
    rounds, _ = await history(store)
    short = '{"stage":"inference","knob":"gpu_rate","wished":500,"granted":300,"reason":"the card is full"}'
    reflexes = (
        f'[{{"time_s":95.5,"action":"preprocess: cpu +0.5"}},{{"time_s":96.0,"action":"hold","short":[{short}]}}]'
    )
    lines = explain(replace(rounds[-1], decision={**rounds[-1].decision, "reflex_json": reflexes}), KEY)
    assert "Before it the reflex acted 1 times: preprocess: cpu +0.5 at 96 s" in lines
    refused = "inference gpu_rate 0.5 at 96 s: refused in part or whole, 0.3 granted, because the card is full"
    assert f"  the reflex wished {refused}" in lines
