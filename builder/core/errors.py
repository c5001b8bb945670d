"""Errors that say what is wrong, where, and what to do; one exit code per class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, one per class of failure."""

    OK = 0
    USAGE = 2
    PREFLIGHT = 3
    BUILD = 4
    CHECK = 5
    PUBLISH = 6
    ENGINE = 7
    VLCM = 8
    WORK = 10
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `what`, `where` (file and path, option, URL) and `hint` (what to do)."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.hint}" if self.hint else text


class BuildImageError(Exception):
    """Base of every error a user may see. Carries all problems found, never only the first."""

    exit_code = ExitCode.BUILD

    def __init__(self, problems: Iterable[Problem] | Problem | str, where: str = "", hint: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, where, hint)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(BuildImageError):
    """Wrong usage or configuration; nothing was started."""

    exit_code = ExitCode.USAGE


class PreflightError(BuildImageError):
    """The machine or a source cannot do what is asked; nothing was started."""

    exit_code = ExitCode.PREFLIGHT


class BuildError(BuildImageError):
    """A build failed. The run folder is kept."""

    exit_code = ExitCode.BUILD


class CheckError(BuildImageError):
    """The finished disk is not fit to be used."""

    exit_code = ExitCode.CHECK


class Interrupted(BuildImageError):
    """The user stopped the run."""

    exit_code = ExitCode.INTERRUPTED


def joined(errors: Sequence[BuildImageError]) -> BuildImageError:
    """Return one error with the problems of several, each once; of the first class that is not ConfigError."""
    problems = list(dict.fromkeys(problem for error in errors for problem in error.problems))
    kinds = [type(error) for error in errors if not isinstance(error, ConfigError)]
    return (kinds[0] if kinds else ConfigError)(problems)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint such as `did you mean 'debian-12'?`, or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else ""
