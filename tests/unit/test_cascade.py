"""The cascade: layer over layer, every value with its origin, every mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core.errors import ConfigError
from builder.target.cascade import (
    FileLayer,
    Layer,
    Resolved,
    command_layer,
    environment_layer,
    resolve_options,
)
from builder.target.fields import fields_of, parse_text
from builder.target.options import Options
from builder.target.yamlfile import parse_yaml
from providers.qemu.settings import Settings

PROVIDERS = {"qemu": Settings}
SITE = Path("/srv/site")


def site(text: str) -> FileLayer:
    return FileLayer("site file", parse_yaml(text, "site.yaml", SITE))


def resolve(*layers: Layer) -> Resolved:
    return resolve_options(layers, PROVIDERS)


def refusal(*layers: Layer) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*layers)
    return str(caught.value)


def test_without_layers_everything_is_a_default() -> None:
    found = resolve()
    assert found.options == Options()
    assert found.providers == {"qemu": Settings()}
    assert {origin.layer for origin in found.origins.values()} == {"default"}
    assert ("kubernetes.source", "packages", "default") in found.rows()


def test_the_highest_layer_wins_and_every_value_knows_where_it_is_from() -> None:
    system = FileLayer(
        "OS file", parse_yaml("options: {disk: {size_gib: 5}}\n", "os.yaml").part("options"), ("options",)
    )
    found = resolve(
        system,
        site("kubernetes:\n  source: url\ndisk: {size_gib: 6}\nqemu: {cpus: 4}\n"),
        environment_layer({"BUILD_IMAGE_DISK__SIZE_GIB": "7", "BUILD_IMAGE_STATE": "/x", "BUILD_IMAGE_K8S": "v1.34.3"}),
        command_layer(["disk.size_gib=8", "disk.size_gib=9"]),
    )
    assert found.options.disk.size_gib == 9
    assert str(found.origins["disk.size_gib"]) == "command line (--set disk.size_gib)"
    assert str(found.origins["kubernetes.source"]) == "site file (site.yaml:2)"
    assert found.origins["qemu.cpus"].value == 4
    assert str(resolve(system).origins["disk.size_gib"]) == "OS file (os.yaml:1)"


def test_text_stays_text_whatever_it_looks_like() -> None:
    found = resolve(command_layer(["containerd.version=2.1", "build.extra_vars.version=1.30", "build.apt_proxy=yes"]))
    assert found.options.containerd.version == "2.1"
    assert found.options.build.extra_vars == {"version": "1.30"}
    assert found.options.build.apt_proxy == "yes"


@pytest.mark.parametrize(
    ("entry", "path", "value"),
    [
        ("base.packages=vim, nano", "base.packages", ["vim", "nano"]),
        ("base.packages=[vim, 'a,b']", "base.packages", ["vim", "a,b"]),
        ("base.packages=", "base.packages", []),
        ("base.secure_boot=yes", "base.secure_boot", True),
        ("base.max_age_days=0", "base.max_age_days", 0),
        ("images.archives=", "images.archives", None),
        ("images.archives=arch", "images.archives", str(Path.cwd() / "arch")),
        ("build.extra_vars.flag=true", "build.extra_vars.flag", True),
        ("build.extra_vars.ports=[a, b]", "build.extra_vars.ports", ["a", "b"]),
        ("build.extra_vars={a: 1, b: x}", "build.extra_vars.b", "x"),
        ("kubernetes.url=https://x/y?a=b", "kubernetes.url", "https://x/y?a=b"),
    ],
)
def test_text_is_read_by_the_type_of_the_option(entry: str, path: str, value: object) -> None:
    assert resolve(command_layer([entry])).origins[path].value == value


def test_maps_are_merged_key_by_key_and_lists_are_replaced() -> None:
    low, high = site("build: {extra_vars: {a: 1, b: 2}}\nbase: {packages: [x, y]}\n"), command_layer
    found = resolve(low, high(["build.extra_vars.b=3", "base.packages=z"]))
    assert found.options.build.extra_vars == {"a": 1, "b": 3}
    assert found.options.base.packages == ("z",)
    assert resolve(low, high(["build.extra_vars={c: 1}"])).options.build.extra_vars == {"c": 1}


def test_paths_in_a_file_are_relative_to_it_and_urls_are_not_touched() -> None:
    found = resolve(
        site("images: {archives: a, extra_archives: [b, /c]}\nkubernetes: {url: bin}\nbase: {url: http://x/d}\n")
    ).options
    assert found.images.archives == SITE / "a"
    assert found.images.extra_archives == (SITE / "b", Path("/c"))
    assert found.kubernetes.url == "/srv/site/bin"
    assert found.base.url == "http://x/d"


def test_all_mistakes_of_all_layers_at_once() -> None:
    text = refusal(
        site("kubernetes: {sorce: url}\ncontainerd:\n  version: 2.10\n  source: modul\nqemu: {memory_mb: 4, cpus: 0}"),
        environment_layer({"BUILD_IMAGE_DISK__SIZE_GIB": "2", "BUILD_IMAGE_KUBERNETS__SOURCE": "url"}),
        command_layer(["qemu.lane=tre", "base.secure_boot=maybe", "base.max_age_days=1.5"]),
    )
    for words in (
        "site.yaml:1: kubernetes.sorce: unknown option\n  -> did you mean 'source'?",
        "site.yaml:3: containerd.version: 2.10 is a number for YAML, expected text\n  -> quote it: '2.10'",
        "site.yaml:4: containerd.source: 'modul' is not possible here\n  -> did you mean 'module'?",
        "site.yaml:5: qemu.memory_mb: unknown option\n  -> did you mean 'memory_mib'?",
        "site.yaml:5: qemu.cpus: 0: input should be greater than or equal to 1",
        "BUILD_IMAGE_DISK__SIZE_GIB: 2: input should be greater than or equal to 3",
        "BUILD_IMAGE_KUBERNETS__SOURCE: unknown option\n  -> did you mean 'kubernetes.source'?",
        "--set qemu.lane: 'tre' is not possible here\n  -> did you mean 'tree'?",
        "--set base.secure_boot: 'maybe' is text, expected true or false",
        "--set base.max_age_days: '1.5' is text, expected a whole number",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kubernets: {}\n", "site.yaml:1: kubernets: unknown option\n  -> did you mean 'kubernetes'?"),
        ("disk: 5\n", "site.yaml:1: disk: expected a map of keys\n  -> it is a group of options: size_gib"),
        ("destinations: {}\n", "destinations: this version has no settings 'destinations'"),
        ("aws: {region: x}\n", "aws: this version has no settings 'aws'\n  -> it builds for qemu"),
        ("base: {packages: vim}\n", "base.packages: 'vim' is text, expected a list"),
        ("base: {packages: [vim, 1]}\n", "base.packages.1: 1 is a number for YAML, expected text"),
        ("base: {packages: [{a: b}]}\n", "base.packages.0: the value is a map of keys, expected text"),
        ("base: {sha256: abc}\n", "base.sha256: 'abc': string should match pattern"),
        ("build: {extra_vars: {a: 1.5}}\n", "build.extra_vars.a: the value has none of the types it may have"),
        ("build: {extra_vars: {a: [x, {b: c}]}}\n", "build.extra_vars.a: the value has none of the types"),
        ("build: {extra_vars: [a]}\n", "build.extra_vars: the value is a list, expected a map of keys"),
        ("build: {apt_proxy: yes}\n", "build.apt_proxy: YAML reads yes as true, expected text\n  -> quote it: 'yes'"),
        ("build: {apt_proxy: }\n", "build.apt_proxy: the value is empty, expected text"),
        ("build: {user: Bad}\n", "build.user: 'Bad': string should match pattern"),
    ],
)
def test_a_mistake_in_a_site_file_is_named_with_its_line(text: str, words: str) -> None:
    assert words in refusal(site(text))


def test_variables_of_other_purposes_are_no_options_and_a_misspelt_one_is_named() -> None:
    others = ("STATE", "PACKER", "JOB", "EVENTS", "STAGE", "SECRETS", "TEST_IMAGE", "OS")
    assert environment_layer({"HOME": "/", **{f"BUILD_IMAGE_{name}": "x" for name in others}}).entries == ()
    text = refusal(environment_layer({"BUILD_IMAGE_KUBERNETES_SOURCE": "url"}))
    assert "BUILD_IMAGE_KUBERNETES_SOURCE: unknown option\n  -> did you mean 'kubernetes.source'?" in text


def test_an_empty_group_is_nothing() -> None:
    assert resolve(site("disk:\n")).options == Options()


def test_a_group_cannot_be_set_as_text() -> None:
    assert "--set disk: it is a group of options, not an option\n  -> set disk.size_gib" in refusal(
        command_layer(["disk=5"])
    )


def test_a_key_below_a_map_that_was_given_as_something_else() -> None:
    found = resolve(command_layer(["build.extra_vars=5", "build.extra_vars.a=1"]))
    assert found.options.build.extra_vars == {"a": 1}


@pytest.mark.parametrize("entry", ["kubernetes.source", "=module", " =x"])
def test_an_entry_without_key_or_value_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="write --set KEY=VALUE"):
        command_layer([entry])


def test_every_option_is_declared_content_or_placement() -> None:
    assert {field.kind for field in fields_of({"": Options, **PROVIDERS}).values()} == {"content", "placement"}


@given(st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_of_any_layers_the_last_one_that_sets_a_value_wins(order: list[int], setting: set[int]) -> None:
    layers = [command_layer([f"disk.size_gib={10 + n}"] if n in setting else ["qemu.cpus=1"]) for n in order]
    winners = [n for n in order if n in setting]
    assert resolve(*layers).options.disk.size_gib == (10 + winners[-1] if winners else 8)


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_left_to_the_model(text: str) -> None:
    assert parse_text(str, text) == text
    assert parse_text(bool, text) in (True, False, text)
    for field in fields_of({"": Options, **PROVIDERS}).values():
        parse_text(field.annotation, text)
