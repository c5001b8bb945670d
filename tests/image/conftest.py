"""The image under test, and how its guests are started. A missing image is a failure: nothing here is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pytest

from builder.build import accelerator
from builder.build.packer import find_packer
from builder.build.planning import compiled_packer
from builder.check.machine import DiskFormat, GuestSpec
from builder.model.artifact import Manifest

VARIABLE = "BUILD_IMAGE_TEST_IMAGE"
FORMATS: dict[str, DiskFormat] = {".qcow2": "qcow2", ".raw": "raw", ".vmdk": "vmdk"}
# How long a guest may take, by accelerator: emulation on two busy cores is some twenty times slower than KVM.
BOOT_SECONDS = {"kvm": 180.0, "tcg": 900.0}

Acceleration = Literal["kvm", "tcg"]
SpecMaker = Callable[..., GuestSpec]


@dataclass(frozen=True, slots=True)
class Image:
    """A finished disk; `folder` is where its manifest.json lies."""

    disk: Path
    format: DiskFormat
    folder: Path

    def manifest(self) -> Manifest:
        path = self.folder / "manifest.json"
        if not path.exists():
            pytest.fail(f"{path} is not there: name the image as a build leaves it in {VARIABLE}", pytrace=False)
        return Manifest.model_validate_json(path.read_bytes())


def find_image(named: str) -> Image:
    """Return the one image that is meant: a disk, its folder, or the output folder of a run above that."""
    path = Path(named).absolute()
    disks = [path] if path.is_file() else sorted(path.glob("*.qcow2")) or sorted(path.glob("*/*.qcow2"))
    if not named or len(disks) != 1 or disks[0].suffix not in FORMATS:
        found = f"{len(disks)} images" if named else "nothing"
        pytest.fail(
            f"{VARIABLE}={named!r} names {found}: 'make image' leaves an image in out/; give its folder or its disk",
            pytrace=False,
        )
    return Image(disks[0], FORMATS[disks[0].suffix], disks[0].parent)


@pytest.fixture(scope="session")
def image() -> Image:
    return find_image(os.environ.get(VARIABLE, ""))


@pytest.fixture(scope="session")
def manifest(image: Image) -> Manifest:
    return image.manifest()


@pytest.fixture(scope="session")
def acceleration() -> Acceleration:
    asked = os.environ.get("BUILD_IMAGE_QEMU__ACCELERATOR", "auto")
    return accelerator.choose(cast(Literal["auto", "kvm", "tcg"], asked)).name


@pytest.fixture(scope="session")
def make_spec(image: Image, acceleration: Acceleration) -> SpecMaker:
    """Return a function that makes the spec of a guest without a network; its keywords are fields of GuestSpec."""

    def make(**fields: object) -> GuestSpec:
        base = {
            "disk": image.disk,
            "format": image.format,
            "accelerator": acceleration,
            "restricted": True,
            "timeout_s": BOOT_SECONDS[acceleration],
        }
        return GuestSpec(**(base | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def packer() -> Path:
    """Return the Packer that a build uses on this machine."""
    found = find_packer(compiled_packer())
    if found is None:
        pytest.fail("no Packer on PATH, and none was compiled by an earlier build", pytrace=False)
    return found.path
