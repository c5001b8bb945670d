"""Definitions: the built-in ones are sound; a faulty file is refused by its faults, all of all files at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.core.errors import ConfigError
from builder.core.paths import data
from builder.target.definitions import Compatibility, Definitions, load_definitions
from builder.target.version import parse_version
from builder.target.yamlfile import read_yaml
from providers.qemu.settings import OsFacts

FACTS = {"qemu": OsFacts}
OS_TEXT = (data("os") / "debian-12.yaml").read_text()
SERIES_TEXT = (data("kubernetes") / "1.34.yaml").read_text()


@pytest.fixture(scope="module")
def builtin() -> Definitions:
    return load_definitions(FACTS)


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        kind, _, stem = name.partition("__")
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{stem.replace('_', '.' if kind == 'kubernetes' else '-')}.yaml").write_text(text)
    return tmp_path


def refusal(root: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_definitions(FACTS, [root])
    return str(caught.value).replace(f"{root}/", "")


def test_the_built_in_definitions_load(builtin: Definitions) -> None:
    system = builtin.os["debian-12"]
    facts = system.infra["qemu"]
    assert isinstance(facts, OsFacts)
    assert facts.bootstrap is not None
    assert facts.bootstrap.suite == "bookworm"
    assert system.support.ends == "2028-06-30"
    assert list(builtin.kubernetes) == ["1.31", "1.32", "1.33", "1.34", "1.35"]


@pytest.mark.parametrize(
    ("version", "etcd", "coredns", "pause"),
    [
        ("v1.31.0", "3.5.15-0", "v1.11.1", "3.10"),
        ("v1.31.4", "3.5.15-0", "v1.11.3", "3.10"),
        ("v1.32.3", "3.5.16-0", "v1.11.3", "3.10"),
        ("v1.33.1", "3.5.21-0", "v1.12.0", "3.10"),
        ("v1.34.0-rc.1", "3.6.4-0", "v1.12.1", "3.10.1"),
        ("v1.34.1", "3.6.4-0", "v1.12.1", "3.10.1"),
        ("v1.34.3", "3.6.5-0", "v1.12.1", "3.10.1"),
        ("v1.34.3+vmware.1", "3.6.5-0", "v1.12.1", "3.10.1"),
        ("v1.35.4", "3.6.6-0", "v1.13.1", "3.10.1"),
    ],
)
def test_image_tags_by_patch_version(builtin: Definitions, version: str, etcd: str, coredns: str, pause: str) -> None:
    asked = parse_version(version)
    tags = builtin.kubernetes[asked.series].images_at(asked)
    assert (tags.etcd, tags.coredns, tags.pause) == (etcd, coredns, pause)


def test_containerd_reads_version_3_of_its_configuration_from_2_0_on(builtin: Definitions) -> None:
    schema = builtin.compatibility.config_schema
    assert [schema(version) for version in ("v1.6.20", "1.7.28", "v2.0.0", "v2.1.4", "")] == [2, 2, 3, 3, 2]
    assert isinstance(builtin.compatibility, Compatibility)


def test_every_default_containerd_is_tested_with_its_series(builtin: Definitions) -> None:
    for series in builtin.kubernetes.values():
        containerd = series.about.containerd
        line = ".".join(containerd.default.removeprefix("v").split(".")[:2])
        assert parse_version(containerd.default) >= parse_version(containerd.tested[line])


def test_every_fact_of_a_series_names_its_source() -> None:
    for path in data("kubernetes").glob("*.yaml"):
        file = read_yaml(path)
        assert all(step["source"] for step in file.data["images"])
        assert file.data["containerd"]["source"]


def test_a_user_folder_adds_and_overrides(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        os__debian_12=OS_TEXT.replace("title: Debian 12 (bookworm)", "title: Ours"),
        os__acme_1=OS_TEXT,
        kubernetes__1_36=SERIES_TEXT.replace("1.34", "1.36"),
    )
    found = load_definitions(FACTS, [root])
    assert found.os["debian-12"].about.title == "Ours"
    assert sorted(found.os) == ["acme-1", "debian-12"]
    assert list(found.kubernetes)[-1] == "1.36"


def test_all_faults_of_all_files_are_named_at_once(tmp_path: Path) -> None:
    faulty = OS_TEXT.replace('version: "12"', "version: 12.10").replace("suite:", "suit:")
    faulty = faulty.replace("kernel: linux-image-amd64", "kernel: no") + "  azur: {}\n"
    text = refusal(folder(tmp_path, os__acme_1=faulty, os__bad_2="title: a\ntitle: b\n", kubernetes__1_37=SERIES_TEXT))
    assert "os/acme-1.yaml:4: version: 12.10 is a number for YAML, expected text\n  -> quote it: '12.10'" in text
    assert "infra.qemu.bootstrap: the key 'suite' is missing" in text
    assert "infra.qemu.bootstrap.suit: unknown key\n  -> did you mean 'suite'?" in text
    assert "infra.qemu.bootstrap.kernel: YAML reads no as false, expected text\n  -> quote it: 'no'" in text
    assert "infra.azur: unknown infrastructure 'azur'\n  -> known: qemu" in text
    assert "os/bad-2.yaml:2:1: duplicate key 'title', first used in line 1" in text
    assert "kubernetes/1.37.yaml:2: series: the file's name and its series (1.34) must be the same" in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('series: "1.34"', "series: 1.34", "series: 1.34 is a number for YAML, expected text\n  -> quote it: '1.34'"),
        ('pause: "3.10.1"', "pause: 3.10", "images.0.pause: 3.10 is a number for YAML, expected text"),
        ("from: v1.34.2", "from: v1.33.2", "images.1.from: v1.33.2 is not of series 1.34"),
        ("from: v1.34.0", "from: v1.34.9", "images: the steps must stand in the order of their versions"),
        ("from: v1.34.2", "form: v1.34.2", "images.1.form: unknown key\n  -> did you mean 'from'?"),
        ("from: v1.34.2", "form: v1.34.2", "images.1: the key 'from' is missing"),
        ("from: v1.34.2", "from: 1.34", "images.1.from: 1.34 is a number for YAML, expected text"),
        ("status: derived", "status: guessed", "containerd.status: 'guessed' is not possible here"),
        ("  minimum: v1.6.36\n", "", "containerd: the key 'minimum' is missing"),
        ("minimum: v1.6.36", "minimum: 1.6.36", "containerd.minimum: '1.6.36': string should match pattern"),
        ("  tested:\n", "  tested: 5\n  x:\n", "containerd.tested: 5 is a number, expected a map of keys"),
    ],
)
def test_a_faulty_series_is_refused_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SERIES_TEXT
    assert words in refusal(folder(tmp_path, kubernetes__1_34=SERIES_TEXT.replace(old, new, 1)))


def test_a_folder_that_is_not_there_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_definitions(FACTS, [tmp_path / "gone"])
    with pytest.raises(ConfigError, match="neither os/ nor kubernetes/"):
        load_definitions(FACTS, [tmp_path])


def test_the_name_of_an_os_is_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "os").mkdir()
    (tmp_path / "os" / "Debian_12.yaml").write_text(OS_TEXT)
    assert "the file's name is the name of the OS" in refusal(tmp_path)
