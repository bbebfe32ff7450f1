"""Settings of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from sair.errors import SettingsError
from sair.settings import load, settings

__all__ = ["ModelSettings", "load_model_settings"]


@settings("SAIR_LLM_")
class ModelSettings:
    """How to reach the model and what it may spend. Without a base URL and without a key no model is used."""

    base_url: str = ""
    """Base URL of an OpenAI-compatible endpoint; default: OPENAI_BASE_URL, else the OpenAI API when a key is set."""
    api_key: str = ""
    """Key of the endpoint; default: OPENAI_API_KEY. Never logged."""
    model: str = "gpt-4o-mini"
    """Name of the model."""
    mode: Literal["menu", "free"] = "menu"
    """menu: the model answers with the number of a candidate; free: it writes an action of its own."""
    deadline_s: Annotated[float, Meta(gt=0, le=120)] = 12.0
    """Longest time one decision may take, the repair included, seconds; below SAIR_CONTROLLER_INTERVAL_S where the controller runs in a
    cluster. A simulation waits for its model."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.2
    """Sampling temperature."""
    max_tokens: Annotated[int, Meta(ge=64, le=4096)] = 400
    """Longest reply, tokens. A model that thinks before it answers needs a multiple: what it thinks counts, and what is cut off is no
    answer."""
    experience_tokens: Annotated[int, Meta(ge=0, le=100_000)] = 2000
    """What the experiences in a prompt may take, tokens, a token counted as three bytes; those with the lowest scores are left out first.
    0 shows none. All fifteen take less than half of it."""
    enforcement: Literal["probe", "json_schema", "json_object", "text"] = "probe"
    """What the server makes of response_format; probe asks it at start. A format that a request is refused with is left for the next looser
    one, for an hour."""
    tokens_per_day: Annotated[int, Meta(ge=0)] = 0
    """Budget of one pipeline, tokens a day, in and out; 0 disables."""
    dollars_per_day: Annotated[float, Meta(ge=0)] = 0.0
    """Budget of one pipeline, dollars a day; 0 disables."""
    dollars_per_million_in: Annotated[float, Meta(ge=0)] = 0.15
    """Price of a million prompt tokens."""
    dollars_per_million_out: Annotated[float, Meta(ge=0)] = 0.60
    """Price of a million reply tokens."""
    breaker_failures: Annotated[int, Meta(ge=1)] = 3
    """Failures in a row that open the circuit breaker."""
    breaker_pause_s: Annotated[float, Meta(gt=0)] = 120.0
    """How long an open breaker asks nothing, seconds; doubles up to an hour while the server stays bad."""
    concurrency: Annotated[int, Meta(ge=1)] = 16
    """Calls under way at once, over all pipelines; the others wait, within their deadline, in the order in which they came."""
    pipeline_concurrency: Annotated[int, Meta(ge=1)] = 1
    """Calls of one pipeline under way at once; one more is refused, and the built-in policy decides."""

    @property
    def configured(self) -> bool:
        """Somebody wants a model."""
        return bool(self.base_url or self.api_key)


def load_model_settings(environment: Mapping[str, str], interval_s: float | None = None) -> ModelSettings:
    """Read the settings; OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL stand in for SAIR's own names.

    Args:
        environment: Usually ``os.environ``.
        interval_s: Length of a round that passes while the model thinks, seconds; None where time waits for it.

    Raises:
        SettingsError: Names the variable, the value and what is allowed.
    """
    merged = dict(environment)
    for own, common in (("BASE_URL", "OPENAI_BASE_URL"), ("API_KEY", "OPENAI_API_KEY"), ("MODEL", "OPENAI_MODEL")):
        if not merged.get("SAIR_LLM_" + own) and environment.get(common):
            merged["SAIR_LLM_" + own] = environment[common]
    found = load(ModelSettings, merged)
    if found.configured and interval_s is not None and not found.deadline_s < interval_s:
        allowed = f"less than SAIR_CONTROLLER_INTERVAL_S, which is {interval_s:g}"
        raise SettingsError("SAIR_LLM_DEADLINE_S", found.deadline_s, allowed)
    return found
