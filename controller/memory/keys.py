"""The names of the keys. The braces are Redis Cluster's hash tag: all keys of one pipeline live in one slot, so they change atomically."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCHEMA", "SCHEMA_KEY", "Keys", "pipeline_of"]

SCHEMA = "1"
"""Version of the layout; raised whenever an older program could not read what a newer one writes."""

SCHEMA_KEY = "sair:schema"

_PREFIX = "sair:{"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one pipeline, ``namespace/name``."""

    pipeline: str

    def experience(self, identifier: str) -> str:
        """HASH of one round."""
        return f"{_PREFIX}{self.pipeline}}}:experience:{identifier}"

    @property
    def everything(self) -> str:
        """What all keys of the pipeline begin with."""
        return f"{_PREFIX}{self.pipeline}}}:"

    @property
    def experiences(self) -> str:
        """ZSET of experience ids by time, seconds."""
        return f"{_PREFIX}{self.pipeline}}}:experiences"

    @property
    def rewards(self) -> str:
        """ZSET of experience ids by reward."""
        return f"{_PREFIX}{self.pipeline}}}:rewards"

    @property
    def surprisals(self) -> str:
        """ZSET of experience ids by surprisal."""
        return f"{_PREFIX}{self.pipeline}}}:surprisals"

    @property
    def frontier(self) -> str:
        """HASH from experience id to its point on the Pareto frontier of its load bucket."""
        return f"{_PREFIX}{self.pipeline}}}:frontier"

    @property
    def decisions(self) -> str:
        """STREAM of decision records, the capped journal."""
        return f"{_PREFIX}{self.pipeline}}}:decisions"

    @property
    def telling(self) -> tuple[str, ...]:
        """Those of which each alone shows that memory knows the pipeline."""
        return self.experiences, self.decisions, self.writes, self.controller

    @property
    def writes(self) -> str:
        """HASH of who may write, and how many writes and journal records there were; see ``writing``."""
        return f"{_PREFIX}{self.pipeline}}}:writes"

    @property
    def controller(self) -> str:
        """HASH of the controller's own state: ε, round, last action, what was learned."""
        return f"{_PREFIX}{self.pipeline}}}:controller"

    def spending(self, day: str) -> str:
        """HASH of what the language model used on a day (UTC, ISO 8601); it expires."""
        return f"{_PREFIX}{self.pipeline}}}:spending:{day}"


def pipeline_of(key: str) -> str | None:
    """The pipeline a key belongs to, None for any other key."""
    if not key.startswith(_PREFIX) or "}" not in key:
        return None
    return key[len(_PREFIX) : key.index("}")]
