"""Reading the model's answer. It is untrusted input: whatever does not fit the question exactly is refused with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from controller.llm.prompt import Question
from controller.menu import Menu
from controller.state import Action, StageDelta
from sair.errors import WireError

__all__ = ["CODE_FIELD", "Answer", "read"]

CODE_FIELD: Final = "reply.code"
"""What a WireError names where a reply was not made for this question."""
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(\{.*\})\s*```\s*\Z", re.DOTALL)
_MAX_RATIONALE = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wants."""

    action: Action
    candidate: int | None
    """Number of the menu's candidate; None for an action of the model's own."""
    bottleneck: str | None
    rationale: str
    """For people; never fed back into a prompt."""


def read(text: str, question: Question, menu: Menu) -> Answer:
    """Read an answer.

    Args:
        text: The model's reply, whatever it is.
        question: What was asked.
        menu: The menu it was asked about.

    Raises:
        WireError: Names the field and what is allowed; the message holds none of the model's free text.
    """
    values = _object(text)
    _check(values, question)
    ids = {f"s{number}": name for number, name in enumerate(question.stages, 1)}
    bottleneck = ids.get(values["bottleneck"])
    rationale = " ".join(values["rationale"].split())[:_MAX_RATIONALE]
    if question.mode == "menu":
        number = question.order[values["choice"] - 1]
        return Answer(menu[number].action, number, bottleneck, rationale)
    deltas = [
        StageDelta(
            name,
            replicas=values[f"{identifier}_replicas"],
            cpu=values[f"{identifier}_cpu_millicores"],
            memory=values[f"{identifier}_memory_mi"],
            gpu_milli=values.get(f"{identifier}_rho_thousandths", 0),
        )
        for identifier, name in ids.items()
    ]
    return Answer(Action.of(deltas), None, bottleneck, rationale)


def _object(text: str) -> dict[str, Any]:
    fenced = _FENCE.match(text)
    try:
        values: Any = msgspec.json.decode(fenced[1] if fenced else text.strip())
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError("reply", "text that is no JSON", "one JSON object") from error
    if not isinstance(values, dict):
        raise WireError("reply", type(values).__name__, "one JSON object")
    return values


def _check(values: dict[str, Any], question: Question) -> None:
    properties = question.schema["properties"]
    if values.get("code") != question.code:
        raise WireError(CODE_FIELD, "no code or another round's", f"{question.code}, the code of this round")
    unknown = sorted(values.keys() - properties.keys())
    if unknown:
        raise WireError("reply", f"{len(unknown)} unknown fields", "only the fields " + ", ".join(properties))
    for name, rule in properties.items():
        if name not in values:
            raise WireError(f"reply.{name}", None, "the field to be there")
        value = values[name]
        if "enum" in rule:
            # bool is an int to Python, and 1.0 equals 1: neither is what the schema says.
            if type(value) is not (int if rule["type"] == "integer" else str) or value not in rule["enum"]:
                raise WireError(f"reply.{name}", "another value", "one of " + ", ".join(map(str, rule["enum"])))
        elif not isinstance(value, str):
            raise WireError(f"reply.{name}", type(value).__name__, "text")
