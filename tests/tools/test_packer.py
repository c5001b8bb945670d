"""Real Packer: rendered folders are valid, builds are interrupted, killed, found again, and failures say why.

The guest of most tests is an empty disk, which never answers ssh: a fault needs no operating system.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.build import packer as packer_module
from builder.build.accelerator import Accelerator
from builder.build.compile import packer_binary
from builder.build.job import Companion, Dead, Finished, Running, state_of
from builder.build.packer import BuildSettings, Packer, build, find_packer, validate
from builder.build.rebuild import write_rebuild
from builder.build.render import (
    Content,
    Guest,
    Lane,
    Source,
    Stage,
    StageFolder,
    StageInputs,
    Tree,
    free_port,
    render_stage,
)
from builder.core.errors import BuildError
from builder.core.paths import share
from builder.core.run import Spec, run, spawn
from builder.resolve.golang import find_go

STAGES: list[tuple[Lane, Stage, Source]] = [
    ("vm", "base", "disk"),
    ("vm", "node", "disk"),
    ("vm", "single", "disk"),
    ("vm", "base", "iso"),
    ("tree", "base", "disk"),
    ("tree", "node", "disk"),
]
TCG = Accelerator("tcg", "for the test")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the ssh server of the test logs root in")


@pytest.fixture(scope="session")
def packer() -> Packer:
    found = find_packer() or find_packer(packer_binary(find_go(), print))
    assert found
    return found


@pytest.fixture
def playbooks(tmp_path: Path) -> Path:
    folder = tmp_path / "playbooks"
    folder.mkdir()
    (folder / "base.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Say what is asked\n      ansible.builtin.command: echo {{ word }}\n      changed_when: true\n"
        "    - name: Fail when asked\n      ansible.builtin.command: sh -c 'echo reason {{ secret }} >&2; exit 3'\n"
        "      when: fails\n"
    )
    return folder


def empty_guest(tmp_path: Path, seconds: int = 600) -> Guest:
    disk = tmp_path / "empty.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"])
    return Guest(str(disk), "none", TCG, "qemu64", 1, 512, seconds)


def guest_folder(tmp_path: Path, guest: Guest, playbooks: Path) -> StageFolder:
    content = Content("base", "vm", 1, {"word": "hello"})
    folder = tmp_path / "run" / "base"
    return render_stage(StageInputs(content, folder, "empty", playbooks, tmp_path / "run" / "events.jsonl", guest))


def settings(folder: StageFolder, **fields: object) -> BuildSettings:
    return replace(BuildSettings("base", folder.path.parent / "events.jsonl"), **fields)  # type: ignore[arg-type]


def steps(folder: StageFolder) -> list[str]:
    path = folder.path.parent / "events.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["data"]["text"] for row in rows if row["kind"] in ("step", "note")]


def processes_of(folder: StageFolder) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder.path) in command or f"BUILD_IMAGE_JOB={folder.job}" in environment:
                found.append(command)
    return found


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def links_to(folder: StageFolder) -> list[Path]:
    links = [path for path in Path("/tmp").glob("build-image-*") if path.is_symlink()]
    return [link for link in links if link.readlink() == folder.temporary]


def gone(folder: StageFolder) -> None:
    """Assert that nothing of a failed build is left but its records."""
    until(lambda: not processes_of(folder), 10)
    assert not folder.output.exists()
    assert not folder.temporary.exists()
    assert not folder.private_key.exists()
    assert not links_to(folder)
    for name in ("qemu.pkr.hcl", "run.auto.pkrvars.json", "packer.log", "packer.debug.log"):
        assert (folder.path / name).exists()


def start_elsewhere(folder: StageFolder, packer: Packer) -> int:
    """Start the build from a process of its own and wait until its guest runs; return that process."""
    code = (
        "import sys; from pathlib import Path\n"
        "from builder.build.packer import *; from builder.build.render import StageFolder\n"
        "from builder.core.errors import BuildImageError\n"
        "folder = StageFolder(Path(sys.argv[1]))\n"
        "settings = BuildSettings('base', folder.path.parent / 'events.jsonl')\n"
        "try:\n    build(folder, find_packer(Path(sys.argv[2])), settings)\n"
        "except BuildImageError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(folder.path), str(packer.path)]
    process = spawn(command, Spec(cwd=Path.cwd(), log=folder.path.parent / "starter.log"))
    until(lambda: "Waiting for SSH to become available..." in steps(folder))
    starters.append(process)
    return process.pid


starters: list = []  # type: ignore[type-arg]


@pytest.mark.parametrize(
    ("lane", "stage", "source"), STAGES, ids=[f"{lane}-{stage}-{src}" for lane, stage, src in STAGES]
)
def test_packer_accepts_what_is_rendered(
    tmp_path: Path, packer: Packer, lane: Lane, stage: Stage, source: Source
) -> None:
    content = Content(stage, lane, 8, {}, source, ("<enter>",), {"preseed.cfg": "d-i"})
    machine = replace(empty_guest(tmp_path), checksum="sha256:" + "0" * 64) if lane == "vm" else Tree(22022)
    if isinstance(machine, Guest) and stage == "node":
        machine = replace(machine, kernel=Path("/vmlinuz"), initrd=Path("/initrd.img"))
    folder = tmp_path / "run with a blank" / stage
    inputs = StageInputs(content, folder, "t", share("playbooks"), tmp_path / "events.jsonl", machine)
    inputs = replace(inputs, payload=tmp_path / "a,b.img" if stage == "node" else None)
    stage_folder = render_stage(inputs)
    validate(stage_folder, packer)
    assert run([packer.path, "fmt", "-check", "-diff", "."], Spec(cwd=folder)).stdout == ""
    run(["shellcheck", write_rebuild(stage_folder, packer)])
    assert not links_to(stage_folder)
    assert not stage_folder.temporary.exists()


def test_packer_refuses_what_is_wrong_and_says_where(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path), playbooks)
    text = (folder.path / "qemu.pkr.hcl").read_text()
    (folder.path / "qemu.pkr.hcl").write_text(text.replace("headless ", "headles "))
    with pytest.raises(BuildError, match='An argument named "headles" is not expected here') as error:
        validate(folder, packer)
    assert "Bundled plugins" not in str(error.value)


def test_a_guest_that_never_answers_ssh(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path, 10), playbooks)
    with pytest.raises(BuildError, match="did not answer ssh within 10s"):
        build(folder, packer, settings(folder))
    gone(folder)


def test_keep_on_failure_keeps_disk_and_key_but_no_machine(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path, 10), playbooks)
    with pytest.raises(BuildError, match="did not answer ssh"):
        build(folder, packer, settings(folder, keep_on_failure=True))
    assert not processes_of(folder)
    assert folder.disk.exists()
    assert folder.private_key.exists()


def test_one_interrupt_ends_machine_and_build_and_exits_with_130(
    tmp_path: Path, packer: Packer, playbooks: Path
) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path), playbooks)
    pid = start_elsewhere(folder, packer)
    os.kill(pid, signal.SIGINT)
    assert starters[-1].wait(60) == 130
    gone(folder)
    assert isinstance(state_of(folder.job), Finished)
    assert "interrupted: Packer ends its machine (interrupt again to kill it)" in steps(folder)
    assert "Cleanly cancelled builds after being interrupted." in folder.packer_log.read_text()


def test_a_second_interrupt_kills(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path), playbooks)
    pid = start_elsewhere(folder, packer)
    state = state_of(folder.job)
    assert isinstance(state, Running)
    leader = json.loads((folder.job / "pid").read_text())["pgid"]
    os.killpg(leader, signal.SIGSTOP)
    os.kill(pid, signal.SIGINT)
    until((folder.job / "interrupted").exists)
    time.sleep(0.5)
    os.kill(pid, signal.SIGINT)
    assert starters[-1].wait(60) == 130
    gone(folder)


def test_a_killed_orchestrator_loses_nothing(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path, 25), playbooks)
    os.kill(start_elsewhere(folder, packer), signal.SIGKILL)
    starters[-1].wait(10)
    with pytest.raises(BuildError, match="did not answer ssh within 25s"):
        build(folder, packer, settings(folder))
    assert steps(folder).count("Starting VM, booting disk image") == 1
    assert folder.packer_log.read_text().count("Starting VM") == 1
    gone(folder)


def test_a_killed_packer(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path), playbooks)
    start_elsewhere(folder, packer)
    os.kill(json.loads((folder.job / "pid").read_text())["pgid"], signal.SIGKILL)
    assert starters[-1].wait(60) == 4
    assert "Packer was killed by signal 9 (SIGKILL)" in (folder.path.parent / "starter.log").read_text()
    gone(folder)


def test_a_killed_shim_is_followed_by_a_new_build(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path, 20), playbooks)
    os.kill(start_elsewhere(folder, packer), signal.SIGKILL)
    state = state_of(folder.job)
    assert isinstance(state, Running)
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: isinstance(state_of(folder.job), Dead))
    with pytest.raises(BuildError, match="did not answer ssh within 20s"):
        build(folder, packer, settings(folder))
    assert folder.packer_log.read_text().count("Starting VM") == 2
    gone(folder)


def test_a_full_disk_stops_the_build(
    tmp_path: Path, packer: Packer, playbooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = guest_folder(tmp_path, empty_guest(tmp_path), playbooks)

    def free_bytes(_: Path) -> int:
        return 5 << 20 if "Waiting for SSH to become available..." in steps(folder) else 1 << 40

    monkeypatch.setattr(packer_module, "free_bytes", free_bytes)
    with pytest.raises(BuildError, match=r"the disk of this machine is full \(5 MiB free\)"):
        build(folder, packer, settings(folder))
    gone(folder)


def test_qemu_that_does_not_start(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && exec qemu-system-x86_64 -version\necho no such CPU >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    folder = guest_folder(tmp_path, replace(empty_guest(tmp_path), qemu_binary=str(broken)), playbooks)
    with pytest.raises(BuildError, match=r"QEMU did not start\n  \| no such CPU"):
        build(folder, packer, settings(folder))
    gone(folder)


def test_a_source_with_another_checksum(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    guest = replace(empty_guest(tmp_path), checksum="sha256:" + "0" * 64)
    folder = guest_folder(tmp_path, guest, playbooks)
    with pytest.raises(BuildError, match="the source disk does not have its sha256"):
        build(folder, packer, settings(folder))
    gone(folder)


def server(folder: StageFolder, port: int) -> Companion:
    """Return an ssh server for root, in the place of the tree."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder.path / "hostkey"])
    options = {
        "ListenAddress": "127.0.0.1",
        "AuthorizedKeysFile": str(folder.public_key),
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    argv = ("/usr/sbin/sshd", "-D", "-e", "-p", str(port), "-h", str(folder.path / "hostkey"), *words)
    return Companion(argv, port, str(folder.path / "sshd.log"))


def tree_folder(tmp_path: Path, playbooks: Path, fails: bool) -> tuple[StageFolder, Companion]:
    content = Content("base", "tree", 8, {"word": "hello", "fails": fails, "secret": "{{ lookup('env', 'TOKEN') }}"})
    port, events = free_port(), tmp_path / "run" / "events.jsonl"
    inputs = StageInputs(
        content, tmp_path / "run" / "base", "t", playbooks, events, Tree(port), secret_names=("TOKEN",)
    )
    folder = render_stage(inputs)
    Path("/run/sshd").mkdir(exist_ok=True)
    return folder, server(folder, port)


@needs_root
def test_a_build_through_ssh_ends_with_its_helper_gone(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder, sshd = tree_folder(tmp_path, playbooks, fails=False)
    validate(folder, packer)
    build(folder, packer, settings(folder, companions=(sshd,)))
    assert "Running base.yml" in steps(folder)
    events = [json.loads(line) for line in (folder.path.parent / "events.jsonl").read_text().splitlines()]
    assert [row["data"]["task"] for row in events if row["kind"] == "task"] == ["Say what is asked", "Fail when asked"]
    assert not processes_of(folder)
    assert not folder.temporary.exists()
    assert not folder.private_key.exists()


@needs_root
def test_a_failed_task_is_named_with_its_reason_and_without_the_secret(
    tmp_path: Path, packer: Packer, playbooks: Path
) -> None:
    folder, sshd = tree_folder(tmp_path, playbooks, fails=True)
    token = "t0ken-of-the-test"
    with pytest.raises(BuildError) as error:
        build(folder, packer, settings(folder, companions=(sshd,), env={"TOKEN": token}))
    text = str(error.value)
    assert "task 'Fail when asked' failed" in text
    assert "reason ***" in text
    files = [path for path in folder.path.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if token.encode() in path.read_bytes()]


@needs_root
def test_the_build_can_be_repeated_by_hand(tmp_path: Path, packer: Packer, playbooks: Path) -> None:
    folder, sshd = tree_folder(tmp_path, playbooks, fails=False)
    script = write_rebuild(folder, packer, sshd.argv)
    done = run([script], Spec(cwd=Path("/"), env={"TOKEN": "t0ken-of-the-test"}, timeout=120))
    work = Path(done.stdout.splitlines()[-1].removeprefix("built: "))
    assert "Say what is asked" in (work / "events.jsonl").read_text()
    assert work.parent == folder.path
    assert (folder.path / "key" / "id").exists(), "what belongs to the recorded build stays as it was"
    assert not processes_of(folder)
