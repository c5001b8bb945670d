"""The lock: every input of a target resolved to an exact identity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from builder.core.digest import sha256_value
from builder.model.base import Value
from builder.model.target import Target

InputKind = Literal["suite", "disk", "iso", "package", "binary", "module", "image", "archive", "tool"]


class Input(Value):
    """One exact input. `digest` is `sha256:<hex>`; a module's digest is over its go.mod and go.sum."""

    name: str
    kind: InputKind
    version: str
    revision: str | None = None
    url: str | None = None
    digest: str | None = None


class Lock(Value):
    """All inputs of a target, sorted by kind and name. `resolved_at` (UTC, ISO 8601) is outside the digest."""

    schema_version: Literal[1] = 1
    target: Target
    flavour: str
    inputs: tuple[Input, ...]
    resolved_at: str = Field(default="")

    @property
    def digest(self) -> str:
        """The hex sha256 of everything but the time of resolution."""
        return sha256_value(self.model_dump(mode="json", exclude={"resolved_at"}))

    def find(self, kind: InputKind, name: str) -> Input | None:
        """Return the input of a kind and name, or None."""
        return next((entry for entry in self.inputs if entry.kind == kind and entry.name == name), None)

    def of(self, kind: InputKind) -> tuple[Input, ...]:
        """Return all inputs of a kind, in order."""
        return tuple(entry for entry in self.inputs if entry.kind == kind)
