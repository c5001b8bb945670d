"""Stage folders: the HCL of one Packer build, its values, its key, written whole or not at all."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import jinja2

from builder.build.accelerator import Accelerator
from builder.core.errors import BuildError
from builder.core.files import write_atomic
from builder.core.paths import share
from builder.core.run import Completed, Spec, run

Stage = Literal["base", "node", "single"]
Lane = Literal["vm", "tree"]
Source = Literal["disk", "iso"]
Runner = Callable[[Sequence[str | Path], Spec], Completed]

PLAYBOOKS: Mapping[Stage, tuple[str, ...]] = {
    "base": ("base.yml",),
    "node": ("node.yml", "sysprep.yml"),
    "single": ("base.yml", "node.yml", "sysprep.yml"),
}
PAYLOAD_PATH = "/run/build-image/payload"
PAYLOAD_DEVICE = "/dev/disk/by-label/PAYLOAD"
PORT_BLOCK = 100
FIRST_PORT, LAST_PORT = 20000, 29999  # below the ports that Linux gives to outgoing connections
# A kernel started by QEMU itself skips the boot loader's slow disk reads; the rest saves what TCG emulates dearly.
KERNEL_ARGUMENTS = "root=LABEL=root ro console=ttyS0 quiet mitigations=off audit=0 apparmor=0"
CONTENT_VALUES = "content.auto.pkrvars.json"
RUN_VALUES = "run.auto.pkrvars.json"
CONTENT_VARS = "content.vars.json"
RUN_VARS = "run.vars.json"


@dataclass(frozen=True, slots=True)
class Content:
    """What decides the content of an image in one stage; equal for every run of a target.

    `source` is `disk` (a bootstrapped disk, a cloud image, a base: an overlay is made on it) or `iso` (an installer
    that `boot_command` starts and `seed_files`, by name on the CD, answer). `ansible_vars` are Ansible's extra vars.
    """

    stage: Stage
    lane: Lane
    disk_size_gib: int
    ansible_vars: Mapping[str, Any]
    source: Source = "disk"
    boot_command: tuple[str, ...] = ()
    seed_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guest:
    """The virtual machine of the vm lane.

    `source` is a path or URL; `checksum` is `sha256:<hex>`, or `none` for a file that was checked before. With
    `kernel` and `initrd` (those inside the disk) the guest starts without its boot loader.
    """

    source: str
    checksum: str
    accelerator: Accelerator
    cpu: str
    cpus: int = 2
    memory_mib: int = 2048
    ssh_timeout_s: int = 900
    kernel: Path | None = None
    initrd: Path | None = None
    qemu_binary: str = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class Tree:
    """The root tree of the tree lane: its ssh server's port on 127.0.0.1."""

    port: int


@dataclass(frozen=True, slots=True)
class StageInputs:
    """Everything that a stage folder is made from.

    `folder` must not exist, or be empty. `payload` is a disk image (vm lane); the tree lane shows it by a mount.
    `secret_names` are environment variables whose values are masked. `plugins` are the Packer plugins to install,
    by name, where Packer brings none (`packer.plugins_for`).
    """

    content: Content
    folder: Path
    target_id: str
    playbooks: Path
    events: Path
    machine: Guest | Tree
    user: str = "builder"
    payload: Path | None = None
    apt_proxy: str = ""
    secret_names: tuple[str, ...] = ()
    plugins: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class StageFolder:
    """A rendered stage folder; names only, so it can be made for a folder that an earlier process rendered."""

    path: Path

    @property
    def private_key(self) -> Path:
        """The private key of this run (OpenSSH format)."""
        return self.path / "key" / "id"

    @property
    def public_key(self) -> Path:
        """The public key of this run."""
        return self.path / "key" / "id.pub"

    @property
    def packer_log(self) -> Path:
        """All that Packer prints."""
        return self.path / "packer.log"

    @property
    def serial_log(self) -> Path:
        """The console of the guest."""
        return self.path / "serial.log"

    @property
    def contents(self) -> Path:
        """What the image says is in it, written by the role `report`."""
        return self.path / "contents.json"

    @property
    def job(self) -> Path:
        """The folder of the shim."""
        return self.path / "job"

    @property
    def output(self) -> Path:
        """The folder that Packer makes for the disk."""
        return self.path / "out"

    @property
    def temporary(self) -> Path:
        """Temporary files, caches and sockets of Packer; gone after the build."""
        return self.path / "tmp"

    @property
    def disk(self) -> Path:
        """The disk that Packer left: an overlay of its source where that is a disk."""
        return self.output / str(json.loads((self.path / RUN_VALUES).read_text())["vm_name"])


@cache
def templates() -> jinja2.Environment:
    """Return the templates of HCL and scripts; an unknown name in one of them is an error."""
    # HCL is not HTML, and what goes in are words from this module.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(share("templates") / "packer"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _hcl(name: str, **words: Any) -> bytes:
    return templates().get_template(f"{name}.pkr.hcl.j2").render(**words).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def content_files(content: Content) -> dict[str, bytes]:
    """Return the files of a stage folder that decide what is in the image, by name; pure, nothing is written.

    They count in the fingerprint, so they never hold a path, a port, a key or a name of a run.
    """
    words = {"stage": content.stage, "source": content.source, "playbooks": PLAYBOOKS[content.stage]}
    values: dict[str, Any] = {}
    if content.lane == "vm":
        values["disk_size_mib"] = content.disk_size_gib * 1024
        if content.source == "iso":
            values |= {"boot_command": list(content.boot_command), "seed_files": dict(content.seed_files)}
    name = "qemu" if content.lane == "vm" else "tree"
    return {
        f"{name}.pkr.hcl": _hcl(name, **words),
        "variables.pkr.hcl": _hcl("variables", **words),
        CONTENT_VALUES: _json(values),
        CONTENT_VARS: _json({**content.ansible_vars, "build_stage": content.stage}),
    }


