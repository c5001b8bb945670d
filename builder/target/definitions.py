"""Definitions as data: one file for each OS and each Kubernetes series, built in or from a user's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from builder.core.errors import ConfigError, Problem, did_you_mean
from builder.core.paths import data
from builder.model.base import Value
from builder.target.strict import load_model
from builder.target.version import KubernetesVersion, component_key, parse_version, series_key
from builder.target.yamlfile import YamlFile, read_yaml

T = TypeVar("T")
Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Version = Annotated[str, Field(pattern=r"^v\d+\.\d+\.\d+([-+].+)?$")]
OS_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SERIES_NAME = re.compile(r"\d+\.\d+")


class Support(Value):
    """When the vendor's support ends (a date) and where that is written."""

    ends: Date
    source: str


class OsFile(Value):
    """An OS file as it is written; `infra` is read by the model of each provider."""

    title: str
    distribution: str
    version: str
    codename: str
    os_family: Literal["debian"]
    support: Support
    python: str = Field(description="Python of the OS, as Ansible finds it: 3.11")
    packaged: dict[str, str] = Field({}, description="versions that the distribution's own packages give")
    options: dict[str, Any] = Field({}, description="option values that hold for this OS")
    infra: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class OsDefinition:
    """One OS. `infra` has the facts that each provider's own model read; no entry: an unsupported pair."""

    name: str
    about: OsFile
    infra: Mapping[str, Value]
    file: YamlFile

    @property
    def support(self) -> Support:
        """When the vendor's support ends."""
        return self.about.support


class ImageStep(Value):
    """The image tags that kubeadm names, from one patch version on; `source` says where they were read."""

    start: Version = Field(alias="from")
    etcd: str
    coredns: str
    pause: str
    source: str


class ContainerdFacts(Value):
    """Which containerd a series wants: older than `minimum` is refused; `tested` is the oldest patch of each line."""

    default: Version
    minimum: Version
    tested: dict[str, Version]
    status: Literal["verified", "derived"]
    source: str


class ComponentFacts(Value):
    """The default version of a component and where it was read."""

    default: Version
    source: str


class SelfBuilt(Value):
    """A fault of releases compiled with a recent Go: those before `clean_from` (all, when it is not there) have it."""

    clean_from: Version | None = None
    fault: str
    remedy: str


class KubernetesFile(Value):
    """A Kubernetes series as it is written."""

    series: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    images: Annotated[tuple[ImageStep, ...], Field(min_length=1)]
    containerd: ContainerdFacts
    cni: ComponentFacts
    crictl: ComponentFacts
    crictl_required: bool = False
    self_built: tuple[SelfBuilt, ...] = ()
    options: dict[str, Any] = Field({}, description="option values that hold for this series")


@dataclass(frozen=True, slots=True)
class KubernetesDefinition:
    """One Kubernetes series."""

    name: str
    about: KubernetesFile
    file: YamlFile

    def images_at(self, version: KubernetesVersion) -> ImageStep:
        """Return the image tags of a version: the last step that starts at or before it, else the first."""
        bare = KubernetesVersion(version.major, version.minor, version.patch, version.pre)
        steps = [step for step in self.about.images if parse_version(step.start) <= bare]
        return (steps or list(self.about.images[:1]))[-1]


class ContainerdSchema(Value):
    """The version of config.toml that containerd reads from one version on."""

    start: Version = Field(alias="from")
    config: Literal[2, 3]


class Compatibility(Value):
    """Facts about components that hold for every OS and series."""

    containerd_config: Annotated[tuple[ContainerdSchema, ...], Field(min_length=1)]

    def config_schema(self, containerd: str) -> int:
        """Return the version of config.toml for a containerd version such as `v2.1.4` or `1.6.20`."""
        key = component_key(containerd)
        fitting = [step.config for step in self.containerd_config if component_key(step.start) <= key]
        return (fitting or [self.containerd_config[0].config])[-1]


@dataclass(frozen=True, slots=True)
class Definitions:
    """All definitions by name; a later folder replaces a file of the same name."""

    os: Mapping[str, OsDefinition]
    kubernetes: Mapping[str, KubernetesDefinition]
    compatibility: Compatibility
    infras: tuple[str, ...] = field(default=())


