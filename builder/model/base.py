"""The base of every value: frozen, strict, no unknown keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A frozen pydantic model that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


def content(default: Any, text: str, **limits: Any) -> Any:
    """Declare an option that changes what is in the image; it counts in the fingerprint."""
    return Field(default, description=text, json_schema_extra={"class": "content"}, **limits)


def placement(default: Any, text: str, **limits: Any) -> Any:
    """Declare an option that says where and with what an image is built; it never counts in the fingerprint."""
    return Field(default, description=text, json_schema_extra={"class": "placement"}, **limits)
