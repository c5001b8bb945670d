"""From the words of a person to one selection: the target, its definitions and its options, or all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from builder.core.errors import ConfigError, Problem, did_you_mean
from builder.core.paths import config_files
from builder.model.base import Value
from builder.model.target import Target
from builder.target.cascade import (
    ENVIRONMENT_PREFIX,
    TARGET_WORDS,
    FileLayer,
    Layer,
    Origin,
    Resolved,
    command_layer,
    environment_layer,
    resolve_options,
)
from builder.target.compatibility import check_compatibility
from builder.target.definitions import Definitions, KubernetesDefinition, OsDefinition, load_definitions
from builder.target.options import Options
from builder.target.request import Ask
from builder.target.strict import load_model
from builder.target.version import KubernetesVersion, parse_version, series_key
from builder.target.yamlfile import YamlFile, read_yaml

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Models:
    """The models that each infrastructure hands in: its site settings and its part of an OS file."""

    settings: Mapping[str, type[Value]]
    facts: Mapping[str, type[Value]]


@dataclass(frozen=True, slots=True)
class Selection:
    """One target with everything that decides it. `warnings` are for the user; nothing in them stops a build."""

    target: Target
    version: KubernetesVersion
    system: OsDefinition
    series: KubernetesDefinition
    definitions: Definitions
    resolved: Resolved
    words: Mapping[str, Origin]
    warnings: tuple[Problem, ...] = ()

    @property
    def options(self) -> Options:
        """The options of the build."""
        return self.resolved.options

    @property
    def settings(self) -> Value:
        """The settings of the target's infrastructure."""
        return self.resolved.providers[self.target.infra]

    @property
    def facts(self) -> Value:
        """The part of the OS file that belongs to the target's infrastructure."""
        return self.system.infra[self.target.infra]


class TargetWords(Value):
    """The words of a target in a site file."""

    os: str = ""
    k8s: str = ""
    infra: str = ""


def select(ask: Ask, models: Models) -> Selection:
    """Return the one selection that the words, files and variables give.

    Raises ConfigError with all problems of all of them: broken definitions, an unknown OS or infrastructure, a pair
    that is not supported, a Kubernetes version that is none, unknown or wrong options, components that cannot work
    together.
    """
    problems: list[Problem] = []
    definitions = _attempt(lambda: load_definitions(models.facts, ask.definitions), problems)
    site = _attempt(lambda: _site_file(ask.config), problems) or YamlFile("")
    words = _attempt(lambda: _target_words(ask, site), problems)
    command = _attempt(lambda: command_layer(ask.sets), problems)
    chosen = _choose(words, definitions, problems) if words and definitions else _Chosen()
    layers = [*_definition_layers(chosen), FileLayer("site file", _without_words(site))]
    layers += [environment_layer(ask.environment), *([command] if command else [])]
    resolved = _attempt(lambda: resolve_options(layers, models.settings), problems)
    warnings: tuple[Problem, ...] = ()
    if chosen.system and chosen.series and chosen.version and resolved:
        found = check_compatibility(resolved.options, chosen.system, chosen.series, chosen.version)
        problems += found.refused
        warnings = found.warned
    if problems or not (definitions and resolved and chosen.version and chosen.system and chosen.series):
        raise ConfigError(problems)
    target = Target(os=chosen.system.name, kubernetes=str(chosen.version), infra=chosen.infra)
    origins = {name: Origin(word.layer, word.where, word.text) for name, word in (words or {}).items()}
    return Selection(target, chosen.version, chosen.system, chosen.series, definitions, resolved, origins, warnings)


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    layer: str
    where: str


@dataclass(frozen=True, slots=True)
class _Chosen:
    system: OsDefinition | None = None
    series: KubernetesDefinition | None = None
    version: KubernetesVersion | None = None
    infra: str = ""


def _attempt(act: Callable[[], T], problems: list[Problem]) -> T | None:
    try:
        return act()
    except ConfigError as error:
        problems += error.problems
        return None


def _site_file(asked: Path | None) -> YamlFile:
    if asked is not None:
        return read_yaml(asked)
    found = next((path for path in config_files() if path.is_file()), None)
    return read_yaml(found) if found else YamlFile("")


def _without_words(site: YamlFile) -> YamlFile:
    data = {key: value for key, value in site.data.items() if key not in TARGET_WORDS}
    return YamlFile(site.name, site.folder, data, site.lines, site.texts)


def _target_words(ask: Ask, site: YamlFile) -> dict[str, _Word]:
    """Return each word of the target from the highest layer that has it: command line, environment, site file."""
    data = {key: value for key, value in site.data.items() if key in TARGET_WORDS}
    written = load_model(TargetWords, YamlFile(site.name, site.folder, data, site.lines, site.texts))
    typed = {"os": ask.os, "k8s": ask.kubernetes, "infra": ask.infra}
    found = {}
    for name in TARGET_WORDS:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if not typed[name] and ask.environment.get(variable):
            found[name] = _Word(ask.environment[variable], "environment", variable)
        elif not typed[name] and name in data:
            found[name] = _Word(getattr(written, name), "site file", site.where((name,)))
        else:
            found[name] = _Word(typed[name], "command line", f"--{name}")
    return found


def _choose(words: Mapping[str, _Word], definitions: Definitions, problems: list[Problem]) -> _Chosen:
    system = _known(words["os"], definitions.os, "operating system", problems)
    infra = words["infra"]
    is_known = _known(infra, dict.fromkeys(definitions.infras, True), "infrastructure", problems)
    if is_known and system and infra.text not in system.infra:
        builds = ", ".join(sorted(system.infra)) or "none"
        what = f"{system.name} cannot be built for {infra.text}"
        problems.append(Problem(what, infra.where, f"{system.name} has facts for: {builds}"))
    version = _version(words["k8s"], problems)
    series = definitions.kubernetes.get(version.series) if version else None
    if version and series is None:
        known = sorted(definitions.kubernetes, key=series_key)
        what = f"no definition of the Kubernetes series {version.series}"
        hint = f"known: {', '.join(known)}; another one is one file kubernetes/{version.series}.yaml in --definitions"
        problems.append(Problem(what, words["k8s"].where, hint))
    return _Chosen(system, series, version, infra.text)


def _known(word: _Word, known: Mapping[str, T], kind: str, problems: list[Problem]) -> T | None:
    names = sorted(known)
    if not word.text:
        problems.append(Problem(f"no {kind} is named", word.where, f"known: {', '.join(names)}"))
    elif word.text not in known:
        problems.append(Problem(f"unknown {kind} {word.text!r}", word.where, did_you_mean(word.text, names)))
    return known.get(word.text)


def _version(word: _Word, problems: list[Problem]) -> KubernetesVersion | None:
    if not word.text:
        problems.append(Problem("no Kubernetes version is named", word.where, "write it like v1.34.3"))
        return None
    return _attempt(lambda: parse_version(word.text, word.where), problems)


def _definition_layers(chosen: _Chosen) -> Sequence[Layer]:
    layers = []
    for name, definition in (("OS file", chosen.system), ("Kubernetes file", chosen.series)):
        if definition is not None and "options" in definition.file.data:
            layers.append(FileLayer(name, definition.file.part("options"), ("options",)))
    return layers


def selection_rows(selection: Selection) -> list[tuple[str, object, str]]:
    """Return (path, value, origin) of the target's words and of every setting: what --show prints."""
    words = [(name, origin.value, str(origin)) for name, origin in selection.words.items()]
    return [*words, *selection.resolved.rows()]
