"""Clears what deleted files leave in the inode tables of an ext4 file system.

A free inode keeps its old bytes: times, and also the target of a short symbolic link and small extended attributes. A
copy of the blocks in use holds them wherever a file that still exists shares the block.
Layout: https://docs.kernel.org/filesystems/ext4/globals.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from builder.build.filesystem import EXT_MAGIC, ExtFileSystem
from builder.core.errors import BuildError

SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 1024
INCOMPAT_META_BG, INCOMPAT_64BIT = 0x10, 0x80
SMALL_DESCRIPTOR = 32


@dataclass(frozen=True, slots=True)
class Geometry:
    """The part of a superblock that says where inodes are."""

    block_size: int
    inode_size: int
    inodes_per_group: int
    groups: int
    descriptors_at: int
    descriptor_size: int


def parse_superblock(data: bytes) -> Geometry:
    """Read a superblock of 1024 bytes. Raises BuildError for one that is not ext4 or has the layout meta_bg."""
    if data[0x38:0x3A] != EXT_MAGIC:
        raise BuildError("not an ext4 file system")
    (inodes,) = struct.unpack_from("<I", data, 0)
    first_block, log_size = struct.unpack_from("<II", data, 0x14)
    (inodes_per_group,) = struct.unpack_from("<I", data, 0x28)
    (inode_size,) = struct.unpack_from("<H", data, 0x58)
    (incompat,) = struct.unpack_from("<I", data, 0x60)
    if incompat & INCOMPAT_META_BG:
        raise BuildError("the ext4 layout meta_bg is not supported", hint="make the file system with -O ^meta_bg")
    wide = bool(incompat & INCOMPAT_64BIT)
    block_size = 1024 << log_size
    return Geometry(
        block_size=block_size,
        inode_size=inode_size,
        inodes_per_group=inodes_per_group,
        groups=inodes // inodes_per_group,
        descriptors_at=(first_block + 1) * block_size,
        descriptor_size=struct.unpack_from("<H", data, 0xFE)[0] if wide else SMALL_DESCRIPTOR,
    )


def clear_free_inodes(system: ExtFileSystem) -> int:
    """Zero every inode that is free and not zero already; return how many there were. The journal must be clean."""
    descriptor = os.open(system.disk, os.O_RDWR)
    try:
        return _clear(descriptor, system.offset)
    finally:
        os.close(descriptor)


def _clear(disk: int, start: int) -> int:
    shape = parse_superblock(os.pread(disk, SUPERBLOCK_BYTES, start + SUPERBLOCK_AT))
    empty, cleared = bytes(shape.inode_size), 0
    for group in range(shape.groups):
        at = start + shape.descriptors_at + group * shape.descriptor_size
        bitmap_block, table_block = _locate(os.pread(disk, shape.descriptor_size, at))
        bitmap = os.pread(disk, shape.inodes_per_group // 8, start + bitmap_block * shape.block_size)
        table_at = start + table_block * shape.block_size
        table = os.pread(disk, shape.inodes_per_group * shape.inode_size, table_at)
        for number in _used_bytes(table, shape.inode_size):
            if not bitmap[number // 8] >> (number % 8) & 1:
                os.pwrite(disk, empty, table_at + number * shape.inode_size)
                cleared += 1
    return cleared


def _locate(descriptor: bytes) -> tuple[int, int]:
    """Return (block of the inode bitmap, first block of the inode table) of a group."""
    bitmap, table = struct.unpack_from("<II", descriptor, 4)
    if len(descriptor) > SMALL_DESCRIPTOR:
        high_bitmap, high_table = struct.unpack_from("<II", descriptor, 0x24)
        return bitmap | high_bitmap << 32, table | high_table << 32
    return bitmap, table


def _used_bytes(table: bytes, size: int) -> Iterator[int]:
    """Yield the numbers of the inodes of a table that are not all zero; the end of most tables is empty."""
    for number in range(-(-len(table.rstrip(b"\0")) // size)):
        if table[number * size : (number + 1) * size].strip(b"\0"):
            yield number
