"""Settings: one frozen dataclass per component, read once from environment variables, every field validated at start.

A field ``listen_port: int`` of a component with prefix ``SAIR_WEBHOOK_`` is read from ``SAIR_WEBHOOK_LISTEN_PORT``. The docstring
under a field is its documentation: ``sair settings`` prints all of them and ``docs/configuration.md`` is generated from that.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import msgspec

from sair.errors import SettingsError

__all__ = ["SettingDoc", "describe", "load", "settings"]

T = TypeVar("T")

_PREFIX = "__sair_prefix__"
_TRUE = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One setting as documentation shows it."""

    variable: str
    type: str
    default: str
    text: str


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(prefix: str) -> Any:
    """Class decorator: a frozen, keyword-only dataclass whose fields are read from ``<prefix><FIELD>``."""

    def decorate(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        setattr(made, _PREFIX, prefix)
        return made

    return decorate


def load(cls: type[T], environment: Mapping[str, str]) -> T:
    """Read and validate all settings of a component.

    Args:
        cls: A class made by ``settings``; types ``msgspec`` can read from a string, constraints through ``Annotated[…, msgspec.Meta]``.
        environment: Usually ``os.environ``. Empty strings count as unset.

    Raises:
        SettingsError: Names the variable, the value and what is allowed; also for an unknown variable under the prefix.
    """
    prefix: str = getattr(cls, _PREFIX)
    hints = typing.get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    variables = {prefix + field.name.upper(): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # the decorator made it one
    for variable, field in variables.items():
        text = environment.get(variable, "")
        if text == "":
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise SettingsError(variable, None, f"a value: {_type_name(hints[field.name])}")
            continue
        values[field.name] = _parse(variable, text, hints[field.name])
    for variable in environment:
        if variable.startswith(prefix) and variable not in variables and not _is_nested(variable):
            raise SettingsError(variable, environment[variable], "one of " + ", ".join(sorted(variables)))
    try:
        return cls(**values)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(prefix + "*", str(error), "settings that fit together") from error


def describe(cls: type[Any]) -> Iterator[SettingDoc]:
    """Yield each setting of a component with its documentation, in the order of the class."""
    prefix: str = getattr(cls, _PREFIX)
    hints = typing.get_type_hints(cls, include_extras=True)
    texts = _field_docstrings(cls)
    for field in dataclasses.fields(cls):
        default = "(required)" if field.default is dataclasses.MISSING else str(field.default)
        yield SettingDoc(prefix + field.name.upper(), _type_name(hints[field.name]), default, texts.get(field.name, ""))


def _parse(variable: str, text: str, hint: Any) -> Any:
    if hint is bool:
        if text.lower() not in _TRUE:
            raise SettingsError(variable, text, "one of " + ", ".join(_TRUE))
        return _TRUE[text.lower()]
    value: Any = tuple(part.strip() for part in text.split(",") if part.strip()) if _is_tuple(hint) else text
    try:
        return msgspec.convert(value, type=hint, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(variable, text, f"{_type_name(hint)} ({error})") from error


def _is_tuple(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_tuple(typing.get_args(hint)[0])
    return origin is tuple


def _is_nested(variable: str) -> bool:
    """Kubernetes adds <SERVICE>_SERVICE_HOST and <SERVICE>_PORT… variables of its own for Services in the namespace."""
    return "_SERVICE_" in variable or variable.endswith("_PORT") or "_PORT_" in variable


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        base, *rest = typing.get_args(hint)
        limits = [
            f"{sign} {getattr(meta, name)}"
            for meta in rest
            for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
            if getattr(meta, name, None) is not None
        ]
        return " ".join([_type_name(base), *limits])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return "comma-separated list"
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if args:
        return _type_name(args[0]) + " or unset"
    return {int: "whole number", float: "number", str: "text", bool: "on or off"}.get(
        hint, str(getattr(hint, "__name__", hint))
    )


def _field_docstrings(cls: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    texts = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
        ):
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[statement.target.id] = " ".join(value.value.split())
    return texts
