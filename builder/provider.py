"""The Protocol that every provider fits: answers to questions, no control flow."""

from __future__ import annotations

from typing import Protocol

from builder.core.errors import Problem
from builder.model.base import Value


class Provider(Protocol):
    """One infrastructure. A module or an object with these names; nothing to inherit."""

    name: str
    settings_model: type[Value]
    facts_model: type[Value]

    def preflight(self, settings: Value) -> list[Problem]:
        """Say what this machine or account lacks; an empty list means that a build can start."""
        ...
