"""Cleans a finished disk offline: what was deleted in the guest is no longer in the image.

Deleting a file or trimming a file system leaves its bytes in freed blocks, in the ext4 journal, in directories (names)
and inode tables (short links, attributes), and in the clusters of a qcow2. Here a new disk is written that holds only
blocks in use, with a new journal, directories written anew and free inodes zeroed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from builder.build.convert import data_runs, to_raw
from builder.build.filesystem import ExtFileSystem, Partition, is_ext, read_table
from builder.build.inodes import clear_free_inodes
from builder.core.errors import BuildError, Problem
from builder.core.run import Spec, run

MIB = 1 << 20
CHUNK = 4 * MIB
BACKUP_TABLE_BYTES = 33 * 512  # the last sectors of a GPT disk: 128 entries of 128 bytes and the header
BOOT_TYPES = {
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "EFI system partition",
    "21686148-6449-6E6F-744E-656564454649": "BIOS boot partition",
    "EF": "EFI system partition (MBR)",
}
"""Partitions that only hold boot loaders; they are copied whole."""


def sanitize(image: Path, target: Path, keep_unknown: bool = False) -> None:
    """Write a sparse raw disk of the same content without anything that was deleted.

    `image` may be any format of qemu-img, also an overlay on a backing file; it is not changed. Every ext4 partition is
    cleaned, whatever its number; the boot loader's partitions are copied whole; space outside of partitions is
    dropped. A partition that is neither raises BuildError, because its free space cannot be cleaned, unless
    `keep_unknown` says to copy it whole. The target appears whole or not at all.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".sanitize-", dir=target.parent))
    try:
        source, clean = work / "source.raw", work / "clean.raw"
        to_raw(image, source)
        table = read_table(source)
        systems = [part for part in table if is_ext(source, part.start)]
        others = [part for part in table if part not in systems]
        if not keep_unknown:
            _refuse_unknown(image, others)
        _copy(source, clean, table, systems)
        run(["sfdisk", "--quiet", "--verify", clean], Spec(what="checking the partition table"))
        clean.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_unknown(image: Path, others: Iterable[Partition]) -> None:
    problems = [
        Problem(
            f"partition {part.number} (type {part.type}) has no ext4 file system: its free space cannot be cleaned",
            str(image),
            "use an image with an ext4 root file system",
        )
        for part in others
        if part.type not in BOOT_TYPES
    ]
    if problems:
        raise BuildError(problems)


def _copy(source: Path, clean: Path, table: tuple[Partition, ...], systems: list[Partition]) -> None:
    size = source.stat().st_size
    clean.touch()
    for part in systems:
        _copy_system(source, clean, part.start, size)
    first = table[0].start if table else size
    tail = max(table[-1].end if table else 0, size - BACKUP_TABLE_BYTES)
    whole = [(0, first), *((part.start, part.end) for part in table if part not in systems), (tail, size)]
    with source.open("rb") as reader, clean.open("r+b") as writer:
        for start, end in whole:
            copy_range(reader.fileno(), writer.fileno(), start, end)
    for part in systems:
        _finish(ExtFileSystem(clean, part.start))


def _copy_system(source: Path, clean: Path, start: int, size: int) -> None:
    """Copy the blocks in use of one file system; afterwards the clean disk is `size` bytes long again."""
    system = ExtFileSystem(source, start)
    _check(system, "-D")  # replays the journal; -D writes directories anew, without the names of deleted files
    _tune(system, "-O", "^has_journal")
    at = str(start)
    command = ["e2image", "-r", "-a", "-o", at, "-O", at, source.name, clean.name]
    run(command, Spec(cwd=source.parent, what="copying the file system"))
    os.truncate(clean, size)  # e2image cuts the file at the end of the file system


def _finish(system: ExtFileSystem) -> None:
    clear_free_inodes(system)
    _tune(system, "-j")
    _check(system)


def _tune(system: ExtFileSystem, *options: str) -> None:
    run(["tune2fs", *options, system.device], Spec(cwd=system.disk.parent, what="changing the journal"))


def _check(system: ExtFileSystem, *options: str) -> None:
    spec = Spec(cwd=system.disk.parent, check=False)
    done = run(["e2fsck", "-f", "-y", *options, system.device], spec)
    if done.returncode > 1:  # 1: errors were corrected, e2fsck(8)
        raise BuildError("\n".join(["the file system of the image is damaged", *(f"  | {row}" for row in done.tail)]))


def copy_range(reader: int, writer: int, start: int, end: int) -> None:
    """Copy bytes start to end between two open files, to the same place; holes stay holes."""
    for data_start, data_end in data_runs(reader, end, start):
        position = data_start
        while position < min(data_end, end):
            data = os.pread(reader, min(CHUNK, min(data_end, end) - position), position)
            os.pwrite(writer, data, position)
            position += len(data)
