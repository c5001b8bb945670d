"""What a person asked for on the command line, before anything is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ask:
    """Which image; empty words are looked for in the environment, then in the site file."""

    os: str = ""
    kubernetes: str = ""
    infra: str = ""
    config: Path | None = None
    sets: tuple[str, ...] = ()
    definitions: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """All words of the command line."""

    ask: Ask = Ask()
    state: Path | None = None
    output: Path = Path("out")
    keep_on_failure: bool = False
    json: bool = False
    verbose: bool = False
