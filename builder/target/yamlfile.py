"""YAML files as people write them: read once, with the line of every key, refusing what YAML 1.1 would misread."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from builder.core.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]
MAX_NODES = 100_000
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
MERGE = "tag:yaml.org,2002:merge"
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.CSafeLoader):
    """The safe C loader without timestamps: `2026-06-10` stays the text that stands there."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file's data, with the line (from 1) and the written text of every value, by key path."""

    name: str
    folder: Path = field(default_factory=Path)
    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    texts: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return `file:line: a.b.c` for a key path; the line of the nearest key above when it is not there."""
        words = ".".join(str(part) for part in path)
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}" + (f": {words}" if words else "")
        return f"{self.name}: {words}" if words else self.name

    def part(self, *path: str) -> YamlFile:
        """Return the map under a key path as a file of its own, so that a model of its own can read it.

        A value that is no map is kept under its last key, for the model to refuse.
        """
        found: Any = self.data
        for key in path:
            found = found[key]
        size = len(path)
        lines = {key[size:]: line for key, line in self.lines.items() if key[:size] == path}
        texts = {key[size:]: text for key, text in self.texts.items() if key[:size] == path}
        return YamlFile(self.name, self.folder, found, lines, texts)


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file whose top is a map; an empty file is an empty map.

    Raises ConfigError with every problem found: unreadable file, syntax (line and column), duplicate keys, keys
    that YAML reads as something else than text, numbers that are not what stands there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the file: {reason}", str(path)) from error
    return parse_yaml(text, str(path), path.absolute().parent)


def parse_yaml(text: str, name: str, folder: Path | None = None) -> YamlFile:
    """Read YAML text; `name` stands for it in messages. Raises ConfigError as `read_yaml` does."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile(name, folder or Path())
        walk = _Walk(name)
        walk.visit(node, (), ())
        if walk.problems:
            raise ConfigError(walk.problems)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("the top of the file is no map of keys", f"{name}:{node.start_mark.line + 1}")
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, name)) from error
    finally:
        loader.dispose()
    return YamlFile(name, folder or Path(), data, walk.lines, walk.texts)


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return Problem(
        f"not valid YAML: {problem}", where, "a tab, a missing blank after ':' or a quote is the usual cause"
    )


class _Walk:
    """One pass over the nodes of a file: lines, texts, and what must be refused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self.texts: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def visit(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> None:
        """Note a node and what is below it. `above` holds the nodes on the way here, to see a loop of aliases."""
        self.count += 1
        if id(node) in above or self.count > MAX_NODES:
            raise ConfigError("its aliases refer to themselves or grow without bound", self.place(node))
        self.lines.setdefault(path, node.start_mark.line + 1)
        inside = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index), inside)
        elif isinstance(node, yaml.MappingNode):
            self.mapping(node, path, inside)

    def mapping(self, node: yaml.MappingNode, path: KeyPath, inside: tuple[int, ...]) -> None:
        """Note the keys of a map; what a merge key brings in comes after them, as its weight is less."""
        first: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            word = self.key(key)
            if word is None:
                continue
            line = key.start_mark.line + 1
            if word in first:
                what = f"duplicate key {word!r}, first used in line {first[word]}"
                hint = "YAML would silently keep the last one; remove or rename one of them"
                self.problems.append(Problem(what, self.place(key), hint))
                continue
            first[word] = line
            self.lines.setdefault((*path, word), line)
            self.visit(value, (*path, word), inside)
        for base in merged:
            self.visit(base, path, inside)

    def key(self, node: yaml.Node) -> str | None:
        """Return the text of a key, or None after noting that it is not text for YAML."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        text = node.value if isinstance(node, yaml.ScalarNode) else "…"
        kind = {"bool": "true or false", "int": "a number", "float": "a number", "null": "nothing"}
        what = f"YAML reads the key {text} as {kind.get(node.tag.rpartition(':')[2], 'something else than text')}"
        self.problems.append(Problem(what, self.place(node), f"quote it: '{text}'"))
        return None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> None:
        """Keep the written text of a plain value; refuse a number that is not the one that stands there."""
        text = str(node.value)
        if node.style is None or node.style == "":
            self.texts.setdefault(path, text)
        kind = node.tag.rpartition(":")[2]
        if kind == "int" and not DECIMAL.fullmatch(text):
            hint = f"write a plain decimal number, or quote it: '{text}'"
            self.problems.append(Problem(f"YAML reads {text} as another number", self.place(node), hint))
        if kind == "float" and not _finite(text):
            self.problems.append(Problem(f"{text} is no number that can be used here", self.place(node)))

    def place(self, node: yaml.Node) -> str:
        """Return `file:line:column` of a node, both counted from 1."""
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _finite(text: str) -> bool:
    """Say whether a float is written as one; `.inf`, `.nan` and sexagesimal numbers (1:30.5) are not."""
    try:
        return math.isfinite(float(text.replace("_", "")))
    except ValueError:
        return False
