"""What a person asked for on the command line, before anything is looked up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """The words of the command line. Empty strings mean: not given."""

    os: str = ""
    kubernetes: str = ""
    infra: str = ""
    config: Path | None = None
    sets: tuple[str, ...] = ()
    definitions: tuple[Path, ...] = ()
    state: Path | None = None
    output: Path = Path("out")
    keep_on_failure: bool = False
    json: bool = False
    verbose: bool = False
