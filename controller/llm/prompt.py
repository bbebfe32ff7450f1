"""What the model is asked: numbers and opaque stage ids only. No label, no pod name, no log line, no earlier text of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from controller.frontier import GLOBAL, Point, load_bucket
from controller.knowledge import Knowledge
from controller.menu import Candidate, Digest, Menu
from controller.retrieval import Recollection
from controller.state import CPU_STEP, GPU_STEP_MILLI, GPU_STEPS_MOST, MEMORY_STEP, Action, PipelineView, StageDelta

__all__ = ["Question", "ask", "repair", "schema_of"]

Mode = Literal["menu", "free"]

_SYSTEM: Final = """\
You are the scaling controller of a multi-stage machine-learning pipeline on shared GPUs. Once every 30 seconds you take one scaling action.
Goals, in this order: keep the end-to-end P99 latency below the SLO; spend as little as possible; act before a bottleneck forms.
Facts:
- rho is the share of one GPU that each replica of a GPU stage gets. Raising rho or cpu takes effect in about a second; a new replica \
takes seconds on CPU stages and up to minutes on GPU stages. So keep cheap replicas at a low rho as a reserve and raise rho when load comes.
- The stage with the highest utilisation is usually the bottleneck; adding capacity elsewhere helps little.
- Never scale down while P99 is above the SLO or a queue grows.
- A reward close to or above 1 minus the cost term is good; larger is better.
Answer with one JSON object that fits the schema, and nothing else.
"""

_MENU_TASK: Final = 'Choose the candidate with the best trade-off. "choice" is its number.\n'
_FREE_TASK: Final = (
    "Write your own action: for each stage the change of each knob, 0 to leave it alone. "
    "At most two stages may change, at most one downwards.\n"
)
_WORDS: Final = """
acorn amber apple arrow basil beach birch bread brick candle carbon cedar chalk cherry cloud clover
copper coral cotton daisy eagle ember falcon feather fern flint forest garden ginger granite grape harbor hazel honey
island ivory jasmine juniper kettle lemon linen maple marble meadow mint olive onyx orange otter pearl
pepper pine plum quartz raven river saffron silver sparrow thistle tulip velvet walnut willow
"""
CODES: Final = tuple(_WORDS.split())
"""One of them marks each round: a reply that was made for another does not repeat it, but for one in sixty-four. They are fixed, because
servers compile a schema when they first see it, and words, because small models copy those best."""
_EXPERIENCES: Final = (
    "Experiences like this one (load, P99/SLO before, action, P99/SLO after, cost/budget, misses, reward):"
)
_FIELDS: Final = {
    "code": "the word that the question ends with",
    "choice": "the number of a candidate",
    "bottleneck": 'the id of the stage that limits the others, or "none"',
    "rationale": "why, in at most 20 words",
}
"""What the schema does not say, or says to servers alone that enforce one."""
_FRONTIER_MOST: Final = 12
_BYTES_A_TOKEN: Final = 3
_REPLICAS: Final = (-1, 0, 1, 2)
_SHARE_STEPS: Final = tuple(step * GPU_STEP_MILLI for step in range(-GPU_STEPS_MOST, GPU_STEPS_MOST + 1))
_CPU_STEPS: Final = (-CPU_STEP, 0, CPU_STEP)
_MEMORY_STEPS: Final = (-MEMORY_STEP, 0, MEMORY_STEP)


@dataclass(frozen=True, slots=True)
class Question:
    """What is sent, and what is needed to read the answer."""

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    mode: Mode
    stages: tuple[str, ...]
    """Stage names; the model knows them as s1, s2, …"""
    order: tuple[int, ...]
    """Number of the menu's candidate behind each choice; choice 1 is the first."""
    code: str
    """What the reply must repeat."""
    shown: tuple[str, ...]
    """Ids of the experiences in it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the messages, 16 hexadecimal digits, for the journal."""
        return hashlib.sha256(json.dumps([dict(m) for m in self.messages]).encode()).hexdigest()[:16]


