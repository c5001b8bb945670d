"""The plan: what must be done for a target, and why."""

from __future__ import annotations

from typing import Literal

from builder.model.base import Value
from builder.model.target import Target


class Action(Value):
    """One step of a plan: `run` it, or `reuse` what is there; `why` is the reason a user reads."""

    stage: str
    name: str
    action: Literal["run", "reuse", "skip"]
    why: str


class Plan(Value):
    """All actions for one target, in order."""

    schema_version: Literal[1] = 1
    target: Target
    lock_digest: str
    base_fingerprint: str
    fingerprint: str
    actions: tuple[Action, ...]
