"""Compile pinned Go modules into static binaries, once per machine: the results are cached by what decides them."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.core import paths
from builder.core.cache import ensure_entry
from builder.core.digest import sha256_file, sha256_value
from builder.core.errors import BuildError
from builder.core.files import write_json
from builder.core.run import Spec, run
from builder.resolve.golang import Go, Runner
from builder.resolve.gomodule import PROXY_HINT, ModulePin, component_of, expand, go_environment, pinned

KEY_VERSION = 1
COMPILE_SECONDS = 3 * 3600
NOTE_SECONDS = 20
LINKER_FLAGS = ("-s", "-w")
RECORD = "build.json"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Compilation:
    """What is compiled: some commands of a pin, for one architecture, by one Go toolchain."""

    pin: ModulePin
    commands: tuple[str, ...]
    arch: str
    go: Go

    @property
    def ldflags(self) -> str:
        """The linker flags: no debug data, and the version stamps that upstream's own build would set."""
        stamps = (expand(flag, self.pin.version) for flag in component_of(self.pin.component).ldflags)
        return " ".join([*LINKER_FLAGS, *stamps])

    @property
    def key(self) -> str:
        """The hex sha256 over everything that decides the bytes of the binaries."""
        packages = component_of(self.pin.component).commands
        return sha256_value(
            {
                "version": KEY_VERSION,
                "module": self.pin.digest,
                "packages": {name: packages[name] for name in sorted(self.commands)},
                "ldflags": self.ldflags,
                "environment": go_environment(self.arch),
                "go": self.go.version,
            }
        )


def compilation(pin: ModulePin, go: Go, arch: str = "amd64", commands: Sequence[str] = ()) -> Compilation:
    """Return what is compiled for `commands` of a pin; all that its component has when none is named."""
    known = component_of(pin.component).commands
    unknown = [name for name in commands if name not in known]
    if unknown:
        raise ValueError(f"{pin.component} has no command {', '.join(unknown)}")
    return Compilation(pin, tuple(sorted(set(commands) or set(known))), arch, go)


def find_compiled(wanted: Compilation, cache: Path | None = None) -> Path | None:
    """Return the cached folder with exactly these binaries, or None; starts nothing."""
    place = _place(wanted, cache)
    return place if (place / RECORD).is_file() else None


def compile_module(
    wanted: Compilation, note: Note, *, log: Path | None = None, cache: Path | None = None, runner: Runner = run
) -> Path:
    """Return a folder with one static binary per command, named as modules.yaml names it; compiling when needed.

    All commands go to one `go build`, so that what they share is compiled once. Every module is checked against
    the go.sum of the pin. Two processes that need the same binaries make them once. Raises BuildError with the
    compiler's last lines.
    """

    def make(work: Path) -> None:
        note(f"compiling {wanted.pin.component} {wanted.pin.version}: {', '.join(wanted.commands)}")
        _build(wanted, work, _Progress(wanted.pin.component, note, log), runner)

    return ensure_entry(_place(wanted, cache), RECORD, make)


def packer_binary(go: Go, note: Note, log: Path | None = None) -> Path:
    """Return the path of the pinned Packer, compiled for this machine when it is not yet cached."""
    pin = pinned("packer")
    if pin is None:
        raise BuildError("the pin of Packer is missing", str(paths.share("tools")))
    return compile_module(compilation(pin, go, host_arch()), note, log=log) / "packer"


def host_arch() -> str:
    """Return the architecture of this machine in Go's words: amd64, arm64."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def executable_name(package: str) -> str:
    """Return the file name that `go build` gives to a package: its last path element that is no major version."""
    parts = package.split("/")
    return parts[-2] if len(parts) > 1 and re.fullmatch(r"v[2-9]\d*|v1\d+", parts[-1]) else parts[-1]


class _Progress:
    """Turns the packages that `go build -v` names into a sign of life every now and then."""

    def __init__(self, component: str, note: Note, log: Path | None) -> None:
        self.component, self.note, self.log = component, note, log
        self.count = 0
        self.last = time.monotonic()

    def line(self, text: str) -> None:
        """Take one line of output; downloads and messages count as well."""
        self.count += 1
        if time.monotonic() - self.last >= NOTE_SECONDS:
            self.last = time.monotonic()
            self.note(f"compiling {self.component}: {self.count} packages so far, now {text}")


def _place(wanted: Compilation, cache: Path | None) -> Path:
    return (cache or paths.cache_home() / "modules") / wanted.key


def _build(wanted: Compilation, work: Path, progress: _Progress, runner: Runner) -> None:
    packages = {name: component_of(wanted.pin.component).commands[name] for name in wanted.commands}
    raw = work / "go"
    raw.mkdir()
    argv: list[str | Path] = [wanted.go.path, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    argv += ["-ldflags", wanted.ldflags, "-o", f"{raw}/", *packages.values()]
    what = f"compilation of {wanted.pin.component} {wanted.pin.version}"
    runner(
        argv,
        Spec(
            cwd=wanted.pin.folder,
            env=go_environment(wanted.arch),
            timeout=COMPILE_SECONDS,
            log=progress.log,
            on_line=progress.line,
            what=what,
            hint=PROXY_HINT,
        ),
    )
    record: dict[str, str] = {}
    for name, package in packages.items():
        made = raw / executable_name(package)
        if not made.is_file():
            raise BuildError(f"{what} left no {made.name}", package)
        made.rename(work / name)
        record[name] = sha256_file(work / name)
    raw.rmdir()
    pin = {"component": wanted.pin.component, "version": wanted.pin.version, "module": wanted.pin.digest}
    write_json(work / RECORD, pin | {"go": wanted.go.version, "arch": wanted.arch, "files": record})


def recorded_files(folder: Path) -> dict[str, str]:
    """Return {command: sha256} of a folder that `compile_module` returned."""
    files: dict[str, str] = json.loads((folder / RECORD).read_text())["files"]
    return files
