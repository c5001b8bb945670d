"""The cascade of settings: defaults < OS < Kubernetes < profile < site file < environment < command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from builder.core.errors import ConfigError, Problem, did_you_mean
from builder.model.base import Value
from builder.target.fields import Field, fields_of, parse_text, with_folder
from builder.target.options import Options
from builder.target.strict import problems_of
from builder.target.yamlfile import KeyPath, YamlFile

V = TypeVar("V", bound=Value)
OptionPath = tuple[str, ...]
ENVIRONMENT_PREFIX = "BUILD_IMAGE_"
# Set for other purposes: the state folder, which Packer, and what a job and the Ansible wrapper are told by us.
OTHER_NAMES = ("STATE", "PACKER", "JOB", "EVENTS", "STAGE", "SECRETS", "TEST_IMAGE")
OTHER_VARIABLES = frozenset(ENVIRONMENT_PREFIX + name for name in OTHER_NAMES)
TARGET_WORDS = ("os", "k8s", "infra")
LATER_WORDS = ("destinations", "vcenters", "aws", "azure", "vsphere")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: the layer, the place in it (`site.yaml:3`, a variable, an argument) and the value."""

    layer: str
    where: str
    value: Any

    def __str__(self) -> str:
        return f"{self.layer} ({self.where})" if self.where else self.layer


@dataclass(frozen=True, slots=True)
class FileLayer:
    """A layer that is a map in a YAML file; `prefix` is the key path of the map in messages."""

    name: str
    file: YamlFile
    prefix: KeyPath = ()


@dataclass(frozen=True, slots=True)
class TextLayer:
    """A layer of (option path, text, where) entries: the environment or the command line."""

    name: str
    entries: tuple[tuple[str, str, str], ...]


Layer = FileLayer | TextLayer


@dataclass(frozen=True, slots=True)
class Resolved:
    """All options, the settings of each provider, and the origin of every value by its path (`kubernetes.source`)."""

    options: Options
    providers: Mapping[str, Value]
    origins: Mapping[str, Origin]

    def rows(self) -> list[tuple[str, Any, str]]:
        """Return (path, value, origin) of every setting, sorted by path: what --show prints."""
        return [(path, origin.value, str(origin)) for path, origin in sorted(self.origins.items())]


def environment_layer(environment: Mapping[str, str]) -> TextLayer:
    """Return the layer of BUILD_IMAGE_KUBERNETES__SOURCE and its like; the words of a target are not options."""
    entries = []
    for name, text in sorted(environment.items()):
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if name.startswith(ENVIRONMENT_PREFIX) and name not in OTHER_VARIABLES and path not in TARGET_WORDS:
            entries.append((path, text, name))
    return TextLayer("environment", tuple(entries))


def command_layer(sets: Sequence[str]) -> TextLayer:
    """Return the layer of `--set KEY=VALUE`; raise ConfigError for an entry without `=`."""
    problems = [
        Problem(
            "the value is missing", f"--set {text}", "write --set KEY=VALUE, such as --set kubernetes.source=module"
        )
        for text in sets
        if not text.partition("=")[0].strip() or "=" not in text
    ]
    if problems:
        raise ConfigError(problems)
    pairs = [text.partition("=") for text in sets]
    return TextLayer("command line", tuple((key.strip(), value, f"--set {key.strip()}") for key, _, value in pairs))


def resolve_options(layers: Sequence[Layer], providers: Mapping[str, type[Value]]) -> Resolved:
    """Lay the layers over the defaults, the last one on top, and return the strict result.

    `providers` holds the settings model of each infrastructure. Maps such as `build.extra_vars` are merged key by
    key; lists are replaced. Raises ConfigError with every unknown option, wrong type and impossible value of all
    layers.
    """
    known = fields_of({"": Options, **providers})
    cascade = _Cascade(known, frozenset(providers))
    for layer in layers:
        cascade.add(layer)
    options = cascade.read("", Options)
    settings = {name: cascade.read(name, model) for name, model in providers.items()}
    if options is None or cascade.problems:
        raise ConfigError(cascade.problems)
    found = {name: value for name, value in settings.items() if value is not None}
    return Resolved(options, found, _origins(known, cascade.settings))


@dataclass(frozen=True, slots=True)
class _Setting:
    value: Any
    layer: str
    where: str
    text: str | None = None


