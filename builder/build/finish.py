"""The end of a run: the finished files and their manifest, each appearing whole in the output folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder.build.convert import flatten
from builder.core.digest import sha256_file
from builder.core.errors import BuildError, PreflightError
from builder.core.files import write_json
from builder.model.artifact import Manifest, Member
from builder.target.options import OutputOptions


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one target below the folder that `--output` names."""

    folder: Path
    target_id: str

    @property
    def place(self) -> Path:
        """The folder of the target."""
        return self.folder / self.target_id

    @property
    def manifest(self) -> Path:
        """The record of the image; written last, so where it is, all is."""
        return self.place / "manifest.json"

    def disk(self, suffix: str) -> Path:
        """The path of a disk file."""
        return self.place / f"{self.target_id}.{suffix}"

    def names(self, options: OutputOptions) -> tuple[str, ...]:
        """Return the names of the disk files that a run leaves."""
        return tuple(self.disk(suffix).name for suffix in ("qcow2", *(["raw"] if options.raw else [])))


def write_disks(raw: Path, outputs: Outputs, options: OutputOptions) -> tuple[Member, ...]:
    """Write the disk files from a clean raw disk. Raises BuildError when the output folder has no room or no access."""
    outputs.manifest.unlink(missing_ok=True)
    members = [_write(outputs.disk("qcow2"), "qcow2", lambda path: _flatten(raw, path, options.compress))]
    if options.raw:
        members.append(_write(outputs.disk("raw"), "raw", lambda path: _copy_sparse(raw, path)))
    return tuple(members)


def _flatten(raw: Path, path: Path, compress: bool) -> None:
    flatten(raw, path, compress=compress)


def _copy_sparse(raw: Path, path: Path) -> None:
    from builder.build.convert import to_raw

    to_raw(raw, path)


def _write(target: Path, kind: str, make: Callable[[Path], None]) -> Member:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        make(temporary)
        temporary.replace(target)
    except OSError as error:
        raise BuildError(f"cannot be written: {error.strerror}", str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Member(name=target.name, format=kind, size=target.stat().st_size, sha256=sha256_file(target))


def write_manifest(manifest: Manifest, outputs: Outputs, run_folder: Path) -> None:
    """Write the manifest to the run folder and, as the very last file, beside the disks."""
    value = manifest.model_dump(mode="json")
    write_json(run_folder / "manifest.json", value)
    write_json(outputs.manifest, value)


def prepare_output(folder: Path, target_id: str) -> Outputs:
    """Make the output folder of a target. Raises PreflightError when it cannot be written."""
    outputs = Outputs(folder.absolute(), target_id)
    try:
        outputs.place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"the output folder cannot be made: {error.strerror}", str(folder), "--output DIR"
        ) from error
    if not os.access(outputs.place, os.W_OK):
        raise PreflightError("the output folder cannot be written", str(outputs.place), "--output DIR")
    return outputs
