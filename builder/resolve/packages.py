"""Kubernetes packages of a deb repository: the exact revisions, read from its index and never guessed."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from debian_inspector.debcon import get_paragraphs_data
from debian_inspector.version import Version

from builder.core.digest import sha256_bytes
from builder.core.errors import PreflightError
from builder.model.lock import Input
from builder.resolve.web import NotThere, Web, local_path
from builder.target.version import KubernetesVersion

PROGRAMS = ("kubeadm", "kubelet", "kubectl")
CRICTL_PACKAGE = "cri-tools"
REPOSITORY = "kubernetes-repository"
NEAREST = 6
DEPENDENCY = re.compile(r"^\s*([a-z0-9][a-z0-9+.-]+)")
OTHER_SOURCE = "the sources url and module need no repository (kubernetes.source)"


@dataclass(frozen=True, slots=True)
class Package:
    """One package of an index; `version` is the whole Debian version, `digest` the hex sha256 of the file."""

    name: str
    version: str
    architecture: str
    depends: tuple[str, ...]
    file: str
    digest: str

    @property
    def upstream(self) -> str:
        """The version without Debian's revision, written as upstream does (`1.35.0-rc.0`)."""
        return str(Version.from_string(self.version).upstream).replace("~", "-")


@dataclass(frozen=True, slots=True)
class Repository:
    """A flat deb repository: its address (ends with /), the address of its key and its packages of one architecture."""

    url: str
    key_url: str
    packages: tuple[Package, ...]

    def named(self, name: str) -> list[Package]:
        """Return all versions of a package, the newest first."""
        found = [package for package in self.packages if package.name == name]
        return sorted(found, key=lambda package: Version.from_string(package.version), reverse=True)


def repository_url(template: str, version: KubernetesVersion) -> str:
    """Return the address of the repository of a version's series; {series} is v1.34. Ends with /."""
    url = template.replace("{series}", f"v{version.series}").rstrip("/") + "/"
    if local_path(url) is not None:
        what = f"{url} is not an http(s) address"
        raise PreflightError(what, "kubernetes.repository", "the build machine itself must reach the repository by URL")
    return url


def read_repository(url: str, key: str, arch: str, web: Web) -> Repository:
    """Read the index of a flat repository (https://wiki.debian.org/DebianRepository/Format#Flat_Repository_Format).

    `key` is the address of its key, empty for Release.key in it. Raises PreflightError when it does not answer,
    is not signed (apt in the guest would refuse it) or holds no package.
    """
    text = _index_text(url, web)
    _require_signature(url, web)
    packages = tuple(parse_index(text, arch))
    if not packages:
        raise PreflightError(f"the index has no package for {arch}", f"{url}Packages", OTHER_SOURCE)
    return Repository(url, key or f"{url}Release.key", packages)


def _index_text(url: str, web: Web) -> str:
    try:
        return web.text(f"{url}Packages")
    except NotThere:
        pass
    try:
        return gzip.decompress(web.read(f"{url}Packages.gz")).decode()
    except NotThere as error:
        what = "there is no deb repository: neither Packages nor Packages.gz"
        raise PreflightError(what, url, "a series without packages, or a wrong kubernetes.repository") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PreflightError("the index is damaged", f"{url}Packages.gz") from error


def _require_signature(url: str, web: Web) -> None:
    for name in ("InRelease", "Release.gpg"):
        try:
            web.read(url + name)
            return
        except NotThere:
            continue
    raise PreflightError("the repository is not signed: neither InRelease nor Release.gpg", url, OTHER_SOURCE)


def parse_index(text: str, arch: str) -> Iterable[Package]:
    """Yield the packages of a Packages file that fit an architecture; entries without name or version are left out."""
    for entry in get_paragraphs_data(text):
        if not entry.get("package") or not entry.get("version") or entry.get("architecture") not in (arch, "all"):
            continue
        names = [DEPENDENCY.match(part) for part in re.split(r"[,|]", entry.get("depends", ""))]
        depends = tuple(match.group(1) for match in names if match)
        fields = [entry.get(key, "").strip() for key in ("package", "version", "architecture", "filename", "sha256")]
        name, version, architecture, file, digest = fields
        yield Package(name, version, architecture, depends, file, digest)


def choose_packages(repository: Repository, version: KubernetesVersion, with_crictl: bool) -> dict[str, Package]:
    """Return the packages to install: the newest revision that kubeadm, kubelet and kubectl have in common.

    With them come those of their dependencies that the repository itself has, at their newest version, and
    cri-tools when asked for and there. Raises PreflightError that lists the nearest versions when this one is not
    there, or says what is not common.
    """
    wanted = str(version).removeprefix("v")
    fitting = {
        name: {package.version: package for package in repository.named(name) if package.upstream == wanted}
        for name in PROGRAMS
    }
    if not any(fitting.values()):
        raise PreflightError(f"{version} is not in the repository", repository.url, _nearest_hint(repository, version))
    common = set.intersection(*(set(found) for found in fitting.values()))
    if not common:
        parts = "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in fitting.items())
        what = f"no revision of {version} is common to {', '.join(PROGRAMS)} ({parts})"
        raise PreflightError(what, repository.url, OTHER_SOURCE)
    best = max(common, key=Version.from_string)
    chosen = {name: found[best] for name, found in fitting.items()}
    wanted_too = [name for package in chosen.values() for name in package.depends if name not in PROGRAMS]
    for name in dict.fromkeys([*wanted_too, *([CRICTL_PACKAGE] if with_crictl else [])]):
        versions = repository.named(name)
        if versions:
            chosen[name] = versions[0]
    return chosen


def _nearest_hint(repository: Repository, version: KubernetesVersion) -> str:
    key = f"{version.number.replace('-', '~')}"
    present = {package.upstream: Version.from_string(package.version) for package in repository.named("kubeadm")}
    asked = Version.from_string(key)
    ordered = sorted(present, key=lambda name: present[name])
    below = [name for name in ordered if present[name] < asked][-NEAREST // 2 :]
    above = [name for name in ordered if present[name] > asked][: NEAREST // 2]
    names = ", ".join(f"v{name}" for name in [*below, *above])
    return f"nearest: {names}" if names else "the repository has no kubeadm at all"


def package_inputs(repository: Repository, chosen: Mapping[str, Package], key: bytes) -> Sequence[Input]:
    """Return the inputs of a lock: each package with its revision, and the repository with the digest of its key."""
    inputs = [
        Input(
            name=name,
            kind="package",
            version=package.upstream,
            revision=package.version,
            url=repository.url + package.file.removeprefix("./"),
            digest=f"sha256:{package.digest}" if package.digest else None,
        )
        for name, package in chosen.items()
    ]
    digest = f"sha256:{sha256_bytes(key)}"
    return [*inputs, Input(name=REPOSITORY, kind="suite", version="/", url=repository.url, digest=digest)]
