"""Structured logs on stderr: JSON lines in a cluster, coloured text on a terminal, secrets always masked."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

__all__ = ["configure", "get_logger"]

LogLevel = Literal["debug", "info", "warning", "error"]

_SECRET_KEY = re.compile(r"(?i)token|secret|password|passwd|authorization|api_?key|credential")
_SECRET_VALUE = re.compile(r"(?i)(bearer\s+)[\w.~+/=-]+|(://[^/\s:@]*:)[^@\s/]+(?=@)|\bsk-[\w-]{8,}")
_MASK = "[masked]"


def configure(level: LogLevel = "info", *, json: bool | None = None) -> None:
    """Set logging up for the whole process.

    Args:
        level: Least severe level that is shown.
        json: JSON lines or text; by default JSON unless stderr is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if as_json else _unchanged,
        mask_secrets,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These log every request, and some its headers, at info or debug.
    for noisy in ("aiohttp.access", "httpx", "httpcore", "openai", "kubernetes_asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(component: str) -> structlog.stdlib.BoundLogger:
    """Give a logger that names its component in every line."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(component=component)
    return logger


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog processor: mask values under secret-sounding keys, and secrets inside any text."""
    for key, value in event.items():
        if _SECRET_KEY.search(key) and isinstance(value, str | bytes):
            event[key] = _MASK
        elif isinstance(value, str):
            event[key] = _SECRET_VALUE.sub(lambda match: (match[1] or match[2] or "") + _MASK, value)
    return event


def _unchanged(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event
