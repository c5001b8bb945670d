"""Which distribution package brings a command, what is missing, and whether there is room on the disks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from builder.core.errors import Problem
from builder.core.run import which

# Names of Debian and Ubuntu, which are what requirements/apt.txt installs.
PACKAGE_OF: Mapping[str, str] = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "e2image": "e2fsprogs",
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "skopeo": "skopeo",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "tune2fs": "e2fsprogs",
    "unshare": "util-linux",
    "xorriso": "xorriso",
}
BUILD_TOOLS = ("qemu-img", "mke2fs", "e2fsck", "e2image", "tune2fs", "ssh", "ssh-keygen")
GUEST_TOOLS = ("qemu-system-x86_64", "xorriso")
TREE_TOOLS = ("unshare", "setpriv")
BOOTSTRAP_TOOLS = ("mmdebstrap", "sfdisk", "mformat", "mmd", "mcopy", "grub-mkimage", "debugfs")


def install_command(packages: Iterable[str]) -> str:
    """Return what to type to get packages on Debian and Ubuntu."""
    return f"sudo apt-get install --no-install-recommends {shlex.join(sorted(set(packages)))}"


def missing_tools(names: Iterable[str], why: str, find: Callable[[str], Path | None] = which) -> list[Problem]:
    """Return one problem for all commands that are not installed, with one line to type; none when all are there."""
    missing = sorted(name for name in set(names) if find(name) is None)
    if not missing:
        return []
    verb = "is" if len(missing) == 1 else "are"
    hint = install_command(PACKAGE_OF.get(name, name) for name in missing)
    return [Problem(f"{', '.join(missing)} {verb} not installed", why, hint)]


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write where a folder is, or will be."""
    stats = os.statvfs(existing(folder))
    return stats.f_bavail * stats.f_frsize


def existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def missing_space(needs: Mapping[Path, int], free: Callable[[Path], int] = free_bytes) -> list[Problem]:
    """Return a problem for every file system that has not the bytes needed in its folders together."""
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(existing(folder).stat().st_dev, []).append(folder)
    problems = []
    for folders in disks.values():
        needed, there = sum(needs[folder] for folder in folders), free(folders[0])
        if there < needed:
            what = f"{_gib(there)} GiB free, {_gib(needed)} GiB needed"
            hint = "free space, or use other disks: --state DIR for runs, $XDG_CACHE_HOME for caches"
            problems.append(Problem(what, ", ".join(str(folder) for folder in sorted(folders)), hint))
    return problems


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
