"""The tree lane: a copy-on-write root tree in namespaces with an sshd, which Packer builds in as if it were a guest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.core.errors import PreflightError, Problem
from builder.core.paths import share
from builder.core.run import which

CONTAINERD = "var/lib/containerd"
# Files that the box shows its own ones at; where the tree has none, an empty one stays behind.
MOUNT_POINTS = ("usr/sbin/policy-rc.d", "etc/resolv.conf")
VM_LANE = "build in a virtual machine instead: --set qemu.lane=vm"
TOOLS = {"unshare": "util-linux", "setpriv": "util-linux", "ssh-keygen": "openssh-client", "chroot": "coreutils"}
# Separators of overlayfs mount options. https://docs.kernel.org/filesystems/overlayfs.html
FORBIDDEN_IN_PATHS = frozenset(",:\\")


@dataclass(frozen=True, slots=True)
class TreeBox:
    """One box. `lowers` are read-only trees, the topmost first; `folder` belongs to the box and holds what it changes.

    sshd answers on 127.0.0.1:`port` for root with `public_key`. `payload` is shown read-only at
    /run/build-image/payload. With `containerd_store`, /var/lib/containerd is a real folder: containerd cannot make
    its snapshots on an overlay.
    """

    lowers: tuple[Path, ...]
    folder: Path
    port: int
    public_key: Path
    payload: Path | None = None
    containerd_store: bool = True

    @property
    def upper(self) -> Path:
        """The folder of everything the build changed."""
        return self.folder / "upper"

    @property
    def store(self) -> Path:
        """The real folder that stands at /var/lib/containerd."""
        return self.folder / "containerd"


@dataclass(frozen=True, slots=True)
class Layers:
    """A finished tree: `upper` over `lowers` (the topmost first) as overlayfs layers, then `binds` on top.

    `binds` maps a path inside the tree to the real folder that replaces it. The container store has to come in this
    way: its snapshots hold whiteouts and opaque marks of their own, which overlayfs would obey instead of showing.
    """

    lowers: tuple[Path, ...]
    upper: Path
    binds: Mapping[str, Path]


def check_treebox(box: TreeBox) -> None:
    """Raise PreflightError with everything that keeps this machine from running the box."""
    problems: list[Problem] = []
    if os.geteuid() != 0:
        problems.append(Problem("the tree lane needs root for its mounts and namespaces", "qemu.lane", VM_LANE))
    for tool, package in TOOLS.items():
        if which(tool) is None:
            problems.append(Problem(f"{tool} is not installed", "qemu.lane", f"apt-get install {package}"))
    paths = [*box.lowers, box.folder]
    problems += [
        Problem(f"{path} has a character that overlayfs mount options cannot hold (, : \\)", "qemu.lane", VM_LANE)
        for path in paths
        if FORBIDDEN_IN_PATHS & set(str(path))
    ]
    wanted = [*box.lowers, box.public_key, *([box.payload] if box.payload else [])]
    problems += [Problem(f"{path} does not exist", "qemu.lane") for path in wanted if not path.exists()]
    if problems:
        raise PreflightError(problems)


def treebox_command(box: TreeBox) -> list[str]:
    """Return the command that runs the box until it is killed; the caller waits until the port answers.

    Every process and mount of the box dies with it, and it dies with the process that starts it. That process must
    start it from its main thread: the kernel sends the signal when the starting *thread* ends (prctl(2)).
    Raises PreflightError like `check_treebox`.
    """
    check_treebox(box)
    box.folder.mkdir(parents=True, exist_ok=True)
    if box.containerd_store:
        box.store.mkdir(mode=0o711, exist_ok=True)
    lives_with_caller = ["setpriv", "--pdeathsig", "KILL", "--"]
    namespaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--"]
    script = ["sh", str(share("templates") / "treebox" / "treebox.sh")]
    arguments = [
        ":".join(str(lower.absolute()) for lower in box.lowers),
        str(box.folder.absolute()),
        str(box.port),
        str(box.public_key.absolute()),
        str(box.payload.absolute()) if box.payload else "",
        str(box.store.absolute()) if box.containerd_store else "",
    ]
    return [*lives_with_caller, *namespaces, *script, *arguments]


def finish_tree(box: TreeBox) -> Layers:
    """Remove what the box itself left in a tree whose box has ended; return the layers that a disk is made from."""
    for name in MOUNT_POINTS:
        path = box.upper / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size == 0:
            path.unlink()
    shutil.rmtree(box.folder / "work", ignore_errors=True)
    used = box.containerd_store and any(box.store.iterdir())
    return Layers(box.lowers, box.upper, {CONTAINERD: box.store} if used else {})
