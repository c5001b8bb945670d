"""One line of events.jsonl: what happened in a run, for people, CI and programs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from builder.model.base import Value

EventKind = Literal[
    "run_start", "run_end", "stage_start", "stage_end", "step", "task_start", "task", "stats", "note", "problem"
]


class Event(Value):
    """`time` is seconds since the epoch; `data` holds the fields that its kind has (docs/reference/events.md).

    run_start {target, run_id}; run_end {status, seconds}; stage_start {why}; stage_end {status, seconds};
    step {text}; task_start {task, role}; task {task, role, host, result, seconds, path, message?, stderr?};
    stats {ok, changed, failed, unreachable, skipped}; note {text}; problem {what, where, hint}.
    """

    time: float
    kind: EventKind
    stage: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
