"""Read container image archives: which images, under which names, and is every part there."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.core.digest import sha256_bytes
from builder.core.errors import PreflightError

CONTAINERD_NAME = "io.containerd.image.name"
"""The annotation that gives an image its name in containerd; without it `ctr images import` makes one up
(https://github.com/containerd/containerd/blob/v2.1.4/core/images/annotations.go)."""
OCI_NAME = "org.opencontainers.image.ref.name"
METADATA_LIMIT = 16 << 20
ARCHIVE_HINT = "wanted: an OCI archive (skopeo copy … oci-archive:FILE:NAME) or a docker archive (docker save)"


@dataclass(frozen=True, slots=True)
class ArchiveImage:
    """An image in an archive: its full name as containerd stores it ("" when it has none) and its digest.

    The digest is the manifest's (`sha256:<hex>`); in a docker archive, which holds no manifest, the config's.
    """

    name: str
    digest: str


def full_name(name: str) -> str:
    """Return an image name with its registry and tag, as containerd stores it.

    `app:1` becomes docker.io/library/app:1, `registry.k8s.io/pause` registry.k8s.io/pause:latest
    (https://github.com/distribution/reference/blob/v0.6.0/normalize.go).
    """
    path, at, digest = name.partition("@")
    first, slash, _ = path.partition("/")
    if not slash:
        path = f"docker.io/library/{path}"
    elif "." not in first and ":" not in first and first != "localhost":
        path = f"docker.io/{path}"
    if not at and ":" not in path.rpartition("/")[2]:
        path += ":latest"
    return f"{path}{at}{digest}"


def read_archive(path: Path) -> tuple[ArchiveImage, ...]:
    """Return the images of an OCI or docker archive, compressed or not, without unpacking it.

    Raises PreflightError when the file cannot be read, is neither of the two, or lacks one of its own parts.
    """
    try:
        with tarfile.open(path) as archive:
            members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
            if "index.json" in members:
                return tuple(_oci_images(archive, members))
            if "manifest.json" in members:
                return tuple(_docker_images(archive, members))
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreflightError(f"not a readable image archive: {_reason(error)}", str(path), ARCHIVE_HINT) from error
    raise PreflightError("an archive, but of no container image", str(path), ARCHIVE_HINT)


def entry_name(entry: Mapping[str, Any]) -> str:
    """Return the full name that an entry of index.json gives to its image, "" when it gives none."""
    annotations = entry.get("annotations") or {}
    name = str(annotations.get(CONTAINERD_NAME) or annotations.get(OCI_NAME) or "")
    # A bare word such as `latest` is a tag without a repository: that names nothing.
    return full_name(name) if "/" in name or ":" in name else ""


def _oci_images(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> Iterator[ArchiveImage]:
    index = _read_json(archive, members, "index.json")
    for entry in index["manifests"]:
        digest = str(entry["digest"])
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise ValueError(f"{digest!r} is no sha256 digest")
        data = _read(archive, members, f"blobs/{digest.replace(':', '/')}")
        if sha256_bytes(data) != digest.partition(":")[2]:
            raise ValueError(f"{digest} does not fit its content")
        _check_parts(json.loads(data), members)
        yield ArchiveImage(entry_name(entry), digest)


def _check_parts(manifest: Mapping[str, Any], members: Mapping[str, tarfile.TarInfo]) -> None:
    """Raise ValueError when a part of a one-platform image is missing or cut short; lists may be partial."""
    parts = [manifest["config"], *manifest["layers"]] if "layers" in manifest else []
    for part in parts:
        member = members.get(f"blobs/{part['digest'].replace(':', '/')}")
        if member is None or member.size != part["size"]:
            raise ValueError(f"{part['digest']} is missing or cut short")


def _docker_images(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> Iterator[ArchiveImage]:
    for entry in _read_json(archive, members, "manifest.json"):
        digest = f"sha256:{sha256_bytes(_read(archive, members, entry['Config']))}"
        for layer in entry["Layers"]:
            # A layer may be a link to an equal one, which is no file of its own.
            if layer not in members and layer not in archive.getnames():
                raise ValueError(f"{layer} is missing")
        for name in entry.get("RepoTags") or [""]:
            yield ArchiveImage(full_name(name) if name else "", digest)


def _read(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> bytes:
    member = members.get(name)
    if member is None:
        raise ValueError(f"{name} is missing")
    if member.size > METADATA_LIMIT:
        raise ValueError(f"{name} is too large")
    stream = archive.extractfile(member)
    if stream is None:
        raise ValueError(f"{name} is no file")
    return stream.read()


def _read_json(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> Any:
    return json.loads(_read(archive, members, name))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error) or "it ends too early"
