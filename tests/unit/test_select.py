"""From words to one target: suggestions for what is unknown, named rules for what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from builder.core.errors import ConfigError
from builder.core.paths import data
from builder.target.components import components_of
from builder.target.request import Ask
from builder.target.select import Models, Selection, select, selection_rows
from providers.qemu.settings import OsFacts, Settings

MODELS = Models({"qemu": Settings}, {"qemu": OsFacts})
OS_TEXT = (data("os") / "debian-12.yaml").read_text()
FITTING = ("containerd.source=module",)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def refusal(ask: Ask, models: Models = MODELS) -> str:
    with pytest.raises(ConfigError) as caught:
        select(ask, models)
    return str(caught.value)


def chosen(*sets: str, k8s: str = "v1.34.3") -> Selection:
    return select(Ask("debian-12", k8s, "qemu", sets=sets), MODELS)


def site(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


def test_words_of_the_command_line() -> None:
    found = select(Ask("debian-12", "1.34.3", "qemu", sets=FITTING), MODELS)
    assert found.target.id == "debian-12-v1.34.3-qemu"
    assert found.options.containerd.source == "module"
    assert isinstance(found.settings, Settings)
    assert isinstance(found.facts, OsFacts)
    assert found.warnings == ()
    assert selection_rows(found)[1] == ("k8s", "1.34.3", "command line (--k8s)")


def test_the_command_line_stands_over_the_environment_over_the_site_file(tmp_path: Path) -> None:
    path = site(tmp_path, "os: nothing\nk8s: v1.33.1\ninfra: qemu\ncontainerd: {source: url}\n")
    environment = {"BUILD_IMAGE_OS": "debian-12", "BUILD_IMAGE_K8S": "v1.33.2"}
    found = select(Ask(config=path, environment=environment), MODELS)
    assert found.target.id == "debian-12-v1.33.2-qemu"
    assert [str(origin) for origin in found.words.values()] == [
        "environment (BUILD_IMAGE_OS)",
        "environment (BUILD_IMAGE_K8S)",
        f"site file ({path}:3: infra)",
    ]
    ask = Ask(kubernetes="v1.33.3", config=path, environment=environment)
    assert select(ask, MODELS).target.kubernetes == "v1.33.3"


def test_a_site_file_in_its_usual_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "build-image.yaml").write_text("containerd: {source: url}\n")
    found = select(Ask("debian-12", "v1.34.3", "qemu"), MODELS)
    assert str(found.resolved.origins["containerd.source"]) == "site file (build-image.yaml:1)"


def test_unknown_words_get_suggestions_all_at_once() -> None:
    text = refusal(Ask("debain-12", "1.34", "quemu", sets=("kubernetes.sorce=url",)))
    for words in (
        "--os: unknown operating system 'debain-12'\n  -> did you mean 'debian-12'?",
        "--k8s: '1.34' is a series, not a version\n  -> write the full version, such as v1.34.0",
        "--infra: unknown infrastructure 'quemu'\n  -> did you mean 'qemu'?",
        "--set kubernetes.sorce: unknown option\n  -> did you mean 'source'?",
    ):
        assert words in text


def test_missing_words_are_asked_for_with_what_is_known() -> None:
    text = refusal(Ask())
    assert "--os: no operating system is named\n  -> known: debian-12" in text
    assert "--k8s: no Kubernetes version is named\n  -> write it like v1.34.3" in text
    assert "--infra: no infrastructure is named\n  -> known: qemu" in text


def test_a_kubernetes_version_that_yaml_reads_as_a_number_is_refused(tmp_path: Path) -> None:
    path = site(tmp_path, "os: debian-12\nk8s: 1.30\ninfra: qemu\n")
    assert f"{path}:2: k8s: 1.30 is a number for YAML, expected text\n  -> quote it: '1.30'" in refusal(
        Ask(config=path)
    )


def test_a_series_without_definition_says_how_to_add_one() -> None:
    text = refusal(Ask("debian-12", "v1.99.0", "qemu"))
    assert "--k8s: no definition of the Kubernetes series 1.99" in text
    assert "kubernetes/1.99.yaml in --definitions" in text


def test_a_pair_that_is_not_supported_is_named(tmp_path: Path) -> None:
    class Other(Settings):
        pass

    models = Models({"qemu": Settings, "cloud": Other}, {"qemu": OsFacts, "cloud": OsFacts})
    text = refusal(Ask("debian-12", "v1.34.3", "cloud"), models)
    assert "--infra: debian-12 cannot be built for cloud\n  -> debian-12 has facts for: qemu" in text


def test_a_broken_definition_and_a_wrong_option_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "os").mkdir()
    (tmp_path / "os" / "acme-1.yaml").write_text(OS_TEXT.replace("codename", "codname"))
    text = refusal(Ask("acme-1", "v1.34.3", "qemu", sets=("disk.size=4",), definitions=(tmp_path,)))
    assert "codname: unknown key\n  -> did you mean 'codename'?" in text
    assert "--set disk.size: unknown option" in text


def test_options_of_an_os_file_are_a_layer(tmp_path: Path) -> None:
    (tmp_path / "os").mkdir()
    (tmp_path / "os" / "acme-1.yaml").write_text(
        OS_TEXT + "options:\n  containerd: {source: url}\n  disk: {size_gib: 9}\n"
    )
    found = select(Ask("acme-1", "v1.34.3", "qemu", definitions=(tmp_path,)), MODELS)
    assert found.options.disk.size_gib == 9
    assert found.resolved.origins["disk.size_gib"].layer == "OS file"
    (tmp_path / "os" / "acme-1.yaml").write_text(OS_TEXT + "options:\n  disk: {size: 9}\n")
    text = refusal(Ask("acme-1", "v1.34.3", "qemu", sets=FITTING, definitions=(tmp_path,)))
    assert "options.disk.size: unknown option" in text


def test_debian_12_has_a_containerd_that_is_too_old_for_1_34() -> None:
    text = refusal(Ask("debian-12", "v1.34.3", "qemu"))
    assert "rule containerd-minimum: containerd v1.6.20 of debian-12's packages is too old for Kubernetes 1.34" in text
    assert "-> --set containerd.source=module --set containerd.version=v2.1.4" in text


@pytest.mark.parametrize(
    ("k8s", "sets", "rule"),
    [
        ("v1.33.1", (), "rule containerd-tested: containerd v1.6.20 of debian-12's packages is older than v1.6.36"),
        ("v1.34.3", ("containerd.source=url", "containerd.version=2.1.2"), "rule containerd-tested: containerd v2.1.2"),
        ("v1.35.4", ("containerd.source=url", "containerd.version=v2.0.9"), "of a line that is not tested"),
        ("v1.34.1", ("containerd.source=url", "kubernetes.source=module"), "rule self-built: kubeadm's HTTPProxyCIDR"),
    ],
)
def test_what_nobody_tested_is_a_named_warning(k8s: str, sets: tuple[str, ...], rule: str) -> None:
    warnings = chosen(*sets, k8s=k8s).warnings
    assert len(warnings) == 1
    assert rule in str(warnings[0])
    assert warnings[0].hint


@pytest.mark.parametrize(
    ("sets", "rule"),
    [
        (("containerd.version=v2.1.4",), "rule version-of-source: containerd.source packages decides the version"),
        ((*FITTING, "cni.version=v1.8.0"), "rule version-of-source: cni.source packages"),
        ((*FITTING, "crictl.version=v1.34.0"), "rule version-of-source: crictl.source auto"),
        ((*FITTING, "crictl.source=packages", "kubernetes.source=url"), "rule crictl-packages"),
    ],
)
def test_what_cannot_work_is_refused_by_a_named_rule(sets: tuple[str, ...], rule: str) -> None:
    assert rule in refusal(Ask("debian-12", "v1.34.3", "qemu", sets=sets))


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (FITTING, {"containerd": "v2.1.4", "containerd_config": 3, "cni": "v1.1.1", "crictl_source": "packages"}),
        ((*FITTING, "kubernetes.source=module"), {"crictl_source": "none", "crictl": ""}),
        ((*FITTING, "crictl.source=url"), {"crictl_source": "url", "crictl": "v1.34.0"}),
        ((*FITTING, "cni.source=module"), {"cni": "v1.7.1"}),
        ((*FITTING, "cni.source=url", "cni.version=1.8.0"), {"cni": "v1.8.0"}),
        (("containerd.source=url", "containerd.version=1.7.28"), {"containerd": "v1.7.28", "containerd_config": 2}),
    ],
)
def test_components_of_a_build(sets: tuple[str, ...], expected: Mapping[str, object]) -> None:
    found = chosen(*sets)
    parts = components_of(found.options, found.system, found.series, found.version, found.definitions.compatibility)
    assert {name: getattr(parts, name) for name in expected} == expected
    assert parts.pause_image("registry.k8s.io") == "registry.k8s.io/pause:3.10.1"
