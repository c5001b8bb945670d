"""The Protocol that every provider fits: answers to questions, no control flow."""

from __future__ import annotations

from typing import Protocol

from builder.core.errors import Problem
from builder.model.base import Value
from builder.model.local import LocalRoute


class Provider(Protocol):
    """One infrastructure. An object with these names; nothing to inherit."""

    @property
    def name(self) -> str:
        """The word for it on the command line and in files."""
        ...

    @property
    def settings_model(self) -> type[Value]:
        """Its settings in a site file."""
        ...

    @property
    def facts_model(self) -> type[Value]:
        """Its part of an OS file."""
        ...

    def preflight(self, settings: Value) -> list[Problem]:
        """Say what this machine or account lacks; an empty list means that a build can start."""
        ...

    def local_route(self, settings: Value, facts: Value) -> LocalRoute:
        """Say how an image for this infrastructure is built on this machine."""
        ...
