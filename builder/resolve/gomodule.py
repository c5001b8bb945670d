"""Go modules that components are compiled from: facts, pins of the project, and go.mod files for other versions."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from builder.core import paths
from builder.core.cache import ensure_entry
from builder.core.digest import sha256_value, tree_digests
from builder.core.errors import BuildError, ConfigError, PreflightError, Problem, did_you_mean
from builder.core.run import Spec, run
from builder.model.base import Value
from builder.model.lock import Input
from builder.resolve.golang import Go, Runner
from builder.target.strict import load_model
from builder.target.yamlfile import read_yaml

VERSION = re.compile(r"^v?(?P<number>(?P<major>\d+)\.(?P<minor>\d+)\.(?P<patch>\d+).*)$")
PROXY_HINT = "GOPROXY must name a Go module proxy that has this version, and sum.golang.org must be reachable"
RESOLVE_SECONDS = 1800
ARCHITECTURES = ("amd64", "arm64")


class Component(Value):
    """What is compiled from one Go module; the fields are explained in builder/data/modules.yaml."""

    module: str
    folder: str
    commands: dict[str, str]
    also: tuple[str, ...] = ()
    staging: str = ""
    ldflags: tuple[str, ...] = ()


class ModuleImage(Value):
    """What a container image holds: {path in the image: command of the component}, packages beside them, and links."""

    component: str
    files: dict[str, str]
    entrypoint: tuple[str, ...] = ()
    root: tuple[str, ...] = ()
    links: dict[str, str] = Field(default_factory=dict)


class ModuleFacts(Value):
    """builder/data/modules.yaml."""

    components: dict[str, Component] = Field(min_length=1)
    images: dict[str, ModuleImage]


@dataclass(frozen=True, slots=True)
class ModulePin:
    """A component at one version: the folder of its go.mod and go.sum, and the sha256 over them (hex)."""

    component: str
    version: str
    folder: Path
    digest: str

    @property
    def lock_input(self) -> Input:
        """The pin as an entry of the lock."""
        return Input(name=self.component, kind="module", version=self.version, digest=f"sha256:{self.digest}")


@functools.cache
def module_facts() -> ModuleFacts:
    """Return the facts of modules.yaml; raise ConfigError when the file does not fit its model."""
    file = paths.PACKAGE / "data" / "modules.yaml"
    facts = load_model(ModuleFacts, read_yaml(file))
    problems = [
        Problem(f"image {name} names {command!r}, which {image.component!r} does not have", str(file))
        for name, image in facts.images.items()
        for command in image.files.values()
        if image.component not in facts.components or command not in facts.components[image.component].commands
    ]
    if problems:
        raise ConfigError(problems)
    return facts


def component_of(name: str) -> Component:
    """Return the facts of a component by name; raise ConfigError with the nearest name otherwise."""
    components = module_facts().components
    if name not in components:
        raise ConfigError(f"no Go module is known for {name!r}", hint=did_you_mean(name, list(components)))
    return components[name]


def expand(template: str, version: str) -> str:
    """Fill {version}, {number}, {major}, {minor}, {patch} of a template; raise ConfigError on a version like 1.34."""
    match = VERSION.match(version)
    if match is None:
        raise ConfigError(f"{version!r} is not a version such as v1.34.3")
    return template.format(version=f"v{match['number']}", **match.groupdict())


def pinned(name: str, version: str = "") -> ModulePin | None:
    """Return the project's own pin of a component, or None when tools/ has none of this version.

    Without a version: the one that its go.mod requires, for components of which the project pins exactly one.
    """
    facts = component_of(name)
    single = "{" not in facts.folder
    if not version and not single:
        raise ConfigError(f"{name} needs a version")
    folder = paths.share("tools") / (facts.folder if single else expand(facts.folder, version))
    if not (folder / "go.mod").is_file():
        return None
    required = re.search(rf"^require {re.escape(facts.module)} (\S+)", (folder / "go.mod").read_text(), re.MULTILINE)
    if single and required and version and version != required[1]:
        return None
    return ModulePin(name, version or (required[1] if required else ""), folder, _digest(folder))


def module_pin(name: str, version: str, go: Go, runner: Runner = run) -> ModulePin:
    """Return the pin of a component at any version.

    The project's own where there is one. Otherwise go.mod is written from upstream's and its go.sum filled from the
    module proxy, checked against the checksum database, once per machine: kept in the cache, so that the same
    version means the same bytes from then on. Raises PreflightError when the proxy has no such version.
    """
    own = pinned(name, version)
    if own is not None:
        return own
    place = paths.cache_home() / "gomod" / name / expand("{version}", version)
    ensure_entry(place, "go.sum", lambda work: _fill(name, version, work, _GoTool(go, runner)))
    return ModulePin(name, version, place, _digest(place))


def go_mod_text(name: str, version: str, upstream: str) -> str:
    """Return a go.mod that builds the commands of a component at a version, from the text of upstream's go.mod.

    A dependent module cannot use the folders that upstream puts in place of its own modules; `staging` names the
    releases that are published from these folders (https://github.com/kubernetes/kubernetes/tree/master/staging).
    The go line and the godebug lines decide how the standard library behaves: they stay upstream's.
    """
    facts = component_of(name)
    release = expand("{version}", version)
    language = re.search(r"^go (\S+)", upstream, re.MULTILINE)
    if language is None:
        raise PreflightError(f"the go.mod of {facts.module} {release} has no go line")
    debug = re.findall(r"^godebug (?!\()(\S+)", upstream, re.MULTILINE)
    for block in re.findall(r"^godebug \((.*?)^\)", upstream, re.MULTILINE | re.DOTALL):
        debug += [line.split("//")[0].strip() for line in block.splitlines() if line.split("//")[0].strip()]
    lines = [f"module build-image/tools/{name}", "", f"go {language[1]}", ""]
    lines += _block("godebug", debug)
    lines += _block("tool", sorted(facts.commands.values()))
    lines += _block("require", [f"{module} {release}" for module in sorted([facts.module, *facts.also])])
    if facts.staging:
        published = expand(facts.staging, version)
        local = re.findall(r"^\s*(?:replace )?(\S+) => \./staging/", upstream, re.MULTILINE)
        lines += _block("replace", [f"{module} => {module} {published}" for module in local])
    return "\n".join(lines)


def go_environment(arch: str = "amd64") -> dict[str, str]:
    """Return the variables that make a Go command depend on its arguments alone, not on the caller's settings."""
    return {
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GO111MODULE": "on",
        "GOOS": "linux",
        "GOARCH": arch,
        "GOAMD64": "v1",
        "GOARM64": "v8.0",
        "CGO_ENABLED": "0",
    }


@dataclass(frozen=True, slots=True)
class _GoTool:
    go: Go
    runner: Runner

    def __call__(self, folder: Path, arguments: Sequence[str], what: str, arch: str = "amd64") -> str:
        spec = Spec(cwd=folder, env=go_environment(arch), timeout=RESOLVE_SECONDS, what=what, hint=PROXY_HINT)
        try:
            return self.runner([self.go.path, *arguments], spec).stdout
        except BuildError as error:
            raise PreflightError(error.problems) from error

    def download(self, folder: Path, wanted: str) -> Path:
        """Return the go.mod of a module at a version, such as `k8s.io/kubernetes@v1.34.3`, downloaded when needed."""
        spec = Spec(cwd=folder, env=go_environment(), timeout=RESOLVE_SECONDS, check=False)
        done = self.runner([self.go.path, "mod", "download", "-json", wanted], spec)
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"Error": "\n".join(done.tail) or "go mod download says nothing"}
        if done.returncode or "Error" in answer:
            reason = " ".join(str(answer.get("Error", "")).split()).removeprefix(f"{wanted}: ")
            raise PreflightError(f"the module cannot be had at this version: {reason}", wanted, PROXY_HINT)
        return Path(answer["GoMod"])


def _fill(name: str, version: str, work: Path, tool: _GoTool) -> None:
    facts, release = component_of(name), expand("{version}", version)
    what = f"resolution of {facts.module} {release}"
    (work / "go.mod").write_text("module build-image/tools/unknown\n")
    upstream = tool.download(work, f"{facts.module}@{release}")
    (work / "go.mod").write_text(go_mod_text(name, version, upstream.read_text()))
    for arch in ARCHITECTURES:
        tool(work, ["list", "-mod=mod", "-deps", "-f", "{{/* nothing */}}", *facts.commands.values()], what, arch)


def _block(word: str, entries: Sequence[str]) -> list[str]:
    if len(entries) < 2:
        return [*(f"{word} {entry}" for entry in entries), *([""] if entries else [])]
    return [f"{word} (", *(f"\t{entry}" for entry in entries), ")", ""]


def _digest(folder: Path) -> str:
    files: Mapping[str, str] = tree_digests(folder, sorted(folder.glob("go.*")) + sorted(folder.glob("*.go")))
    return sha256_value(dict(files))
