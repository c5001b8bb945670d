"""Partitions of a raw disk and the files of its ext4 partitions: no root, no mount, no loop device."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from builder.core.errors import BuildError
from builder.core.run import Completed, Spec, run

SECTOR = 512
EXT_MAGIC_AT = 1024 + 0x38  # superblock at 1024, s_magic in it: https://docs.kernel.org/filesystems/ext4/super.html
EXT_MAGIC = b"\x53\xef"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a disk; `start` and `size` in bytes, `type` a GPT type GUID (upper case) or an MBR type."""

    number: int
    start: int
    size: int
    type: str
    name: str = ""

    @property
    def end(self) -> int:
        """The first byte behind the partition."""
        return self.start + self.size


def parse_table(text: str) -> tuple[Partition, ...]:
    """Read what `sfdisk --json` prints; partitions in the order of the disk."""
    table = json.loads(text)["partitiontable"]
    sector = int(table.get("sectorsize", SECTOR))
    found = []
    for entry in table.get("partitions", []):
        number = int(re.search(r"(\d+)$", entry["node"]).group(1))  # type: ignore[union-attr]
        start, size = entry["start"] * sector, entry["size"] * sector
        found.append(Partition(number, start, size, str(entry["type"]).upper(), entry.get("name", "")))
    return tuple(sorted(found, key=lambda partition: partition.start))


def read_table(disk: Path) -> tuple[Partition, ...]:
    """Return the partitions of a raw disk. Raises BuildError when it has no partition table."""
    done = run(["sfdisk", "--json", disk], Spec(what=f"reading the partition table of {disk.name}"))
    return parse_table(done.stdout)


def is_ext(disk: Path, start: int) -> bool:
    """Say whether an ext2, ext3 or ext4 file system begins at a byte of a raw disk."""
    with disk.open("rb") as file:
        file.seek(start + EXT_MAGIC_AT)
        return file.read(2) == EXT_MAGIC


@dataclass(frozen=True, slots=True)
class ExtFileSystem:
    """An ext4 file system that begins at byte `offset` of a raw disk; paths in it are absolute."""

    disk: Path
    offset: int

    @property
    def device(self) -> str:
        """The name e2fsprogs opens it by, relative to the folder of the disk."""
        return f"{self.disk.name}?offset={self.offset}"

    def debugfs(self, *requests: str, write: bool = False) -> Completed:
        """Run debugfs requests in order; debugfs itself does not report their failures, so callers look."""
        argv = ["debugfs", *(["-w"] if write else []), "-f", "-", self.device]
        text = "".join(f"{request}\n" for request in requests)
        return run(argv, Spec(cwd=self.disk.absolute().parent, input=text, what=f"debugfs on {self.disk.name}"))

    def resolve(self, path: str) -> str | None:
        """Follow symbolic links of the last name of a path; None when nothing is there."""
        for _ in range(8):
            told = self.debugfs(f'stat "{path}"').stdout
            if "Inode:" not in told:
                return None
            link = re.search(r'link dest: "([^"]*)"', told)
            if link is None:
                return path
            path = link[1] if link[1].startswith("/") else f"{path.rpartition('/')[0]}/{link[1]}"
        return None

    def dump(self, path: str, target: Path) -> None:
        """Copy a file out. Raises BuildError when it is not there."""
        found = self.resolve(path)
        if found is not None:
            self.debugfs(f'dump "{found}" "{target.absolute()}"')
        if found is None or not target.exists():
            raise BuildError(f"{path} is not in the image", str(self.disk))

    def write_file(self, path: str, source: Path) -> None:
        """Put a file in, owned by root, in place of one that is there. Raises BuildError when it did not arrive."""
        remove = [f'rm "{path}"'] if self.resolve(path) else []
        self.debugfs(*remove, f'write "{source.absolute()}" "{path}"', write=True)
        if self.debugfs(f'cat "{path}"').stdout.find(source.read_text()) < 0:
            raise BuildError(f"cannot write {path} into the image", str(self.disk))
