"""How much reward is lost to what retrieval does not bring and to what is not chosen: ``python -m benchmarks.regret [--quick]``.

Simulated world, built-in policy with its defaults. At some rounds of a run every action of A is valued by a rollout on the same requests
from that very moment, and the round's regret is split as in ``regret``: *coverage* is what the retrieved experiences' actions lack,
*selection* what was lost among them. Selection is negative where an action that nothing retrieved suggests was better than all that
are suggested: the menu also holds steps of a plan, so the same regret is split over the menu as well. Forced probes are summed apart.

A holds every step of one stage on the grid of replicas with CPU or share that the guardrails let through, and what the menu and the
experiences add. Memory is left out, for it changes no latency here, and so are pairs of stages that nobody proposed. A value is the
reward that the round would get, its frontier as it is, after ``--horizon`` seconds in which nobody, the reflex included, does more.

Exits 1 where the two parts do not add up to the regret, or where nothing could be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import in_processes
from controller.decision import Decision
from controller.frontier import GLOBAL, load_bucket
from controller.guardrails import judge
from controller.knowledge import Knowledge
from controller.menu import Menu
from controller.reward import foresaw, outcome_of, reward_terms
from controller.simulation.pipelines import GRAPHS, PIPELINES, pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.regret import RegretAccount, RoundRegret, action_values, round_regret
from controller.simulation.trial import run_trial
from controller.simulation.workloads import workload_named
from controller.state import CPU_STEP, GPU_STEP_MILLI, GPU_STEPS_MOST, HOLD, Action, StageDelta
from controller.tuning import Tuning
from sair.logs import configure

__all__ = ["Accounts", "Run", "main", "measure"]

WORKLOADS: Final = ("poisson", "ramp", "bursts-regular")
FIRST_SEED: Final = 7001
_WIDTH: Final = 132


@dataclass(frozen=True, slots=True)
class Run:
    """One run and how it is looked at."""

    pipeline: str
    workload: str
    seed: int
    duration_s: float
    every: int
    """Every so many rounds one is measured."""
    horizon_s: float
    """Length of a rollout."""


@dataclass(slots=True)
class Accounts:
    """What one run came to."""

    run: Run
    retrieved: RegretAccount
    """A(E): projections of the retrieved experiences' actions, and no-op."""
    menu: RegretAccount
    """The same rounds, split over the menu."""
    holding: RegretAccount
    """The same rounds, had nothing been done: what there was to gain."""
    actions: list[int]
    """How many were valued in each round."""
    gap: float = 0.0
    """Largest difference between the two parts together and best value − value taken."""


def measure(run: Run) -> Accounts:
    """Run the policy and account for every so many rounds."""
    configure("error")
    setup = pipeline_named(run.pipeline)
    tuning = replace(Tuning(), prices=setup.prices)
    found = Accounts(run, RegretAccount(), RegretAccount(), RegretAccount(), [])

    def look(plant: Plant, knowledge: Knowledge, menu: Menu, decision: Decision) -> None:
        if decision.round % run.every or plant.now + run.horizon_s > run.duration_s:
            return
        remembered = [judge(each.experience.action, menu.case)[0] for each in menu.recollections]
        offered = [each.action for each in menu.candidates]
        actions = {*_steps(menu), *remembered, *offered, decision.action}
        values = action_values(plant, actions, run.horizon_s, _reward(knowledge, menu, tuning))
        probe = decision.policy == "probe"
        split = [round_regret(values, covered, decision.action, probe=probe) for covered in (remembered, offered)]
        found.retrieved.add(split[0])
        found.menu.add(split[1])
        found.holding.add(round_regret(values, (), HOLD, probe=probe))
        found.actions.append(len(values))
        whole = max(values.values()) - values[decision.action]
        found.gap = max(found.gap, *(abs(each.coverage + each.selection - whole) for each in split))

    series = workload_named(run.workload, setup.base_rate_per_s, run.duration_s, run.seed)
    run_trial(setup, series, run.seed, tuning=tuning, on_round=look)
    return found


def _steps(menu: Menu) -> set[Action]:
    """Every step of one stage on the grid, as the guardrails leave it."""
    shares = [step * GPU_STEP_MILLI for step in range(-GPU_STEPS_MOST, GPU_STEPS_MOST + 1)]
    found = {HOLD}
    for stage in menu.case.situation.view.stages:
        knobs = [{"gpu_milli": milli} for milli in shares] if stage.uses_gpu else []
        knobs = knobs or [{"cpu": step} for step in (-CPU_STEP, 0, CPU_STEP)]
        for replicas, other in product((-1, 0, 1, 2), knobs):
            action = Action.of([StageDelta(stage.name, replicas=replicas, **other)])
            found.add(judge(action, menu.case)[0])
    return found