def ask(
    knowledge: Knowledge, menu: Menu, mode: Mode, rng: np.random.Generator, experience_tokens: int = 2000
) -> Question:
    """Put the question of this round.

    Args:
        knowledge: For the frontier.
        menu: Candidates, experiences and the situation.
        mode: Whether the model chooses from the menu or writes an action.
        rng: Shuffles the menu, because weak models prefer what stands first, and draws the code.
        experience_tokens: What the experiences may take; those with the lowest scores are left out. A token counts as three bytes: of
            text like this it takes more.
    """
    view = menu.case.situation.view
    stages = tuple(stage.name for stage in view.stages)
    ids = {name: f"s{number}" for number, name in enumerate(stages, 1)}
    order = tuple(int(number) for number in rng.permutation(len(menu.candidates)))
    code = CODES[int(rng.integers(len(CODES)))]
    experiences = _affordable(_experiences(menu.recollections, ids), experience_tokens)
    parts = [
        _state(menu, ids),
        _frontier(knowledge, menu),
        "\n".join([_EXPERIENCES, *experiences.values()]) if experiences else "",
        _candidates([menu[number] for number in order], ids) if mode == "menu" else "",
        _MENU_TASK if mode == "menu" else _FREE_TASK,
        _code_task(code),
    ]
    schema = schema_of(mode, view, len(order))
    messages = (
        {"role": "system", "content": _SYSTEM + _form(schema) + _topology(view, ids)},
        {"role": "user", "content": "\n".join(filter(None, parts))},
    )
    return Question(messages, schema, mode, stages, order, code, tuple(experiences))


def repair(question: Question, problem: str) -> Question:
    """Ask once more after an answer that could not be used. The answer itself is not repeated to the model.

    Args:
        question: As it was asked.
        problem: Our own words; never text of the model.
    """
    content = f"Your answer could not be used: {problem}. Answer again with one JSON object that fits the schema.\n"
    again = {"role": "user", "content": content + _code_task(question.code)}
    return replace(question, messages=(*question.messages, again))


def schema_of(mode: Mode, view: PipelineView, candidates: int) -> dict[str, Any]:
    """JSON schema of the reply: flat, enumerated, everything required. Every keyword here belongs into the client's probe as well."""
    ids = [f"s{number}" for number in range(1, len(view.stages) + 1)]
    properties: dict[str, Any] = {"code": {"type": "string", "enum": list(CODES)}}
    if mode == "menu":
        properties["choice"] = {"type": "integer", "enum": list(range(1, candidates + 1))}
    else:
        for identifier, stage in zip(ids, view.stages, strict=True):
            properties[f"{identifier}_replicas"] = {"type": "integer", "enum": list(_REPLICAS)}
            properties[f"{identifier}_cpu_millicores"] = {"type": "integer", "enum": list(_CPU_STEPS)}
            properties[f"{identifier}_memory_mi"] = {"type": "integer", "enum": list(_MEMORY_STEPS)}
            if stage.uses_gpu:
                properties[f"{identifier}_rho_thousandths"] = {"type": "integer", "enum": list(_SHARE_STEPS)}
    properties["bottleneck"] = {"type": "string", "enum": [*ids, "none"]}
    properties["rationale"] = {"type": "string", "maxLength": 160}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _form(schema: Mapping[str, Any]) -> str:
    """The fields of the answer in words, for models whose server shows them no schema."""
    lines = [
        f'"{name}": {_FIELDS.get(name) or "one of " + ", ".join(map(str, rule["enum"]))}'
        for name, rule in schema["properties"].items()
    ]
    return "Fields of the answer, all of them required:\n" + "\n".join(lines) + "\n"


def _code_task(code: str) -> str:
    return f'The code of this round is {code}. Begin your answer with {{"code": "{code}",'


def _topology(view: PipelineView, ids: Mapping[str, str]) -> str:
    lines = [
        f"{ids[stage.name]}: {'GPU' if stage.uses_gpu else 'CPU'} stage, after {', '.join(ids[name] for name in stage.after) or 'arrivals'}"
        for stage in view.stages
    ]
    return f"Stages:\n{chr(10).join(lines)}\nSLO {view.slo_s * 1000:.0f} ms, budget ${view.budget_per_hour:.2f}/h.\n"


