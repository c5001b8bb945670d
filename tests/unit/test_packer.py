"""Finding Packer, keeping it inside the stage folder, cleaning up after it; jobs as far as files tell."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.build import packer as module
from builder.build.job import Dead, Finished, NotStarted, Running, interrupt_job, state_of, wait_job
from builder.build.packer import (
    Packer,
    clean_up,
    counted_interrupts,
    environment,
    find_packer,
    parse_version,
    temporary_folder,
    validate,
)
from builder.build.render import StageFolder
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Completed, Spec

BUNDLED = Packer(Path("/usr/bin/packer"), (1, 9, 4))
BARE = Packer(Path("/usr/bin/packer"), (1, 14, 2))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Packer v1.9.4\n", (1, 9, 4)),
        ("Packer v1.14.2\n\nYour version of Packer is out of date!\n", (1, 14, 2)),
        ("Packer v1.11.0-dev\n", (1, 11, 0)),
        ("1.9.4\n", None),
        ("", None),
    ],
)
def test_versions(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


class Machine:
    """Stands for executables: {path: what `packer version` prints}."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        if str(argv[0]) not in self.answers:
            raise PreflightError("cannot start")
        return Completed(tuple(map(str, argv)), 0, self.answers[str(argv[0])], (), 0.1)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {name: tmp_path / name / "packer" for name in ("path", "compiled", "named")}
    for path in found.values():
        path.parent.mkdir()
        path.touch()
    monkeypatch.setattr(module, "which", lambda _: found["path"])
    monkeypatch.delenv("BUILD_IMAGE_PACKER", raising=False)
    return found


def test_the_packer_on_path_is_used(places: dict[str, Path]) -> None:
    machine = Machine({str(places["path"]): "Packer v1.11.0\n", str(places["compiled"]): "Packer v1.9.4\n"})
    assert find_packer(places["compiled"], machine) == Packer(places["path"], (1, 11, 0))


@pytest.mark.parametrize("text", ["Packer v1.6.6\n", "/usr/share/cracklib/pw_dict: 0 words\n"])
def test_one_that_is_too_old_or_another_program_is_passed_over(places: dict[str, Path], text: str) -> None:
    machine = Machine({str(places["path"]): text, str(places["compiled"]): "Packer v1.9.4\n"})
    assert find_packer(places["compiled"], machine) == Packer(places["compiled"], (1, 9, 4))
    assert find_packer(None, machine) is None


def test_a_named_packer_goes_first_and_has_to_be_fit(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILD_IMAGE_PACKER", str(places["named"]))
    answers = {str(places["path"]): "Packer v1.11.0\n", str(places["named"]): "Packer v1.9.5\n"}
    assert find_packer(None, Machine(answers)) == Packer(places["named"], (1, 9, 5))
    with pytest.raises(PreflightError, match=r"is not Packer 1\.9\.4 or later"):
        find_packer(None, Machine(answers | {str(places["named"]): "Packer v1.8.0\n"}))
    with pytest.raises(PreflightError, match=r"\$BUILD_IMAGE_PACKER"):
        find_packer(None, Machine({}))


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    found = StageFolder(tmp_path / "a-state-folder-with-a-name-that-is-rather-long" / "node")
    (found.path / "key").mkdir(parents=True)
    found.private_key.write_text("PRIVATE")
    found.public_key.write_text("PUBLIC")
    found.output.mkdir()
    return found


def test_packer_is_kept_inside_the_stage_folder(folder: StageFolder) -> None:
    variables = environment(folder, BUNDLED)
    try:
        for name in ("PACKER_CACHE_DIR", "PACKER_CONFIG_DIR", "PACKER_PLUGIN_PATH", "PACKER_LOG_PATH"):
            assert Path(variables[name]).is_relative_to(folder.path), name
        assert not list(Path(variables["PACKER_PLUGIN_PATH"]).iterdir())
        assert variables["CHECKPOINT_DISABLE"] == "1"
        # A socket below it has to fit into 107 bytes.
        assert len(variables["TMPDIR"]) <= 40
        assert Path(variables["TMPDIR"]).resolve() == folder.temporary
    finally:
        clean_up(folder, failed=False, keep=False)
    assert not Path(variables["TMPDIR"]).is_symlink()


def test_plugins_are_kept_for_a_packer_that_brings_none(
    folder: StageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = environment(folder, BARE)["PACKER_PLUGIN_PATH"]
    clean_up(folder, failed=False, keep=False)
    assert path == str(tmp_path / "cache/build-image/packer-plugins/1.14.2")


def test_a_path_in_tmp_that_is_not_ours_is_refused(folder: StageFolder) -> None:
    link = temporary_folder(folder)
    link.unlink()
    link.symlink_to("/etc")
    try:
        with pytest.raises(BuildError, match="taken by something else"):
            temporary_folder(folder)
    finally:
        link.unlink()


@pytest.mark.parametrize(
    ("failed", "keep", "output", "key"),
    [(False, False, True, False), (False, True, True, False), (True, False, False, False), (True, True, True, True)],
)
def test_what_stays_after_a_build(folder: StageFolder, failed: bool, keep: bool, output: bool, key: bool) -> None:
    temporary_folder(folder)
    clean_up(folder, failed, keep)
    assert not folder.temporary.exists()
    assert folder.output.exists() is output
    assert folder.private_key.exists() is key
    assert folder.public_key.exists(), "the check for leaks looks for it"


def test_a_refusal_of_packer_is_shown_without_noise(folder: StageFolder) -> None:
    said = ("Warning: Bundled plugins used", "noise", "Then run 'packer init' to manage installation of the plugins")

    def refuse(argv: Sequence[str | Path], spec: Spec) -> Completed:
        return Completed(tuple(map(str, argv)), 1, "", (*said, "Error: Unsupported argument"), 0.1)

    with pytest.raises(BuildError) as error:
        validate(folder, BUNDLED, refuse)
    clean_up(folder, failed=False, keep=False)
    assert error.value.problems[0].what == "packer validate refused it\n  | Error: Unsupported argument"


@pytest.mark.parametrize(("packer", "commands"), [(BUNDLED, ["validate"]), (BARE, ["init", "validate"])])
def test_plugins_are_installed_before_the_check(
    folder: StageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: Packer, commands: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[str] = []

    def accept(argv: Sequence[str | Path], spec: Spec) -> Completed:
        asked.append(str(argv[1]))
        return Completed(tuple(map(str, argv)), 0, "", (), 0.1)

    validate(folder, packer, accept)
    clean_up(folder, failed=False, keep=False)
    assert asked == commands


def test_interrupts_are_counted_and_then_mean_again_what_they_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_interrupts() as interrupts:
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 15)
        assert interrupts.count == 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), 2)


def job_files(job: Path, **files: str) -> Path:
    job.mkdir(exist_ok=True)
    for name, text in files.items():
        (job / name).write_text(text)
    return job


def test_states_of_a_job_by_its_files(tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert state_of(job) == NotStarted()
    job_files(job, pid=json.dumps({"pid": 1, "pgid": 0}), lock="")
    assert state_of(job) == Dead()
    with (job / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert state_of(job) == Running(1)
    job_files(job, rc="137\n")
    assert state_of(job) == Finished(137)
    assert wait_job(job) == 137


def test_a_finished_job_gets_no_signal(tmp_path: Path) -> None:
    job = job_files(tmp_path / "job", pid=json.dumps({"pid": 1, "pgid": 0}), rc="0\n")
    interrupt_job(job)
    assert not (job / "interrupted").exists()
