"""Packer: find it, check a stage folder with it, build with it under the shim, tell why a build failed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from builder.build.failure import SCARCE_BYTES, failure_cause
from builder.build.job import (
    Companion,
    Dead,
    JobSpec,
    NotStarted,
    end_orphans,
    interrupt_job,
    kill_job,
    start_job,
    state_of,
    wait_job,
)
from builder.build.packerlog import LogFollower, readable
from builder.build.render import Runner, StageFolder
from builder.core.digest import sha256_bytes
from builder.core.errors import BuildError, BuildImageError, Interrupted, PreflightError, Problem
from builder.core.events import append_event
from builder.core.paths import cache_home
from builder.core.run import Spec, run, which
from builder.core.tools import free_bytes

VARIABLE = "BUILD_IMAGE_PACKER"
OLDEST = (1, 9, 4)
FIRST_WITHOUT_PLUGINS = (1, 10, 0)
# Plugins for a Packer that brings none; the same builders' successors, by exact version.
PLUGINS = {"vm": (("ansible", "1.1.2"), ("qemu", "1.1.0")), "tree": (("ansible", "1.1.2"),)}
CLEAN_UP_S = 300.0
# A socket's path ends at 107 bytes: Packer's are <TMPDIR>/packer-plugin<10 digits>, ssh's control socket is longer.
LONGEST_TEMPORARY_PATH = 40


@dataclass(frozen=True, slots=True)
class Packer:
    """A Packer executable."""

    path: Path
    version: tuple[int, int, int]

    @property
    def brings_plugins(self) -> bool:
        """Say whether builders and provisioners are inside the executable."""
        return self.version < FIRST_WITHOUT_PLUGINS

    def plugins_for(self, lane: str) -> tuple[tuple[str, str], ...]:
        """Return the plugins to install for a lane, as (name, version)."""
        return () if self.brings_plugins else PLUGINS[lane]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How one build is run. `env` holds secrets and reaches Packer only; `companions` run beside it."""

    stage: str
    events: Path
    env: Mapping[str, str] = field(default_factory=dict)
    companions: tuple[Companion, ...] = ()
    keep_on_failure: bool = False


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Return the version in the output of `packer version`; None for a program of that name that is another one."""
    found = re.search(r"^Packer v(\d+)\.(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def version_text(version: tuple[int, ...]) -> str:
    """Return a version as people write it."""
    return ".".join(str(number) for number in version)


def find_packer(compiled: Path | None = None, runner: Runner = run) -> Packer | None:
    """Return the Packer to use: $BUILD_IMAGE_PACKER, else one on PATH, else the compiled one; None when none is fit.

    Fit is 1.9.4 or later. Raises PreflightError when the one of $BUILD_IMAGE_PACKER is not.
    """
    named = os.environ.get(VARIABLE)
    if named:
        packer = read_packer(Path(named), runner)
        if packer is None or packer.version < OLDEST:
            what = f"{named} is not Packer {version_text(OLDEST)} or later"
            raise PreflightError(what, f"${VARIABLE}", "unset the variable, and Packer is found or compiled")
        return packer
    for path in (which("packer"), compiled):
        packer = read_packer(path, runner) if path and path.exists() else None
        if packer and packer.version >= OLDEST:
            return packer
    return None


def read_packer(path: Path, runner: Runner = run) -> Packer | None:
    """Ask an executable for its version; None when it is not Packer."""
    try:
        done = runner([path, "version"], Spec(env={"CHECKPOINT_DISABLE": "1"}, timeout=60, check=False))
    except BuildImageError:
        return None
    version = parse_version(done.stdout)
    return Packer(path, version) if version else None


def temporary_folder(folder: StageFolder) -> Path:
    """Return a short path of the stage folder's `tmp`: itself, or a link to it in /tmp."""
    folder.temporary.mkdir(exist_ok=True)
    if len(str(folder.temporary)) <= LONGEST_TEMPORARY_PATH:
        return folder.temporary
    link = _link(folder)
    try:
        link.symlink_to(folder.temporary)
    except FileExistsError:
        ours = link.is_symlink() and link.lstat().st_uid == os.getuid() and link.readlink() == folder.temporary
        if not ours:
            raise BuildError("this path is taken by something else", str(link), "remove it") from None
    return link


def _link(folder: StageFolder) -> Path:
    return Path("/tmp") / f"build-image-{sha256_bytes(str(folder.temporary).encode())[:12]}"  # noqa: S108


def environment(folder: StageFolder, packer: Packer) -> dict[str, str]:
    """Return the variables that keep Packer inside the stage folder; the caller's own configuration has no part."""
    temporary = temporary_folder(folder)
    plugins = folder.temporary / "plugins"
    if not packer.brings_plugins:
        plugins = cache_home() / "packer-plugins" / version_text(packer.version)
    for path in (plugins, folder.temporary / "config", folder.temporary / "cache"):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "CHECKPOINT_DISABLE": "1",
        "PACKER_CACHE_DIR": str(folder.temporary / "cache"),
        "PACKER_CONFIG_DIR": str(folder.temporary / "config"),
        "PACKER_LOG": "1",
        "PACKER_LOG_PATH": str(folder.path / "packer.debug.log"),
        "PACKER_PLUGIN_PATH": str(plugins),
        "TMPDIR": str(temporary),
    }