def _state(menu: Menu, ids: Mapping[str, str]) -> str:
    seen = menu.case.situation.observation
    lines = [
        f"State: arrivals {seen.arrivals_per_s:.1f}/s, slope {seen.arrivals_slope:+.2f}/s², P50 {_ms(seen.p50_s)}, P99 {_ms(seen.p99_s)}, "
        f"goodput {seen.goodput_per_s:.1f}/s, cost ${seen.cost_per_hour:.2f}/h",
        "stage replicas(starting) cpu memory rho queue queue_slope cpu_util gpu_util service",
    ]
    for stage in seen.stages:
        a = stage.allocation
        rate = stage.granted or a.gpu_rate
        busy = f"{stage.gpu_utilisation:.0%}" if rate else "-"
        lines.append(
            f"{ids[stage.name]} {stage.ready}({stage.starting}) {a.cpu / 1000:g} {a.memory}Mi {rate or '-'} {stage.queue_depth:.0f} "
            f"{stage.queue_slope:+.1f}/s {stage.cpu_utilisation:.0%} {busy} {_ms(stage.service_s)}"
        )
    if menu.bottleneck:
        lines.append(f"Suspected bottleneck: {ids[menu.bottleneck]}")
    return "\n".join(lines)


def _frontier(knowledge: Knowledge, menu: Menu) -> str:
    """The frontier that rewards are taken against."""
    whole = menu.case.model.tuning.frontier_scope == "global"
    bucket = GLOBAL if whole else load_bucket(menu.case.situation.observation.arrivals_per_s)
    points = _spread(knowledge.frontiers.at(bucket).points, _FRONTIER_MOST)
    if not points:
        return ""
    where = "over all loads" if whole else "at this load"
    return f"Pareto frontier {where} (P99/SLO, cost/budget): " + " ".join(f"({x:.2f}, {y:.3f})" for x, y in points)


def _spread(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most so many of them, evenly over their order, both ends among them."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _experiences(recollections: Sequence[Recollection], ids: Mapping[str, str]) -> list[tuple[Recollection, str]]:
    """Each with its line, in the order in which they were chosen; without those of a stage that is gone."""
    lines = []
    for each in recollections:
        e = each.experience
        if all(delta.stage in ids for delta in e.action.deltas):
            line = (
                f"{e.arrivals_per_s:.0f}/s {e.previous_latency_ratio:.2f} [{_action(e.action, ids)}] "
                f"{e.outcome.latency_ratio:.2f} {e.outcome.cost_ratio:.3f} {e.outcome.miss_ratio:.1%} {each.reward:+.2f}"
            )
            lines.append((each, line))
    return lines


def _affordable(lines: Sequence[tuple[Recollection, str]], tokens: int) -> dict[str, str]:
    """Lines by id, in their order: those with the highest scores, as many as fit with the heading."""
    left = tokens * _BYTES_A_TOKEN - len(_EXPERIENCES.encode())
    affordable = set()
    for each, line in sorted(lines, key=lambda pair: -pair[0].score):
        left -= 1 + len(line.encode())
        if left < 0:
            break
        affordable.add(each.experience.id)
    return {each.experience.id: line for each, line in lines if each.experience.id in affordable}


def _candidates(candidates: Sequence[Candidate], ids: Mapping[str, str]) -> str:
    lines = ["Candidates (number: action | predicted P99, cost, reward ± uncertainty, support, safe):"]
    for number, each in enumerate(candidates, 1):
        d = each.digest
        after = "" if each.leads_to_usd is None else f", leads to ${each.leads_to_usd:.2f}/h with a replica less"
        last = f", last time P99/SLO {d.last_outcome.latency_ratio:.2f}" if d.last_outcome else ""
        lines.append(
            f"{number}: {_action(each.action, ids)} | {_predicted(d)}, ${d.cost_per_hour:.2f}/h, {d.reward:+.2f} ± {d.uncertainty:.2f}, "
            f"{d.support:.1f}, {'yes' if d.safe else 'no'}{after}{last}"
        )
    return "\n".join(lines)


def _predicted(digest: Digest) -> str:
    """A replica that has to start first changes nothing until then."""
    now, later = _ms(digest.p99_s), _ms(digest.p99_later_s)
    return now if later == now else f"{now} and {later} once replicas are ready"


def _action(action: Action, ids: Mapping[str, str]) -> str:
    return (
        "; ".join(str(StageDelta(ids[d.stage], d.replicas, d.cpu, d.memory, d.gpu_milli)) for d in action.deltas)
        or "hold"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None or not seconds < 1e6 else f"{seconds * 1000:.0f} ms"
