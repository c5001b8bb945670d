"""From a selection to its lock: every input exact, all problems of all parts in one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from builder.core.errors import BuildImageError, ConfigError, PreflightError, Problem
from builder.model.lock import Input, Lock
from builder.resolve.base import base_inputs
from builder.resolve.components import PARTS
from builder.resolve.kubernetes import flavour_of, kubernetes_inputs
from builder.resolve.request import ResolveRequest


def resolve_lock(request: ResolveRequest) -> Lock:
    """Return the lock of a selection, its inputs sorted by kind and name.

    Raises one error with the problems of all parts: ConfigError when all are wrong options, else PreflightError.
    """
    parts: tuple[Callable[[ResolveRequest], Sequence[Input]], ...] = (
        base_inputs,
        kubernetes_inputs,
        *PARTS,
        request.images,
    )
    inputs: list[Input] = []
    failed: list[BuildImageError] = []
    for part in parts:
        try:
            inputs += part(request)
        except (ConfigError, PreflightError) as error:
            failed.append(error)
    if failed:
        raise _one_error(failed)
    ordered = sorted(inputs, key=lambda entry: (entry.kind, entry.name, entry.version))
    return Lock(
        target=request.target,
        flavour=flavour_of(request),
        inputs=tuple(ordered),
        resolved_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _one_error(errors: Sequence[BuildImageError]) -> BuildImageError:
    # Two parts that need the same server say the same; once is enough.
    problems: list[Problem] = list(dict.fromkeys(problem for error in errors for problem in error.problems))
    if all(isinstance(error, ConfigError) for error in errors):
        return ConfigError(problems)
    return PreflightError(problems)