def run_values(inputs: StageInputs, public_key: str) -> dict[str, Any]:
    """Return the Packer variables of this run: paths, ports, names, the size of the machine."""
    folder = StageFolder(inputs.folder)
    common: dict[str, Any] = {
        "ansible_command": str(folder.path / "ansible"),
        "playbooks": str(inputs.playbooks),
        "content_vars": str(folder.path / CONTENT_VARS),
        "run_vars": str(folder.path / RUN_VARS),
        "events": str(inputs.events),
        "secret_names": list(inputs.secret_names),
        "user": _user(inputs),
        "ssh_private_key": str(folder.private_key),
    }
    machine = inputs.machine
    if isinstance(machine, Tree):
        return common | {"ssh_port": machine.port}
    first = FIRST_PORT + secrets.randbelow((LAST_PORT - FIRST_PORT + 1) // PORT_BLOCK) * PORT_BLOCK
    return common | {
        "vm_name": f"{inputs.target_id}-{inputs.content.stage}.qcow2",
        "output_directory": str(folder.output),
        "source_url": machine.source,
        "source_checksum": machine.checksum,
        "ssh_public_key": public_key.strip(),
        "ssh_timeout": f"{machine.ssh_timeout_s}s",
        "ssh_ports": [first, first + PORT_BLOCK - 1],
        "serial_log": str(folder.serial_log),
        "qemu_binary": machine.qemu_binary,
        "cpus": machine.cpus,
        "memory_mib": machine.memory_mib,
        "accelerator": machine.accelerator.name,
        "accelerator_options": machine.accelerator.qemu_options,
        "cpu_model": machine.cpu,
        "direct_boot": _direct_boot(machine),
        "payload": str(inputs.payload or ""),
    }


def _direct_boot(guest: Guest) -> list[list[str]]:
    if guest.kernel is None or guest.initrd is None:
        return []
    return [["-kernel", str(guest.kernel)], ["-initrd", str(guest.initrd)], ["-append", KERNEL_ARGUMENTS]]


def _user(inputs: StageInputs) -> str:
    return "root" if inputs.content.lane == "tree" else inputs.user


def run_vars(inputs: StageInputs) -> dict[str, Any]:
    """Return the Ansible variables of this run."""
    in_tree = inputs.content.lane == "tree"
    return {
        "ansible_python_interpreter": "/usr/bin/python3",
        "apt_proxy": inputs.apt_proxy,
        "builder_user": _user(inputs),
        "contents_file": str(StageFolder(inputs.folder).contents),
        "node_in_chroot": in_tree,
        "payload_device": PAYLOAD_DEVICE if inputs.payload is not None and not in_tree else "",
        "payload_path": PAYLOAD_PATH,
    }


def render_stage(inputs: StageInputs, runner: Runner = run) -> StageFolder:
    """Write a stage folder, key pair included; it appears under its name only when it is complete.

    Raises BuildError when the folder is in use, or when what was rendered does not read back as HCL.
    """
    target = inputs.folder
    if target.is_dir() and any(target.iterdir()):
        raise BuildError("this folder is not empty", str(target), "name another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    draft.mkdir(mode=0o755)
    try:
        _write_files(inputs, draft, runner)
        # A file could not be replaced by a folder, but an empty folder can.
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return StageFolder(target)


def _write_files(inputs: StageInputs, draft: Path, runner: Runner) -> None:
    public_key = make_key_pair(draft / "key", runner)
    for name, data in content_files(inputs.content).items():
        write_atomic(draft / name, data)
    if inputs.plugins:
        write_atomic(draft / "plugins.pkr.hcl", _hcl("plugins", plugins=inputs.plugins))
    write_atomic(draft / RUN_VALUES, _json(run_values(inputs, public_key)), 0o600)
    write_atomic(draft / RUN_VARS, _json(run_vars(inputs)))
    write_atomic(draft / "ansible", _ansible_command(), 0o755)
    for path in sorted(draft.glob("*.pkr.hcl")):
        check_hcl(path.read_text(), str(inputs.folder / path.name))


def _ansible_command() -> str:
    # -P: the folder that Packer runs in must not be searched for Python modules.
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m builder.build.wrapper "$@"\n'


def make_key_pair(folder: Path, runner: Runner = run) -> str:
    """Make a key pair `id`, `id.pub` that only this build uses; return the public line."""
    folder.mkdir(mode=0o700)
    command: list[str | Path] = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "build-image",
        "-f",
        folder / "id",
    ]
    runner(command, Spec(what="making the key of the build", timeout=60))
    return (folder / "id.pub").read_text()


def check_hcl(text: str, where: str) -> Mapping[str, Any]:
    """Read HCL back; raises BuildError with the parser's words when it is none."""
    import hcl2  # here, because its grammar takes 0.2 s to build

    try:
        return dict(hcl2.load(StringIO(text)))
    except Exception as error:
        raise BuildError(f"a template gave something that is not HCL: {error}", where) from error


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, below the range of outgoing connections."""
    for _ in range(50):
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BuildError(f"no free port between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1")