def load_definitions(facts: Mapping[str, type[Value]], folders: Sequence[Path] = ()) -> Definitions:
    """Load the built-in definitions and those in `folders` (each with `os/` and `kubernetes/`, later ones win).

    `facts` names the infrastructures and the model of each one's part of an OS file. Raises ConfigError with all
    problems of all files: a folder that is not there, an unknown or duplicate key, a wrong type, a wrong name.
    """
    problems: list[Problem] = []
    roots = [data("os").parent, *folders]
    problems += _missing_folders(folders)
    systems = _load_all(_files(roots, "os"), lambda file: _load_os(file, facts), problems)
    series = _load_all(_files(roots, "kubernetes"), _load_series, problems)
    compatibility = _attempt(lambda: _load_compatibility(roots), problems)
    if problems or compatibility is None:
        raise ConfigError(problems)
    ordered = dict(sorted(series.items(), key=lambda item: series_key(item[0])))
    return Definitions(dict(sorted(systems.items())), ordered, compatibility, tuple(sorted(facts)))


def _missing_folders(folders: Iterable[Path]) -> list[Problem]:
    problems = []
    for folder in folders:
        if not folder.is_dir():
            problems.append(Problem("no such folder", str(folder), "--definitions takes a folder"))
        elif not ((folder / "os").is_dir() or (folder / "kubernetes").is_dir()):
            hint = "OS files are looked for in its os/, Kubernetes files in its kubernetes/"
            problems.append(Problem("the folder has neither os/ nor kubernetes/", str(folder), hint))
    return problems


def _files(roots: Sequence[Path], kind: str) -> list[Path]:
    """Return one file for each name; the one of the last root stands for all."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted([*(root / kind).glob("*.yaml"), *(root / kind).glob("*.yml")]):
            found[path.stem] = path
    return list(found.values())


def _load_all(paths: Iterable[Path], load: Callable[[Path], T], problems: list[Problem]) -> dict[str, T]:
    found = {}
    for path in paths:
        loaded = _attempt(lambda path=path: load(path), problems)  # type: ignore[misc]
        if loaded is not None:
            found[path.stem] = loaded
    return found


def _attempt(load: Callable[[], T], problems: list[Problem]) -> T | None:
    try:
        return load()
    except ConfigError as error:
        problems += error.problems
        return None


def _load_os(path: Path, facts: Mapping[str, type[Value]]) -> OsDefinition:
    problems: list[Problem] = []
    file = read_yaml(path)
    if not OS_NAME.fullmatch(path.stem):
        problems.append(Problem("the file's name is the name of the OS: small letters, digits, '-'", str(path)))
    about = _attempt(lambda: load_model(OsFile, file), problems)
    infra: dict[str, Value] = {}
    raw = file.data.get("infra")
    for name, value in raw.items() if isinstance(raw, Mapping) else ():
        if name not in facts:
            where = file.where(("infra", name))
            problems.append(Problem(f"unknown infrastructure {name!r}", where, did_you_mean(name, sorted(facts))))
        elif isinstance(value, Mapping):
            part = file.part("infra", name)
            read = _attempt(lambda part=part, name=name: load_model(facts[name], part, ("infra", name)), problems)  # type: ignore[misc]
            if read is not None:
                infra[name] = read
    if problems or about is None:
        raise ConfigError(problems)
    return OsDefinition(path.stem, about, infra, file)


def _load_series(path: Path) -> KubernetesDefinition:
    file = read_yaml(path)
    about = load_model(KubernetesFile, file)
    problems = []
    if not SERIES_NAME.fullmatch(path.stem) or about.series != path.stem:
        what = f"the file's name and its series ({about.series}) must be the same"
        problems.append(Problem(what, file.where(("series",)), f"name the file {about.series}.yaml"))
    starts = []
    for index, step in enumerate(about.images):
        where = file.where(("images", index, "from"))
        version = _attempt(lambda step=step, where=where: parse_version(step.start, where), problems)  # type: ignore[misc]
        if version is None:
            continue
        if version.series != about.series:
            problems.append(Problem(f"{step.start} is not of series {about.series}", where))
        starts.append(version)
    if starts != sorted(starts):
        problems.append(Problem("the steps must stand in the order of their versions", file.where(("images",))))
    if problems:
        raise ConfigError(problems)
    return KubernetesDefinition(path.stem, about, file)


def _load_compatibility(roots: Sequence[Path]) -> Compatibility:
    found = [root / "compatibility.yaml" for root in roots if (root / "compatibility.yaml").is_file()]
    return load_model(Compatibility, read_yaml(found[-1]))
