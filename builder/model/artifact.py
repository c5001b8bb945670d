"""What a build leaves behind, and the manifest that describes it."""

from __future__ import annotations

from typing import Literal

from builder.model.base import Value
from builder.model.lock import Lock
from builder.model.target import Target


class Member(Value):
    """One file of an artifact; `size` in bytes, `sha256` in hex."""

    name: str
    format: str
    size: int
    sha256: str


class Artifact(Value):
    """What a build leaves. `location` is a folder or a cloud region, `id` a file name or a cloud id."""

    schema_version: Literal[1] = 1
    kind: str
    stage: Literal["base", "node"]
    infra: str
    target_id: str
    run_id: str
    fingerprint: str
    location: str
    id: str
    size: int
    sha256: str | None = None
    members: tuple[Member, ...] = ()
    synthetic: bool = False


class Package(Value):
    """One installed distribution package of the image."""

    name: str
    version: str
    arch: str


class ContainerImage(Value):
    """One pre-loaded container image: its full name and `sha256:<hex>` manifest digest."""

    name: str
    digest: str


class StageTime(Value):
    """How long a stage took, in seconds."""

    stage: str
    seconds: float


class Contents(Value):
    """What is inside the finished image, read from the image itself at the end of the build."""

    kernel: str
    packages: tuple[Package, ...]
    components: dict[str, str]
    images: tuple[ContainerImage, ...]


class Manifest(Value):
    """The record of one finished image, written beside it as manifest.json."""

    schema_version: Literal[1] = 1
    tool_version: str
    target: Target
    run_id: str
    created_at: str
    lane: str
    accelerator: str
    fingerprint: str
    base_fingerprint: str
    lock: Lock
    contents: Contents
    members: tuple[Member, ...]
    stages: tuple[StageTime, ...]
    synthetic: bool = False