class _Cascade:
    """Collects what the layers set, and what is wrong with them."""

    def __init__(self, known: Mapping[OptionPath, Field], providers: frozenset[str]) -> None:
        self.known = known
        self.providers = providers
        self.settings: dict[OptionPath, _Setting] = {}
        self.problems: list[Problem] = []
        self.groups = {path[:length] for path in known for length in range(1, len(path))}

    def add(self, layer: Layer) -> None:
        """Lay one layer on top of what is there."""
        if isinstance(layer, FileLayer):
            self._add_map(layer, layer.file.data, ())
            return
        for key, text, where in layer.entries:
            path = tuple(key.split("."))
            field = self._field(path, where)
            if field is not None:
                value = with_folder(field, parse_text(field.annotation, text), Path.cwd())
                self._set(path, _Setting(value, layer.name, where, text))

    def read(self, name: str, model: type[V]) -> V | None:
        """Return the model of the options, or of a provider's settings, out of what was set."""
        nested: dict[str, Any] = {}
        for path, setting in self.settings.items():
            if (path[0] in self.providers) != bool(name) or (name and path[0] != name):
                continue
            _put(nested, path[1:] if name else path, setting.value)
        prefix: OptionPath = (name,) if name else ()
        try:
            return model.model_validate_json(json.dumps(nested))
        except ValidationError as error:
            texts: dict[KeyPath, str] = {
                path[len(prefix) :]: s.text for path, s in self.settings.items() if s.text is not None
            }
            self.problems += problems_of(error, model, lambda path: self._where((*prefix, *path)), texts)
            return None

    def _add_map(self, layer: FileLayer, data: Mapping[str, Any], above: OptionPath) -> None:
        for key, value in data.items():
            path = (*above, key)
            where = _prefixed(layer, path)
            if path in self.groups:
                if isinstance(value, Mapping):
                    self._add_map(layer, value, path)
                elif value is not None:
                    hint = f"it is a group of options: {', '.join(self._below(path))}"
                    self.problems.append(Problem("expected a map of keys", where, hint))
                continue
            field = self._field(path, where)
            if field is None:
                continue
            if field.is_map and isinstance(value, Mapping):
                for name, item in value.items():
                    self._set((*path, name), _Setting(item, layer.name, _prefixed(layer, (*path, name))))
                continue
            text = layer.file.texts.get(path)
            self._set(path, _Setting(with_folder(field, value, layer.file.folder), layer.name, where, text))

    def _set(self, path: OptionPath, setting: _Setting) -> None:
        field = self.known.get(path)
        if field is not None and field.is_map:
            # A map given as a whole replaces the keys that lower layers gave.
            self.settings = {old: kept for old, kept in self.settings.items() if old[: len(path)] != path}
            if isinstance(setting.value, Mapping):
                for name, item in setting.value.items():
                    self.settings[(*path, name)] = _Setting(item, setting.layer, setting.where)
                return
        else:
            self.settings.pop(path[:-1], None)
        self.settings[path] = setting

    def _field(self, path: OptionPath, where: str) -> Field | None:
        """Return the option at a path, or None after noting why there is none."""
        if path in self.known:
            return self.known[path]
        if path[:-1] in self.known and self.known[path[:-1]].is_map:
            return self.known[path[:-1]].item
        if path in self.groups:
            example = ".".join([*path, self._below(path)[0]])
            self.problems.append(
                Problem("it is a group of options, not an option", where, f"set {example} and its like")
            )
        elif path[0] in LATER_WORDS:
            builds = ", ".join(sorted(self.providers))
            hint = f"it builds for {builds}; settings of other infrastructures come with their releases"
            self.problems.append(Problem(f"this version has no settings {path[0]!r}", where, hint))
        else:
            self.problems.append(Problem("unknown option", where, self._suggestion(path)))
        return None

    def _suggestion(self, path: OptionPath) -> str:
        if path[:-1] in self.groups:
            return did_you_mean(path[-1], self._below(path[:-1]))
        words = [".".join(known) for known in self.known]
        tops = sorted({known[0] for known in self.known})
        return did_you_mean(path[0], [*tops, *words]) if len(path) == 1 else did_you_mean(".".join(path), words)

    def _below(self, path: OptionPath) -> list[str]:
        size = len(path)
        return list(dict.fromkeys(known[size] for known in self.known if known[:size] == path and len(known) > size))

    def _where(self, path: KeyPath) -> str:
        for length in range(len(path), 0, -1):
            setting = self.settings.get(tuple(str(part) for part in path[:length]))
            if setting is not None:
                return setting.where + "".join(f".{part}" for part in path[length:])
        return ".".join(str(part) for part in path)


def _prefixed(layer: FileLayer, path: OptionPath) -> str:
    line = layer.file.where(path).partition(": ")[0]
    return f"{line}: {'.'.join(str(part) for part in (*layer.prefix, *path))}"


def _put(nested: dict[str, Any], path: OptionPath, value: Any) -> None:
    for key in path[:-1]:
        nested = nested.setdefault(key, {})
    nested[path[-1]] = value


def _origins(known: Mapping[OptionPath, Field], settings: Mapping[OptionPath, _Setting]) -> dict[str, Origin]:
    origins = {
        ".".join(path): Origin("default", "", field.default)
        for path, field in known.items()
        if not (field.is_map and any(set_path[: len(path)] == path for set_path in settings))
    }
    for path, setting in settings.items():
        place = setting.where.rpartition(": ")[0] or setting.where
        origins[".".join(path)] = Origin(setting.layer, place, setting.value)
    return origins
