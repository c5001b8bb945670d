"""Write container image archives: deterministic OCI archives, and copies that containerd names right."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from builder.core.digest import CHUNK, canonical_json, sha256_bytes
from builder.core.errors import PreflightError
from builder.resolve.archive import CONTAINERD_NAME, OCI_NAME, ArchiveImage, entry_name, read_archive

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
EPOCH = "1970-01-01T00:00:00Z"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ImageContent:
    """What an image holds: `files` {absolute path: file}, above a `root` tar archive where one is needed.

    The files are world-readable and executable and belong to root. `root` becomes a layer of its own, as it is.
    """

    files: Mapping[str, Path]
    entrypoint: tuple[str, ...] = ()
    root: Path | None = None
    arch: str = "amd64"
    labels: Mapping[str, str] = field(default_factory=dict)


def write_archive(out: Path, names: Sequence[str], content: ImageContent) -> str:
    """Write an OCI archive that holds one image under all of `names`; return its manifest digest.

    Equal content gives equal bytes. The archive appears under its name only when it is whole.
    """
    temporary = out.with_name(f".{out.name}.new")
    try:
        with temporary.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            digest = _write_image(archive, names, content, out.with_name(f".{out.name}.layer"))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def copy_archive(source: Path, out: Path) -> tuple[ArchiveImage, ...]:
    """Copy an image archive so that containerd names its images right at import; return its images.

    Docker archives and OCI archives with containerd's annotation stay as they are. Other tools leave the name in
    the OCI annotation alone, which containerd takes for a tag. Raises PreflightError like `read_archive`, and when
    an image has no name.
    """
    images = read_archive(source)
    if not all(image.name for image in images):
        raise PreflightError("an image without a name in it", str(source), "give it one: oci-archive:FILE:NAME")
    temporary = out.with_name(f".{out.name}.new")
    try:
        with tarfile.open(source) as old, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as new:
            for member in old:
                stream = old.extractfile(member) if member.isfile() else None
                if stream is not None and member.name.removeprefix("./") == "index.json":
                    data = _named_index(stream.read())
                    member.size, stream = len(data), io.BytesIO(data)
                new.addfile(member, stream)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return images


def archive_of_folder(folder: Path, out: Path, name: str) -> str:
    """Write an OCI archive of what skopeo pulled into a `dir:` folder; return the digest of its manifest.

    Manifest and layers stay byte for byte what the registry has, of whatever type, so that the digest is the
    registry's: https://github.com/containers/image/blob/main/docs/containers-transports.5.md#dirpath
    """
    manifest = (folder / "manifest.json").read_bytes()
    value = json.loads(manifest)
    kind = str(value.get("mediaType") or MANIFEST_TYPE)
    digest = sha256_bytes(manifest)
    described = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(manifest)}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [described | {"annotations": {CONTAINERD_NAME: name, OCI_NAME: name}}],
    }
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        _add_bytes(archive, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        for blob in dict.fromkeys(entry["digest"] for entry in [value["config"], *value["layers"]]):
            _add_blob(archive, folder / str(blob).removeprefix("sha256:"), "")
        _add_bytes(archive, f"blobs/sha256/{digest}", manifest)
        _add_bytes(archive, "index.json", canonical_json(index))
    return f"sha256:{digest}"


def _write_image(archive: tarfile.TarFile, names: Sequence[str], content: ImageContent, scratch: Path) -> str:
    _add_bytes(archive, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
    layers = []
    if content.root is not None:
        layers.append(_add_blob(archive, content.root, LAYER_TYPE))
    try:
        _write_layer(scratch, content.files)
        layers.append(_add_blob(archive, scratch, LAYER_TYPE))
    finally:
        scratch.unlink(missing_ok=True)
    config = {
        "created": EPOCH,
        "architecture": content.arch,
        "os": "linux",
        "config": {
            "Env": [DEFAULT_PATH],
            **({"Entrypoint": list(content.entrypoint)} if content.entrypoint else {}),
            **({"Labels": dict(content.labels)} if content.labels else {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "history": [{"created": EPOCH, "created_by": "build-image"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _add_json(archive, config, CONFIG_TYPE),
        "layers": layers,
    }
    described = _add_json(archive, manifest, MANIFEST_TYPE)
    platform = {"architecture": content.arch, "os": "linux"}
    entries = [
        described | {"platform": platform, "annotations": {CONTAINERD_NAME: name, OCI_NAME: name}} for name in names
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    _add_bytes(archive, "index.json", canonical_json(index))
    return str(described["digest"])


def _write_layer(out: Path, files: Mapping[str, Path]) -> None:
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"/"}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as layer:
        for name in sorted([*parents, *files]):
            if name in files:
                with files[name].open("rb") as stream:
                    layer.addfile(_entry(name.lstrip("/"), files[name].stat().st_size, 0o755), stream)
            else:
                folder = _entry(name.lstrip("/"), 0, 0o755)
                folder.type = tarfile.DIRTYPE
                layer.addfile(folder)


def _entry(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode, 0
    return entry


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_entry(name, len(data)), io.BytesIO(data))


def _add_json(archive: tarfile.TarFile, value: Any, media_type: str) -> dict[str, Any]:
    data = canonical_json(value)
    digest = sha256_bytes(data)
    _add_bytes(archive, f"blobs/sha256/{digest}", data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _add_blob(archive: tarfile.TarFile, file: Path, media_type: str) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = _stream_digest(stream)
        size = stream.tell()
        stream.seek(0)
        archive.addfile(_entry(f"blobs/sha256/{digest}", size), stream)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _stream_digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _named_index(data: bytes) -> bytes:
    index = json.loads(data)
    for entry in index["manifests"]:
        entry["annotations"] = dict(entry.get("annotations") or {}) | {CONTAINERD_NAME: entry_name(entry)}
    return canonical_json(index)
