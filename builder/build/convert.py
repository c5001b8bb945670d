"""Disk images in other formats, what an image file says of itself, and a byte search over raw disks."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.core.errors import BuildError
from builder.core.run import Spec, run


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img says of an image; sizes in bytes, `size` is what the guest sees, `allocated` what the file takes.

    `backing` is the file that the image needs beside itself, or "".
    """

    path: Path
    format: str
    size: int
    allocated: int
    backing: str = ""


def image_info(image: Path) -> ImageInfo:
    """Read the header of a disk image. Raises BuildError when it is none."""
    return parse_info(image, run(["qemu-img", "info", "--output=json", image]).stdout)


def parse_info(image: Path, text: str) -> ImageInfo:
    """Read what `qemu-img info --output=json` prints."""
    told = json.loads(text)
    backing = told.get("full-backing-filename") or told.get("backing-filename") or ""
    return ImageInfo(image, told["format"], told["virtual-size"], told.get("actual-size", 0), backing)


def flatten(image: Path, target: Path, compress: bool) -> ImageInfo:
    """Write a qcow2 that needs no other file, compressed with zstd or not."""
    options = ["-c", "-o", "compression_type=zstd"] if compress else []
    return _convert(image, target, "qcow2", options)


def to_raw(image: Path, target: Path) -> ImageInfo:
    """Write a sparse raw disk."""
    return _convert(image, target, "raw", [])


def to_vmdk(image: Path, target: Path) -> ImageInfo:
    """Write a streamOptimized VMDK, the form that VMware imports."""
    return _convert(image, target, "vmdk", ["-o", "subformat=streamOptimized,adapter_type=lsilogic,compat6"])


def require_alone(info: ImageInfo) -> None:
    """Raise BuildError when an image needs a backing file: it would be worthless on another machine."""
    if info.backing:
        raise BuildError(f"the image still needs {info.backing}", str(info.path), "it must be flattened first")


def _convert(image: Path, target: Path, kind: str, options: Sequence[str]) -> ImageInfo:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    source = image_info(image).format
    try:
        command = ["qemu-img", "convert", "-f", source, "-O", kind, "-t", "writeback", "-W", *options]
        run([*command, image, temporary], Spec(what=f"writing {target.name}", hint="is there space on the disk?"))
        info = image_info(temporary)
        require_alone(info)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return ImageInfo(target, info.format, info.size, info.allocated)


def data_runs(descriptor: int, size: int, end: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts of a file that are not holes, from byte `end` on, that begin before `size`."""
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left: lseek(2)
                return
            raise
        if start >= size:
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