def validate(folder: StageFolder, packer: Packer, runner: Runner = run) -> None:
    """Check a stage folder with Packer itself, plugins installed before where it brings none. Raises BuildError."""
    steps: list[tuple[str, list[str | Path]]] = [("packer validate", [packer.path, "validate", "."])]
    if not packer.brings_plugins:
        steps.insert(0, ("packer init", [packer.path, "init", "."]))
    try:
        for name, command in steps:
            spec = Spec(cwd=folder.path, env=environment(folder, packer), timeout=600, check=False)
            done = runner(command, spec)
            if done.returncode:
                text = "\n".join([f"{name} refused it", *(f"  | {line}" for line in readable(done.tail))])
                raise BuildError(text, str(folder.path), "this is a bug of a template, or of a definition file")
    finally:
        _remove_temporary(folder)


def build(
    folder: StageFolder, packer: Packer, settings: BuildSettings, on_tick: Callable[[], None] = lambda: None
) -> None:
    """Build a stage, or go on waiting for the build of it that an earlier process started.

    The first SIGINT or SIGTERM to this process lets Packer end its machine, a second one kills it; either way
    Interrupted is raised when all is gone. Raises BuildError with the cause when the build fails. Disk, key and
    temporary files of a failed build are removed unless `keep_on_failure`; logs and HCL always stay.
    """
    with counted_interrupts() as interrupts:
        state = state_of(folder.job)
        if isinstance(state, Dead):
            end_orphans(folder.job)
            shutil.rmtree(folder.output, ignore_errors=True)
        if isinstance(state, Dead | NotStarted):
            _start(folder, packer, settings)
        watch = _Watch(folder, settings, interrupts, on_tick)
        try:
            code = wait_job(folder.job, watch.tick)
        except BuildError:
            clean_up(folder, failed=True, keep=settings.keep_on_failure)
            raise
        interrupted = interrupts.count > 0
        problems = [] if interrupted or code == 0 else watch.full or failure_cause(folder, settings.stage, code)
        clean_up(folder, interrupted or code != 0, settings.keep_on_failure and not interrupted)
    if interrupted:
        raise Interrupted(f"interrupted in stage {settings.stage}", str(folder.path), "its logs are in this folder")
    if problems:
        raise BuildError(problems)


def _start(folder: StageFolder, packer: Packer, settings: BuildSettings) -> None:
    on_error = "abort" if settings.keep_on_failure else "cleanup"
    argv = (str(packer.path), "build", "-color=false", "-timestamp-ui", f"-on-error={on_error}", ".")
    spec = JobSpec(
        argv, str(folder.path), str(folder.packer_log), settings.companions, CLEAN_UP_S, (str(_link(folder)),)
    )
    start_job(folder.job, spec, {**settings.env, **environment(folder, packer)})


class _Watch:
    """What is looked at while a build runs: its log, the user's interrupts, the room on the disk."""

    def __init__(
        self, folder: StageFolder, settings: BuildSettings, interrupts: Interrupts, on_tick: Callable[[], None]
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.interrupts = interrupts
        self.on_tick = on_tick
        self.follower = LogFollower(folder.packer_log, settings.events, settings.stage, folder.job / "log.offset")
        self.acted = 0
        self.full: list[Problem] = []

    def tick(self) -> None:
        """Do what is due now."""
        self.follower.follow()
        if self.interrupts.count > self.acted:
            self.acted = self.interrupts.count
            self._stop()
        free = free_bytes(self.folder.path)
        if free < SCARCE_BYTES and not self.full:
            # A guest whose disk cannot grow gets errors that say nothing of the reason: better to stop before.
            what = f"the disk of this machine is full ({free >> 20} MiB free)"
            self.full = [Problem(what, str(self.folder.path), "free space there, or name another disk by --state DIR")]
            interrupt_job(self.folder.job)
        self.on_tick()

    def _stop(self) -> None:
        first = self.acted == 1
        text = "interrupted: Packer ends its machine (interrupt again to kill it)" if first else "killed"
        append_event(self.settings.events, "note", self.settings.stage, {"text": text})
        if first:
            interrupt_job(self.folder.job)
        else:
            kill_job(self.folder.job)


@dataclass(slots=True)
class Interrupts:
    """How often the user asked to stop."""

    count: int = 0


@contextlib.contextmanager
def counted_interrupts() -> Iterator[Interrupts]:
    """Count SIGINT and SIGTERM instead of dying of them; outside of the main thread there are none to count."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def count(_number: int, _frame: FrameType | None) -> None:
        found.count += 1

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clean_up(folder: StageFolder, failed: bool, keep: bool) -> None:
    """Remove temporary files, and of a failed build the disk as well. The private key goes, unless kept for a look."""
    _remove_temporary(folder)
    if keep and failed:
        return
    folder.private_key.unlink(missing_ok=True)
    if failed:
        shutil.rmtree(folder.output, ignore_errors=True)


def _remove_temporary(folder: StageFolder) -> None:
    shutil.rmtree(folder.temporary, ignore_errors=True)
    link = _link(folder)
    if link.is_symlink() and link.lstat().st_uid == os.getuid():
        link.unlink(missing_ok=True)
