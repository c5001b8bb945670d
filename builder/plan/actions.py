"""What must be done for a target, and why: pure, so that --dry-run prints exactly what a run does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from builder.model.lock import Lock
from builder.model.plan import Action, Plan


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at caches found for one stage: `there` or not, and why in words."""

    there: bool
    why: str


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """All that the plan depends on. `tree` is None when the base does not start from a bootstrap."""

    lock: Lock
    lane: str
    base_fingerprint: str
    fingerprint: str
    payload: Found
    tree: Found | None
    base: Found | None
    outputs: tuple[str, ...]


def make_plan(inputs: PlanInputs) -> Plan:
    """Return the actions in order: payload, tree, base, node, finish. A base that is there needs no tree."""
    actions = [_action("prepare", _payload_name(inputs.lock), inputs.payload)]
    base_there = inputs.base is not None and inputs.base.there
    if inputs.tree is not None:
        if base_there and inputs.lane == "vm":
            actions.append(Action(stage="tree", name="root tree", action="skip", why="the base is there already"))
        else:
            actions.append(_action("tree", "root tree", inputs.tree))
    if inputs.base is not None:
        actions.append(_action("base", f"base of {inputs.lock.target.os}", inputs.base))
    node = "base and node in one build" if inputs.base is None else "node"
    actions.append(Action(stage="node", name=node, action="run", why=f"{inputs.lock.target.id} was asked for"))
    names = ", ".join(inputs.outputs)
    actions.append(Action(stage="finish", name=names, action="run", why="the disk is cleaned, checked and written"))
    return Plan(
        target=inputs.lock.target,
        lock_digest=inputs.lock.digest,
        base_fingerprint=inputs.base_fingerprint,
        fingerprint=inputs.fingerprint,
        actions=tuple(actions),
    )


def _action(stage: str, name: str, found: Found) -> Action:
    kind: Literal["run", "reuse"] = "reuse" if found.there else "run"
    return Action(stage=stage, name=name, action=kind, why=found.why)


def _payload_name(lock: Lock) -> str:
    images = len(lock.of("image"))
    return f"programs and {images} container images" if images else "programs"
