"""Strict models over YAML data: every violation becomes a problem with file, line, key path and what to write."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from builder.core.errors import ConfigError, Problem, did_you_mean
from builder.model.base import Value
from builder.target.yamlfile import KeyPath, YamlFile

V = TypeVar("V", bound=Value)
Where = Callable[[KeyPath], str]
KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a map of keys",
    "model_type": "a map of keys",
    "model_attributes_type": "a map of keys",
    "path_type": "text (a path)",
}


def load_model(model: type[V], file: YamlFile, prefix: KeyPath = ()) -> V:
    """Return a file's data as a strict model. `prefix` is the key path of the data in messages.

    Raises ConfigError with all violations.
    """
    # JSON mode is strict about scalars, yet knows that a JSON list is a tuple and a JSON string a path.
    try:
        return model.model_validate_json(json.dumps(file.data))
    except ValidationError as error:
        raise ConfigError(problems_of(error, model, lambda path: _place(file, path, prefix), file.texts)) from error


def _place(file: YamlFile, path: KeyPath, prefix: KeyPath) -> str:
    shown = YamlFile(file.name, file.folder, file.data, {(*prefix, *key): line for key, line in file.lines.items()})
    return shown.where((*prefix, *path))


def problems_of(
    error: ValidationError, model: type[Value], where: Where, texts: Mapping[KeyPath, str] | None = None
) -> list[Problem]:
    """Return one problem for each place that a model refused; `texts` holds plain values as they were written."""
    found: dict[KeyPath, list[Problem]] = {}
    for detail in error.errors(include_url=False):
        path, known = _real_path(model, detail["loc"])
        found.setdefault(path, []).append(_problem(detail, path, known, where, (texts or {}).get(path)))
    return [_one(path, problems, where) for path, problems in found.items()]


def _one(path: KeyPath, problems: list[Problem], where: Where) -> Problem:
    if len(problems) == 1:
        return problems[0]
    # A union reports every branch that did not fit; one sentence says it better.
    hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
    return Problem("the value has none of the types it may have", where(path), "; ".join(hints))


def _problem(detail: ErrorDetails, path: KeyPath, known: Sequence[str], where: Where, text: str | None) -> Problem:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return Problem("unknown key", where(path), did_you_mean(str(path[-1]), known))
    if kind == "missing":
        return Problem(f"the key {str(path[-1])!r} is missing", where(path[:-1]))
    if kind == "literal_error":
        choices = [str(choice) for choice in known] or [str(detail.get("ctx", {}).get("expected", ""))]
        return Problem(f"{_shown(value, text)} is not possible here", where(path), did_you_mean(str(value), choices))
    if kind == "string_type":
        return _not_text(value, text, where(path))
    if kind in KINDS:
        return Problem(f"{_shown(value, text)} is {_kind(value)}, expected {KINDS[kind]}", where(path))
    return Problem(f"{_shown(value, text)}: {_lower(detail['msg'])}", where(path))


def _not_text(value: Any, text: str | None, where: str) -> Problem:
    shown = text if text is not None else str(value)
    if isinstance(value, bool):
        return Problem(f"YAML reads {shown} as {str(value).lower()}, expected text", where, f"quote it: '{shown}'")
    if isinstance(value, int | float):
        return Problem(f"{shown} is a number for YAML, expected text", where, f"quote it: '{shown}'")
    return Problem(f"{_shown(value, text)} is {_kind(value)}, expected text", where)


def _shown(value: Any, text: str | None) -> str:
    if value is None or isinstance(value, Mapping | list | tuple):
        return "the value"
    return repr(value) if isinstance(value, str) else (text if text is not None else json.dumps(value))


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", type(None): "empty"}
    return names.get(type(value), "a map of keys" if isinstance(value, Mapping) else "a list")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _real_path(model: type[Value], loc: tuple[int | str, ...]) -> tuple[KeyPath, list[str]]:
    """Return the key path of a pydantic location, without the names of union branches, and the words known there."""
    path: list[str | int] = []
    here: Any = model
    known: list[str] = []
    for part in loc:
        here = plain_type(here)
        if typing.get_origin(here) in (typing.Union, types.UnionType):
            break
        if isinstance(here, type) and issubclass(here, Value):
            fields = {field.alias or name: field for name, field in here.model_fields.items()}
            known = list(fields)
            path.append(part)
            here = fields[part].annotation if part in fields else None
        elif typing.get_origin(here) in (tuple, list, dict) and len(path) < len(loc):
            path.append(part)
            here = typing.get_args(here)[-1 if typing.get_origin(here) is dict else 0]
        elif here is None or isinstance(part, int):
            path.append(part)
    choices = plain_type(here)
    if typing.get_origin(choices) is typing.Literal:
        known = [str(choice) for choice in typing.get_args(choices)]
    return tuple(path), known


def plain_type(annotation: Any) -> Any:
    """Return a type without Annotated and without `| None`."""
    if typing.get_origin(annotation) is typing.Annotated:
        return plain_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        return plain_type(rest[0]) if len(rest) == 1 else annotation
    return annotation
