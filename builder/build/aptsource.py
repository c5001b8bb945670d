"""apt source files: read the host's, choose the ones to bootstrap with, write the ones an image keeps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

KEPT_OPTIONS = {"signed-by": "Signed-By", "trusted": "Trusted", "check-valid-until": "Check-Valid-Until"}
ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)$")


@dataclass(frozen=True, slots=True)
class Source:
    """One binary package source of apt; `options` are deb822 fields such as Signed-By."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Archive:
    """Where the packages of one release come from, as an OS definition states it."""

    distribution: str
    suite: str
    mirror: str
    security_mirror: str
    components: tuple[str, ...]
    keyring: str

    @property
    def suites(self) -> tuple[str, str, str]:
        """The release itself, its updates, its security updates."""
        return self.suite, f"{self.suite}-updates", f"{self.suite}-security"


def parse_sources(text: str) -> tuple[Source, ...]:
    """Read a source file of either style (sources.list(5)); disabled entries and deb-src are left out."""
    if re.search(r"^Types\s*:", text, re.MULTILINE | re.IGNORECASE):
        found = [_from_fields(fields) for fields in _paragraphs(text)]
    else:
        found = [_from_line(line) for line in text.splitlines()]
    return tuple(source for source in found if source is not None)


def format_sources(sources: Iterable[Source]) -> str:
    """Write sources in deb822 style, one paragraph each."""
    return "\n".join(_paragraph(source) for source in sources)


def definition_sources(archive: Archive) -> tuple[Source, ...]:
    """Return the public sources of a release: main and updates, and the security mirror when it has one."""
    options = (("Signed-By", archive.keyring),) if archive.keyring else ()
    release, updates, security = archive.suites
    main = Source((archive.mirror,), (release, updates), archive.components, options)
    if not archive.security_mirror:
        return (main,)
    return main, Source((archive.security_mirror,), (security,), archive.components, options)


def host_sources(archive: Archive, etc: Path = Path("/etc")) -> tuple[Source, ...]:
    """Return this host's own sources of the same distribution and release, or () when it has none that fit.

    Only the distribution's own file is read, and of it only this release's suites, the definition's components and
    http(s) addresses: third-party entries, CD-ROMs and mirror lists are not for an image.
    """
    if _os_release(etc / "os-release").get("ID") != archive.distribution:
        return ()
    for name in (f"apt/sources.list.d/{archive.distribution}.sources", "apt/sources.list"):
        file = etc / name
        if file.is_file():
            fitting = tuple(_narrow(parse_sources(file.read_text(errors="replace")), archive))
            if _is_complete(fitting, archive):
                return fitting
    return ()


def release_urls(sources: Iterable[Source], suite: str) -> tuple[str, ...]:
    """Return the addresses where the Release file of a suite may lie, the best first."""
    uris = [uri.rstrip("/") for source in sources if suite in source.suites for uri in source.uris]
    return tuple(f"{uri}/dists/{suite}/{name}" for uri in uris for name in ("InRelease", "Release"))


def _paragraphs(text: str) -> Iterable[Mapping[str, str]]:
    for block in re.split(r"\n(?:[ \t]*\n)+", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        yield fields


def _from_fields(fields: Mapping[str, str]) -> Source | None:
    enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off", "without", "disable")
    if "deb" not in fields.get("types", "").split() or not enabled:
        return None
    options = tuple((title, fields[name]) for name, title in KEPT_OPTIONS.items() if name in fields)
    words = [tuple(fields.get(name, "").split()) for name in ("uris", "suites", "components")]
    return Source(words[0], words[1], words[2], options)


def _from_line(line: str) -> Source | None:
    match = ONE_LINE.match(line.partition("#")[0].strip())
    if match is None:
        return None
    given = dict(word.partition("=")[::2] for word in shlex.split(match["options"] or "") if "=" in word)
    options = tuple((title, given[name]) for name, title in KEPT_OPTIONS.items() if name in given)
    return Source((match["uri"],), (match["suite"],), tuple(match["components"].split()), options)


def _paragraph(source: Source) -> str:
    lines = ["Types: deb", f"URIs: {' '.join(source.uris)}", f"Suites: {' '.join(source.suites)}"]
    if source.components:
        lines.append(f"Components: {' '.join(source.components)}")
    lines += [f"{name}: {value}".rstrip(" ") for name, value in source.options]
    return "\n".join(lines) + "\n"


def _os_release(file: Path) -> Mapping[str, str]:
    if not file.is_file():
        return {}
    pairs = (line.partition("=")[::2] for line in file.read_text(errors="replace").splitlines())
    return {name: value.strip("\"'") for name, value in pairs}


def _narrow(sources: Iterable[Source], archive: Archive) -> Iterable[Source]:
    for source in sources:
        uris = tuple(uri for uri in source.uris if uri.startswith(("http://", "https://")))
        suites = tuple(suite for suite in source.suites if suite in archive.suites)
        components = tuple(name for name in archive.components if name in source.components)
        if uris and suites and components:
            yield Source(uris, suites, components, source.options)


def _is_complete(sources: Iterable[Source], archive: Archive) -> bool:
    found = {name for source in sources if archive.suite in source.suites for name in source.components}
    return found.issuperset(archive.components)
