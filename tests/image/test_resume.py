"""What happens to a real build that is killed, interrupted, or fails: nothing is lost that counts, nothing is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.core.digest import sha256_file
from tests.image.orchestrator import TARGET, Orchestrator

Maker = Callable[..., Orchestrator]
TREE: Mapping[str, Any] = {"qemu": {"lane": "tree"}}


@pytest.fixture
def make(packer: Path, tmp_path: Path) -> Iterator[Maker]:
    """Return a function that makes an orchestrator with its own state; what a test leaves running is ended."""
    made: list[Orchestrator] = []

    def build(settings: Mapping[str, Any], folder: Path = tmp_path / "o") -> Orchestrator:
        made.append(Orchestrator(folder, packer, settings))
        return made[-1]

    yield build
    for orchestrator in made:
        orchestrator.clean_up()


@pytest.fixture
def dead_disk(tmp_path: Path) -> Mapping[str, Any]:
    """Return options for a VM whose disk holds no system: it never answers."""
    disk = tmp_path / "nothing.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1G"], check=True)
    return {
        "base": {"source": "image", "url": str(disk), "sha256": sha256_file(disk)},
        "qemu": {"lane": "vm", "memory_mib": 512},
    }


@pytest.mark.root
def test_a_killed_orchestrator_finds_its_build_again(make: Maker) -> None:
    orchestrator = make(TREE)
    process = orchestrator.start()
    orchestrator.await_task(after=2)
    process.kill()
    process.wait()
    packer = orchestrator.packer_process()
    done = orchestrator.run()
    assert done.code == 0, done.stderr
    assert not Path(f"/proc/{packer}").exists()
    folders = [start[0] for start in orchestrator.packer_starts]
    assert len(folders) == len(set(folders)), f"a stage was built twice: {folders}"
    assert [Path(folder).name for folder in folders][-1:] == ["node"]
    assert len(orchestrator.run_folders) == 1
    assert [path.name for path in orchestrator.output.rglob("*.qcow2")] == [f"{TARGET}.qcow2"]
    # The events of both processes are one story.
    assert len(orchestrator.events("run_end")) == 1
    orchestrator.assert_nothing_runs()


@pytest.mark.root
def test_a_build_that_is_watched_is_left_to_its_watcher(make: Maker) -> None:
    first, second = make(TREE), make(TREE)
    first.start()
    first.await_task()
    second.start()
    second.until(lambda: len(second.run_folders) == 2, 300, "a run of its own")
    for orchestrator in (first, second):
        orchestrator.interrupt()
        assert orchestrator.end(120).code == 130
    first.assert_nothing_runs()


@pytest.mark.root
def test_the_first_interrupt_ends_everything_cleanly(make: Maker) -> None:
    orchestrator = make(TREE)
    orchestrator.start()
    orchestrator.await_task(after=1)
    orchestrator.interrupt()
    done = orchestrator.end(120)
    assert done.code == 130, done.stderr
    orchestrator.assert_nothing_runs()
    orchestrator.assert_no_temporary_files()
    assert (orchestrator.run_folder / "node" / "packer.log").exists()
    assert [event["data"]["status"] for event in orchestrator.events("run_end")] == ["interrupted"]
    assert not list(orchestrator.output.rglob("*.qcow2"))


def test_an_interrupted_machine_is_gone(make: Maker, dead_disk: Mapping[str, Any]) -> None:
    orchestrator = make(dead_disk)
    orchestrator.start()
    orchestrator.await_machine()
    orchestrator.interrupt()
    done = orchestrator.end(120)
    assert done.code == 130, done.stderr
    orchestrator.assert_nothing_runs()
    orchestrator.assert_no_temporary_files()


@pytest.mark.root
def test_a_failed_role_is_named_with_its_cause(make: Maker) -> None:
    orchestrator = make({**TREE, "base": {"packages": ["no-such-package-at-all"]}})
    done = orchestrator.run()
    assert done.code == 4, done.stderr
    (failed,) = [event["data"] for event in orchestrator.events("task") if event["data"]["result"] == "failed"]
    assert failed["task"] in done.stderr
    assert "no-such-package-at-all" in done.stderr
    assert str(orchestrator.run_folder) in done.stderr
    assert "->" in done.stderr, "a hint says what to do"
    assert (orchestrator.run_folder / "base" / "packer.log").exists()
    assert [event["data"]["status"] for event in orchestrator.events("run_end")] == ["failed"]
    orchestrator.assert_nothing_runs()
    orchestrator.assert_no_temporary_files()


def test_a_machine_that_never_answers_ends_after_its_time(make: Maker, dead_disk: Mapping[str, Any]) -> None:
    orchestrator = make({**dead_disk, "qemu": {**dead_disk["qemu"], "ssh_timeout_s": 15}})
    done = orchestrator.run()
    assert done.code == 4, done.stderr
    assert "ssh" in done.stderr.lower()
    assert str(orchestrator.run_folder) in done.stderr
    assert "bootable" in (orchestrator.run_folder / "base" / "serial.log").read_text(errors="replace").lower()
    orchestrator.assert_nothing_runs()
    orchestrator.assert_no_temporary_files()


def test_a_killed_packer_is_a_failed_build(make: Maker, dead_disk: Mapping[str, Any]) -> None:
    orchestrator = make(dead_disk)
    orchestrator.start()
    orchestrator.await_machine()
    os.kill(orchestrator.packer_process(), signal.SIGKILL)
    done = orchestrator.end(120)
    assert done.code == 4, done.stderr
    assert "killed" in done.stderr.lower() or "signal" in done.stderr.lower()
    orchestrator.assert_nothing_runs()
    orchestrator.assert_no_temporary_files()


@pytest.mark.root
def test_a_disk_that_fills_up_is_a_failed_build(make: Maker, tmp_path: Path) -> None:
    """The state folder lies on a file system that gets no more space in the middle of the build."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16g,mode=755", "build-image-test", str(place)], check=True)
    try:
        orchestrator = make(TREE, place / "o")
        orchestrator.start()
        orchestrator.await_task(after=1)
        status = os.statvfs(place)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + (1 << 20)}", str(place)], check=True)
        done = orchestrator.end(600)
        assert done.code == 4, done.stderr
        assert "space" in done.stderr.lower()
        orchestrator.assert_nothing_runs()
        orchestrator.assert_no_temporary_files()
        assert orchestrator.run_folder.exists()
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_the_source_image_has_to_be_the_one_that_was_named(make: Maker, dead_disk: Mapping[str, Any]) -> None:
    wrong = hashlib.sha256(b"another").hexdigest()
    orchestrator = make({**dead_disk, "base": {**dead_disk["base"], "sha256": wrong}})
    done = orchestrator.run(timeout=300)
    assert done.code in {2, 3}, done.stderr
    assert wrong in done.stderr
    assert orchestrator.packer_starts == []
