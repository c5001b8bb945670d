from __future__ import annotations

import io
import itertools
import re
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.build.disk import (
    BIOS_LBA,
    ROOT_MIB,
    DiskSpec,
    export_boot_files,
    make_disk,
    mkfs_features,
    partition_script,
    patch_boot,
    patch_core,
)
from builder.build.filesystem import parse_table
from builder.core.errors import BuildError


@given(st.binary(min_size=1024, max_size=4096))
def test_core_points_to_the_sector_behind_itself_and_nothing_else_changes(core: bytes) -> None:
    patched = patch_core(core)
    assert struct.unpack_from("<Q", patched, 500) == (BIOS_LBA + 1,)
    assert (patched[:500], patched[508:]) == (core[:500], core[508:])


@given(st.binary(min_size=512, max_size=512))
def test_boot_code_is_patched_and_leaves_the_partition_table_alone(boot: bytes) -> None:
    patched = patch_boot(boot)
    assert len(patched) == 440
    assert struct.unpack_from("<Q", patched, 0x5C) == (BIOS_LBA,)
    assert patched[0x66:0x68] == b"\x90\x90"
    kept = [(0, 0x5C), (0x64, 0x66), (0x68, 440)]
    assert all(patched[start:end] == boot[start:end] for start, end in kept)


@given(st.integers(min_value=256, max_value=1 << 20))
def test_partitions_fill_the_disk_but_for_the_backup_table(size_mib: int) -> None:
    rows = re.findall(r"start=(\d+), size=(\d+)", partition_script(DiskSpec(size_mib)))
    spans = [(int(start), int(start) + int(size)) for start, size in rows]
    assert spans[0][0] == BIOS_LBA
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    assert spans[-1] == (ROOT_MIB * 2048, (size_mib - 1) * 2048)


def test_a_seed_decides_every_uuid_and_no_seed_none() -> None:
    assert partition_script(DiskSpec(512, seed="a")) == partition_script(DiskSpec(512, seed="a"))
    assert partition_script(DiskSpec(512, seed="a")) != partition_script(DiskSpec(512, seed="b"))
    assert partition_script(DiskSpec(512)) != partition_script(DiskSpec(512))
    ids = re.findall(r"(?:uuid=|label-id: )([0-9a-f-]{36})", partition_script(DiskSpec(512, seed="a")))
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("version", "knows_orphan_file"),
    [
        ("mke2fs 1.46.5 (30-Dec-2021) Using EXT2FS Library version 1.46.5", False),
        ("mke2fs 1.47.0 (5-Feb-2023)", True),
        ("mke2fs 1.47.2-rc1 (1-Jan-2025)", True),
        ("mke2fs 1.48-WIP (1-Jan-2027)", False),
        ("nothing of the kind", False),
    ],
)
def test_features_an_old_mke2fs_does_not_know_are_not_named(version: str, knows_orphan_file: bool) -> None:
    assert ("^orphan_file" in mkfs_features(version)) is knows_orphan_file


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(BuildError, match="no room"):
        make_disk(tmp_path / "tree", tmp_path / "disk.raw", DiskSpec(64))


@pytest.mark.parametrize("folder", ["", "boot/"])
@pytest.mark.parametrize("packed", [False, True])
def test_boot_files_are_found_in_a_tree(tmp_path: Path, folder: str, packed: bool) -> None:
    tree = tmp_path / "root"
    (tree / "boot").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        (tree / "boot" / f"{name}-6.1").write_text(f"{name} of 6.1")
        (tree / f"{folder}{name}").symlink_to(f"{'' if folder else 'boot/'}{name}-6.1")
    if packed:
        with tarfile.open(tmp_path / "root.tar", "w") as archive:
            archive.add(tree, ".")
        tree = tmp_path / "root.tar"
    pair = export_boot_files(tree, tmp_path / "out")
    assert [file.read_text() for file in pair] == ["vmlinuz of 6.1", "initrd.img of 6.1"]


def test_a_tree_without_a_kernel_has_no_boot_files(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("./etc/x"), io.BytesIO())
    for tree in (tmp_path / "root", tmp_path / "root.tar"):
        with pytest.raises(BuildError, match="no kernel in the tree"):
            export_boot_files(tree, tmp_path / "out")


def test_a_partition_table_is_read_in_the_order_of_the_disk() -> None:
    text = """{"partitiontable": {"label": "gpt", "unit": "sectors", "sectorsize": 512, "partitions": [
        {"node": "/x/disk1.raw1", "start": 262144, "size": 2048, "type": "0fc63daf-8483-4772-8e79-3d69d8477de4"},
        {"node": "/x/disk1.raw15", "start": 2048, "size": 4096, "type": "C12A", "name": "ESP"}]}}"""
    table = parse_table(text)
    assert [(part.number, part.start, part.size, part.name) for part in table] == [
        (15, 1 << 20, 2 << 20, "ESP"),
        (1, 128 << 20, 1 << 20, ""),
    ]
    assert table[1].type == "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
