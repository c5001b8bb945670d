"""The real `build-image` as a child process of a test: started, watched through its run folder, hurt, and looked at."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGET = "debian-12-v1.34.3-qemu"
WORDS = ("--os", "debian-12", "--k8s", "v1.34.3", "--infra", "qemu")
EXAMPLE = ROOT / "examples/modules.yaml"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class Orchestrator:
    """One state folder and one output folder; `start` may be called again when the process before it has ended."""

    folder: Path
    packer: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def packer_starts(self) -> list[list[str]]:
        """[folder, argument, ...] of every start of `packer build`."""
        log = self.folder / "packer-starts"
        starts = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [start for start in starts if "build" in start]

    @property
    def run_folders(self) -> list[Path]:
        return sorted(self.state.glob(f"runs/*/{TARGET}"))

    @property
    def run_folder(self) -> Path:
        (folder,) = self.run_folders
        return folder

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "build-image.yaml"
        config.write_text(yaml.safe_dump(merge(yaml.safe_load(EXAMPLE.read_text()), self.settings)))
        argv = [sys.executable, "-m", "builder.cli.main", *WORDS, "--config", str(config)]
        argv += ["--state", str(self.state), "--output", str(self.output), *more]
        with (self.folder / "stdout").open("wb") as stdout, (self.folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=os.environ | {"BUILD_IMAGE_PACKER": str(counting_packer(self.packer, self.folder))},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )
        return self.process

    def end(self, timeout: float) -> Ended:
        assert self.process
        code = self.process.wait(timeout)
        return Ended(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())

    def run(self, *more: str, timeout: float = 1500) -> Ended:
        self.start(*more)
        return self.end(timeout)

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: the whole foreground group gets the signal."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGINT)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of all runs, of some kinds."""
        lines = [line for folder in self.run_folders for line in _lines(folder / "events.jsonl")]
        found = [json.loads(line) for line in lines]
        return [event for event in found if not kinds or event["kind"] in kinds]

    def await_task(self, stages: Sequence[str] = ("node",), after: int = 0, timeout: float = 900) -> dict[str, Any]:
        """Wait until Ansible has begun more than `after` tasks in one of the stages: the middle of a build."""

        def begun() -> list[dict[str, Any]]:
            return [event for event in self.events("task_start") if event["stage"] in stages]

        self.until(lambda: len(begun()) > after, timeout, "a task of Ansible")
        return begun()[-1]

    def until(self, ready: Callable[[], object], timeout: float, what: str) -> None:
        assert self.process
        deadline = time.monotonic() + timeout
        while not ready():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {what}\n{self.told()}")
            assert time.monotonic() < deadline, f"no {what} within {timeout:.0f} s\n{self.told()}"
            time.sleep(0.2)

    def told(self) -> str:
        return "\n".join((self.folder / name).read_text()[-4000:] for name in ("stdout", "stderr"))

    def processes(self) -> dict[int, str]:
        """Return {pid: command line} of all processes that belong to this state folder, the orchestrator aside."""
        mark = str(self.folder).encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    own = self.process is not None and int(entry.name) == self.process.pid
                    if command and not own and (mark in command or mark in (entry / "environ").read_bytes()):
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def packer_process(self) -> int:
        """Return the pid of the `packer build` that runs; Packer starts itself once more, the first is the parent."""
        return min(pid for pid, line in self.processes().items() if "packer build " in line)

    def await_machine(self, timeout: float = 900) -> None:
        """Wait until a virtual machine runs."""
        self.until(lambda: any("qemu-system" in line for line in self.processes().values()), timeout, "a machine")

    def assert_nothing_runs(self, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while left := self.processes():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.2)

    def assert_no_temporary_files(self) -> None:
        """A failed or stopped run keeps logs and what was rendered: no disks, no keys, no half-written results."""
        kept = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        disks = [path for path in kept if path.suffix in {".qcow2", ".raw", ".img", ".vmdk"}]
        assert not disks, disks
        assert not [path for path in kept if path.parent.name == "key" and path.suffix != ".pub"], (
            "a private key was left"
        )
        assert not [path for path in kept if path.parent.name == "tmp"]

    def clean_up(self) -> None:
        """End whatever a failed test left, by pid."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for _ in range(20):
            for pid in (left := self.processes()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.2)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree of options over another."""
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        merged[name] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def counting_packer(packer: Path, folder: Path) -> Path:
    """Return a program that notes every start of Packer and then is Packer."""
    wrapper = folder / "packer"
    wrapper.write_text(
        f"#!{sys.executable} -S\n"
        "import json, os, sys\n"
        f"with open({str(folder / 'packer-starts')!r}, 'a') as log:\n"
        "    log.write(json.dumps([os.getcwd(), *sys.argv[1:]]) + chr(10))\n"
        f"os.execv({str(packer)!r}, [{str(packer)!r}, *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    return wrapper


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
