from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.build.filesystem import ExtFileSystem, Partition
from builder.build.inodes import clear_free_inodes, parse_superblock
from builder.build.sanitize import _refuse_unknown, copy_range
from builder.core.errors import BuildError

BLOCK, INODE, PER_GROUP = 1024, 128, 16


@given(data=st.binary(min_size=1, max_size=300), span=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_a_range_is_copied_to_its_place_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, span: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    start, end = min(*span, len(data)), min(max(span), len(data))
    (folder / "in").write_bytes(data)
    (folder / "out").write_bytes(bytes(len(data)))
    with (folder / "in").open("rb") as reader, (folder / "out").open("r+b") as writer:
        copy_range(reader.fileno(), writer.fileno(), start, end)
    expected = bytes(start) + data[start:end] + bytes(len(data) - end)
    assert (folder / "out").read_bytes() == expected


def test_holes_stay_holes(tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.truncate(1 << 36)
        file.seek(1 << 35)
        file.write(b"x")
    (tmp_path / "out").touch()
    os.truncate(tmp_path / "out", 1 << 36)
    with (tmp_path / "in").open("rb") as reader, (tmp_path / "out").open("r+b") as writer:
        copy_range(reader.fileno(), writer.fileno(), 0, 1 << 36)
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20


def test_partitions_that_cannot_be_cleaned_are_all_named() -> None:
    boot = Partition(15, 0, 1, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
    _refuse_unknown(Path("image"), [boot])
    swap = Partition(2, 0, 1, "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F")
    xfs = Partition(3, 0, 1, "0FC63DAF-8483-4772-8E79-3D69D8477DE4")
    with pytest.raises(BuildError) as caught:
        _refuse_unknown(Path("image"), [boot, swap, xfs])
    assert [problem.what.split(" ")[1] for problem in caught.value.problems] == ["2", "3"]


def superblock(incompat: int = 0, descriptor_size: int = 32) -> bytes:
    data = bytearray(1024)
    struct.pack_into("<I", data, 0, PER_GROUP)
    struct.pack_into("<II", data, 0x14, 1, 0)
    struct.pack_into("<I", data, 0x28, PER_GROUP)
    struct.pack_into("<HH", data, 0x38, 0xEF53, 1)
    struct.pack_into("<H", data, 0x58, INODE)
    struct.pack_into("<I", data, 0x60, incompat)
    struct.pack_into("<H", data, 0xFE, descriptor_size)
    return bytes(data)


@given(used=st.integers(0, (1 << PER_GROUP) - 1), filled=st.integers(0, (1 << PER_GROUP) - 1))
def test_free_inodes_are_zeroed_and_used_ones_kept(
    tmp_path_factory: pytest.TempPathFactory, used: int, filled: int
) -> None:
    bitmap_block, table_block, offset = 3, 4, 4096
    image = bytearray(8 * BLOCK)
    image[1024:2048] = superblock()
    struct.pack_into("<III", image, 2 * BLOCK, 0, bitmap_block, table_block)
    struct.pack_into("<H", image, bitmap_block * BLOCK, used)
    for number in range(PER_GROUP):
        if filled >> number & 1:
            at = table_block * BLOCK + number * INODE
            image[at : at + INODE] = bytes([number + 1]) * INODE
    disk = tmp_path_factory.mktemp("inodes") / "disk"
    disk.write_bytes(bytes(offset) + image)
    assert clear_free_inodes(ExtFileSystem(disk, offset)) == (filled & ~used).bit_count()
    table = disk.read_bytes()[offset + table_block * BLOCK :][: PER_GROUP * INODE]
    for number in range(PER_GROUP):
        kept = filled >> number & used >> number & 1
        assert table[number * INODE : (number + 1) * INODE] == bytes([(number + 1) * kept]) * INODE


def test_a_superblock_is_read_or_refused() -> None:
    assert parse_superblock(superblock()).descriptor_size == 32
    assert parse_superblock(superblock(incompat=0x80, descriptor_size=64)).descriptor_size == 64
    with pytest.raises(BuildError, match="meta_bg"):
        parse_superblock(superblock(incompat=0x10))
    with pytest.raises(BuildError, match="not an ext4"):
        parse_superblock(bytes(1024))
