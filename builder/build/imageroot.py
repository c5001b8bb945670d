"""The root of a container image that needs more than one static binary: a few unpacked Debian packages."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from builder.core.digest import sha256_file, sha256_value
from builder.core.errors import BuildError
from builder.core.files import file_lock, write_json
from builder.core.run import Spec, run
from builder.resolve.golang import Runner

KEY_VERSION = 1
UNPACK_SECONDS = 1800
SECONDS_A_DAY = 86400
# Documentation (but licences), translations, caches, what only a booting system reads, what mmdebstrap took from us.
LEFT_OUT = re.compile(
    r"^(usr/share/(doc/.*/(?!copyright$)[^/]+|doc-base/.*|man/.*|info/.*|locale/.*|lintian/.*|bug/.*|bash-completion/.*)"
    r"|usr/lib/[^/]+/gconv/.*|(usr/)?lib/(systemd|udev)/.*|etc/(init\.d|default|cron\..*|apt|dpkg)/.*"
    r"|etc/(fstab|hostname|hosts|resolv\.conf)"
    r"|var/(cache|log|lib/apt)/.*|dev/.*|tmp/.*|run/.*)$"
)
MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RootSpec:
    """What lies in an image root, and where the packages come from.

    `sources` is the text of an apt source file, `apt_options` lines such as `Acquire::http::Proxy "…"`; `links`
    {path: target} stand in for what the packages' maintainer scripts would have made, as none of them is run.
    """

    suite: str
    sources: str
    packages: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    arch: str = "amd64"
    apt_options: tuple[str, ...] = ()
    max_age_days: int = 7

    @property
    def key(self) -> str:
        """The hex sha256 over what decides the content, the state of the mirror aside."""
        return sha256_value(
            {
                "version": KEY_VERSION,
                "suite": self.suite,
                "sources": self.sources,
                "packages": sorted(self.packages),
                "links": dict(self.links),
                "arch": self.arch,
                "left_out": LEFT_OUT.pattern,
            }
        )


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """A root as a tar archive, and its sha256 (hex)."""

    path: Path
    sha256: str


def image_root(spec: RootSpec, cache: Path, note: Note, log: Path | None = None, runner: Runner = run) -> ImageRoot:
    """Return the root out of `cache`, unpacked anew when the one there is older than `spec.max_age_days`.

    An older one serves when its mirror does not answer. Raises BuildError when there is none and it cannot be
    made. mmdebstrap does it with or without root.
    """
    place = cache / f"root-{spec.key}.tar"
    record = place.with_suffix(".json")
    with file_lock(place.with_suffix(".lock")):
        known = json.loads(record.read_text()) if record.is_file() and place.is_file() else None
        if known and time.time() - known["made"] < spec.max_age_days * SECONDS_A_DAY:
            return ImageRoot(place, known["sha256"])
        note(f"unpacking {', '.join(spec.packages)} for a container image")
        try:
            _unpack(spec, place, log, runner)
        except BuildError as error:
            if not known:
                raise
            note(f"an older root serves: {error.problems[0].what.splitlines()[0]}")
            return ImageRoot(place, known["sha256"])
        digest = sha256_file(place)
        write_json(record, {"made": int(time.time()), "sha256": digest, "packages": sorted(spec.packages)})
        return ImageRoot(place, digest)


def root_command(spec: RootSpec, out: Path) -> list[str]:
    """Return the mmdebstrap command; the apt sources go to its standard input."""
    command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--architectures={spec.arch}"]
    command += [f"--include={','.join(sorted(spec.packages))}"]
    command += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    command += [f"--aptopt={option}" for option in spec.apt_options]
    return [*command, spec.suite, str(out), "-"]


def tidy_root(source: Path, out: Path, links: Mapping[str, str]) -> None:
    """Write the tar archive `out` from an unpacked one: merged /usr, nothing superfluous, `links` added, sorted."""
    with tarfile.open(source) as old, tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as new:
        entries = dict(_members(old))
        for path in MERGED:
            if f"usr/{path}" in entries:
                entries[path] = _link(path, f"usr/{path}")
        for path, target in links.items():
            entries[path.lstrip("/")] = _link(path.lstrip("/"), target)
        for name in sorted(entries):
            member = entries[name]
            new.addfile(member, old.extractfile(member) if member.isreg() else None)


def _unpack(spec: RootSpec, place: Path, log: Path | None, runner: Runner) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as folder:
        raw, tidy = Path(folder) / "raw.tar", Path(folder) / "tidy.tar"
        hint = "the option base.apt_sources names a mirror that can be reached"
        what = "unpacking of packages for a container image"
        runner(root_command(spec, raw), Spec(input=spec.sources, timeout=UNPACK_SECONDS, log=log, what=what, hint=hint))
        tidy_root(raw, tidy, spec.links)
        tidy.replace(place)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in archive:
        name = str(PurePosixPath(member.name)).removeprefix("./")
        if name in ("", ".") or member.ischr() or member.isblk() or LEFT_OUT.match(name):
            continue
        # In newer releases /bin and its like are links already; both ways they end as the folder below /usr.
        if name in MERGED and not member.isdir():
            continue
        member.name = name = _merged(name)
        if member.islnk():
            member.linkname = _merged(str(PurePosixPath(member.linkname)).removeprefix("./"))
        member.uname = member.gname = ""
        yield name, member


def _merged(name: str) -> str:
    return f"usr/{name}" if name.partition("/")[0] in MERGED else name


def _link(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
    return entry