def _reward(knowledge: Knowledge, menu: Menu, tuning: Tuning) -> Callable[[Plant, Action], float]:
    situation = menu.case.situation
    budget = situation.view.budget_per_hour
    before = outcome_of(situation.observation, budget).latency_ratio

    def value(plant: Plant, action: Action) -> float:
        seen = plant.observe(tuning.window_s)
        bucket = GLOBAL if tuning.frontier_scope == "global" else load_bucket(seen.arrivals_per_s)
        frontier = knowledge.frontiers.at(bucket)
        foresight = foresaw(action, menu.bottleneck)
        return reward_terms(outcome_of(seen, budget), before, frontier, foresight=foresight, tuning=tuning).total

    return value


def _row(name: str, accounts: Sequence[Accounts], probes: bool) -> list[str] | None:
    rounds = sum(each.probe == probes for account in accounts for each in account.retrieved.rounds)
    if not rounds:
        return None

    def mean(parts: Iterable[RegretAccount]) -> RoundRegret:
        totals = [part.total(probes=probes) for part in parts]
        return RoundRegret(
            sum(each.coverage for each in totals) / rounds, sum(each.selection for each in totals) / rounds, probes
        )

    retrieved, menu = mean(each.retrieved for each in accounts), mean(each.menu for each in accounts)
    figures = (
        mean(each.holding for each in accounts).instantaneous,
        retrieved.instantaneous,
        *(retrieved.coverage, retrieved.selection, menu.coverage, menu.selection),
    )
    return [name, "probes" if probes else "chosen", str(rounds), *(f"{each:+.3f}" for each in figures)]


def main(
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="Of " + ", ".join([*PIPELINES, *GRAPHS]) + "; several times. Default: the paper's four."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.", min=1, max=100)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, short runs: a look.")] = False,
    duration: Annotated[float, typer.Option(help="Simulated seconds of a run.", min=120)] = 1800.0,
    every: Annotated[int, typer.Option(help="Measure one round in so many.", min=1)] = 5,
    horizon: Annotated[float, typer.Option(help="Seconds of a rollout; a round has 30.", min=15)] = 30.0,
    first_seed: Annotated[int, typer.Option(help="Of the seeds.", min=0)] = FIRST_SEED,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
) -> None:
    """Measure regret on every pipeline under three workloads, and print its means per round."""
    names, numbers = pipeline or list(PIPELINES), range(first_seed, first_seed + (1 if quick else seeds))
    for name in names:
        pipeline_named(name)
    length_s = min(duration, 420.0) if quick else duration
    runs = [Run(*key, length_s, every, horizon) for key in product(names, WORKLOADS, numbers)]
    console, began = Console(width=_WIDTH), time.monotonic()
    accounts = in_processes(measure, runs, workers)
    console.print(_table(names, accounts))
    gap, valued = max(each.gap for each in accounts), [count for each in accounts for count in each.actions]
    held = bool(valued) and gap < 1e-9
    console.print(
        f"Simulated; built-in policy, seeds {numbers[0]} to {numbers[-1]}, runs of {length_s:.0f} s, rollouts of {horizon:g} s, "
        f"{sum(valued) / max(1, len(valued)):.0f} actions valued in a round, {time.monotonic() - began:.0f} s.\n"
        f"Coverage and selection add up to the regret: {'yes' if held else 'NO'} (largest difference {gap:.1e})",
        highlight=False,
    )
    raise typer.Exit(0 if held else 1)


def _table(names: Sequence[str], accounts: Sequence[Accounts]) -> Table:
    table = Table(title="Regret per round, in units of the reward", title_justify="left")
    for place, name in enumerate(
        ("runs", "rounds", "n", "of holding", "regret", "coverage", "selection", "menu: coverage", "menu: selection")
    ):
        table.add_column(name, justify="right" if place > 1 else "left", no_wrap=True)
    groups = (
        {name: [each for each in accounts if each.run.pipeline == name] for name in names},
        {name: [each for each in accounts if each.run.workload == name] for name in WORKLOADS},
        {"all": list(accounts)},
    )
    for group in groups:
        table.add_section()
        for name, part in group.items():
            for row in (_row(name, part, probes) for probes in (False, True)):
                if row is not None:
                    table.add_row(*row)
    return table


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
