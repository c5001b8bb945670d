"""The options as a flat table of paths and types, and how the text of a command line becomes a value of a type."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from builder.core.errors import ConfigError
from builder.model.base import Value
from builder.target.options import LOCATION
from builder.target.strict import plain_type
from builder.target.yamlfile import parse_yaml

# The types whose text is read as YAML, and what must come out of it.
_YAML_KINDS: Mapping[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    tuple: (list,),
    dict: (dict,),
    types.UnionType: (bool, int, list),
    typing.Union: (bool, int, list),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One option: its type, its default as JSON has it, and whether it is `content` or `placement`."""

    annotation: Any
    default: Any = None
    kind: str = ""
    is_location: bool = False

    @property
    def is_map(self) -> bool:
        """Whether the option is a map with free keys."""
        return typing.get_origin(plain_type(self.annotation)) is dict

    @property
    def item(self) -> Field:
        """The option that one key of a map is."""
        return Field(typing.get_args(plain_type(self.annotation))[1], None, self.kind)


def fields_of(models: Mapping[str, type[Value]]) -> dict[tuple[str, ...], Field]:
    """Return {path: option} over models by their first key; the key "" stands for the top itself."""
    found: dict[tuple[str, ...], Field] = {}
    for name, model in models.items():
        _walk(model, (name,) if name else (), found)
    return found


def _walk(model: type[Value], above: tuple[str, ...], found: dict[tuple[str, ...], Field]) -> None:
    for name, field in model.model_fields.items():
        inner = plain_type(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Value):
            _walk(inner, (*above, name), found)
            continue
        extra = field.json_schema_extra
        kind = str(extra.get("class", "")) if isinstance(extra, dict) else ""
        default = None if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))
        found[(*above, name)] = Field(field.annotation, default, kind, LOCATION in field.metadata)


def parse_text(annotation: Any, text: str) -> Any:
    """Return the JSON value that a text means for a type; what does not fit stays text, for the model to refuse.

    Text stays text: `2.1` for a text option is never a number. Lists are written `a,b` or as YAML (`[a, b]`), maps
    as YAML (`{a: b}`), nothing as the empty text where nothing is possible.
    """
    inner = plain_type(annotation)
    if type(None) in typing.get_args(annotation) and text in ("", "null", "none"):
        return None
    origin = typing.get_origin(inner)
    if origin is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    wanted = _YAML_KINDS.get(inner if origin is None else origin)
    found = _yaml(text) if wanted else text
    return found if wanted and type(found) in wanted else text


def _yaml(text: str) -> Any:
    try:
        return parse_yaml(f"value: {text}", "").data["value"]
    except ConfigError:
        return text


def with_folder(field: Field, value: Any, folder: Path) -> Any:
    """Return a value with relative paths made absolute: they are relative to `folder`; URLs are not touched."""
    inner = plain_type(field.annotation)
    if isinstance(value, list) and typing.get_origin(inner) is tuple and typing.get_args(inner)[0] is Path:
        return [_absolute(item, folder) for item in value]
    if inner is Path or (field.is_location and isinstance(value, str) and value and "://" not in value):
        return _absolute(value, folder)
    return value


def _absolute(value: Any, folder: Path) -> Any:
    return str(folder / Path(value).expanduser()) if isinstance(value, str) and value else value
