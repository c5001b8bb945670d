"""One archive for each container image of a lock: compiled, pulled by digest, or copied from the user's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.build.imageroot import ImageRoot
from builder.build.oci import ImageContent, archive_of_folder, copy_archive, write_archive
from builder.core.digest import sha256_value
from builder.core.errors import PreflightError
from builder.core.files import file_lock
from builder.core.run import Spec, run
from builder.model.lock import Input
from builder.resolve.golang import Runner
from builder.resolve.gomodule import module_facts
from builder.resolve.images import FROM_ARCHIVE, ImageRequest, compiled_from, locate_archives, origin_of

PULL_SECONDS = 3600

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImageParts:
    """What images are made of: `binaries` {component: folder of its commands}, a root for those that need one."""

    request: ImageRequest
    binaries: Mapping[str, Path]
    root: ImageRoot | None
    pulled: Path


def needs_root(entries: Sequence[Input]) -> bool:
    """Say whether one of the images is compiled and needs packages beside its binary."""
    return any(made is not None and module_facts().images[made.image].root for made in map(compiled_from, entries))


def image_commands(entries: Sequence[Input]) -> dict[str, set[str]]:
    """Return {component: commands} that the compiled images among lock entries hold."""
    commands: dict[str, set[str]] = {}
    for made in map(compiled_from, entries):
        if made is not None:
            commands.setdefault(made.component, set()).update(module_facts().images[made.image].files.values())
    return commands


def write_images(
    entries: Sequence[Input], parts: ImageParts, out: Path, note: Note, runner: Runner = run
) -> tuple[Path, ...]:
    """Write the archives of all lock entries of kind `image` into the folder `out`; return them in order.

    Raises PreflightError when an archive is no longer what the lock says, BuildError when a pull fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for source in locate_archives(parts.request, entries):
        made.append(out / f"{len(made):02}-{source.name.partition('.')[0]}.tar")
        copy_archive(source, made[-1])
    for entry in entries:
        if origin_of(entry) == FROM_ARCHIVE:
            continue
        made.append(out / f"{len(made):02}-{_short(entry.name)}.tar")
        if compiled_from(entry) is not None:
            write_archive(made[-1], [entry.name], _content(entry, parts))
        else:
            copy_archive(_pull(entry, parts, note, runner), made[-1])
    return tuple(made)


def _content(entry: Input, parts: ImageParts) -> ImageContent:
    made = compiled_from(entry)
    if made is None:
        raise ValueError(f"{entry.name} is not compiled")
    facts = module_facts().images[made.image]
    folder = parts.binaries[made.component]
    return ImageContent(
        files={path: folder / command for path, command in facts.files.items()},
        entrypoint=facts.entrypoint,
        root=parts.root.path if facts.root and parts.root else None,
        arch=parts.request.arch,
        labels={"org.opencontainers.image.version": made.version},
    )


def _pull(entry: Input, parts: ImageParts, note: Note, runner: Runner) -> Path:
    """Return the archive of a registry image out of the cache; skopeo checks every byte against the digest."""
    if not entry.digest:
        raise PreflightError("the lock has no digest of this image", entry.name)
    arch = parts.request.arch
    key = sha256_value({"version": 2, "name": entry.name, "digest": entry.digest, "arch": arch})
    place = parts.pulled / f"{key}.tar"
    if place.is_file():
        return place
    with file_lock(place.with_suffix(".lock")):
        if place.is_file():
            return place
        note(f"pulling {entry.name}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parts.pulled) as folder:
            archive, pulled = Path(folder) / "image.tar", Path(folder) / "pulled"
            argv: list[str | Path] = ["skopeo", "copy", "--quiet", "--preserve-digests"]
            argv += ["--override-os", "linux", "--override-arch", arch]
            if not parts.request.tls_verify:
                argv.append("--src-tls-verify=false")
            argv += [f"docker://{_repository(entry.name)}@{entry.digest}", f"dir:{pulled}"]
            runner(argv, Spec(timeout=PULL_SECONDS, what=f"pull of {entry.name}"))
            archive_of_folder(pulled, archive, entry.name)
            archive.rename(place)
    return place


def _repository(name: str) -> str:
    """Return an image name without tag and digest; the port of a registry stays."""
    path = name.partition("@")[0]
    folder, slash, last = path.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def _short(name: str) -> str:
    return _repository(name).rpartition("/")[2]
