"""What a person types: the commands, their exit codes, all problems at once, data on stdout and talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import __version__
from builder.cli.main import main
from builder.cli.run import result_text
from builder.core.errors import ExitCode
from builder.model.artifact import Contents, Manifest, Member, StageTime
from builder.model.lock import Lock
from builder.model.target import Target

Run = Callable[..., tuple[int, str, str]]
TARGET = ("--os", "debian-12", "--k8s", "v1.34.3", "--infra", "qemu")
MODULES = ("--config", str(Path(__file__).resolve().parents[2] / "examples/modules.yaml"))


@pytest.fixture
def build_image(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the command line and gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["build-image", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_without_words_it_explains_itself(build_image: Run) -> None:
    code, out, _ = build_image()
    assert code == ExitCode.USAGE
    assert "Usage: build-image" in out


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_option_and_command(build_image: Run, word: str) -> None:
    code, out, _ = build_image(word)
    assert code == 0
    words = "--os --k8s --infra --dry-run --show --set --config --output --state --keep-on-failure --json --verbose"
    assert [name for name in [*words.split(), "render", "doctor", "version"] if name not in out] == []


def test_version_as_text_and_as_data(build_image: Run) -> None:
    assert build_image("version") == (0, f"build-image {__version__}\n", "")
    assert json.loads(build_image("version", "--json")[1]) == {"version": __version__}


def test_all_mistakes_are_told_at_once(build_image: Run, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("kubernetes:\n  sorce: module\ndisk:\n  size_gib: big\n")
    words = ("--os", "debian-21", "--k8s", "v1.34.3", "--infra", "qemo", "--config", "site.yaml")
    code, out, err = build_image(*words, "--set", "qemu.lane=tre", "--dry-run")
    assert code == ExitCode.USAGE
    assert out == ""
    assert "did you mean 'debian-12'?" in err
    assert "did you mean 'qemu'?" in err
    assert "did you mean 'source'?" in err
    assert "site.yaml:4" in err
    assert "qemu.lane" in err
    assert err.count("error:") == 5


def test_a_version_that_yaml_read_as_a_number_is_refused_with_the_reason(build_image: Run, tmp_path: Path) -> None:
    (tmp_path / "build-image.yaml").write_text("os: debian-12\nk8s: 1.30\ninfra: qemu\n")
    code, _, err = build_image("--show")
    assert code == ExitCode.USAGE
    assert "build-image.yaml:2" in err
    assert "1.30" in err
    assert "quote" in err


def test_a_definition_file_with_mistakes_is_refused_with_lines(build_image: Run, tmp_path: Path) -> None:
    (tmp_path / "more/os").mkdir(parents=True)
    (tmp_path / "more/os/debian-14.yaml").write_text("title: a\ntitle: b\nos_famly: debian\n")
    code, _, err = build_image(*TARGET, "--definitions", "more", "--show")
    assert code == ExitCode.USAGE
    assert "debian-14.yaml:2" in err


def test_a_component_too_old_for_the_version_is_refused_with_the_way_out(build_image: Run) -> None:
    code, _, err = build_image(*TARGET, "--dry-run")
    assert code == ExitCode.USAGE
    assert "containerd" in err
    assert "1.6.20" in err
    assert "containerd.source" in err


def test_show_prints_every_option_with_its_origin(build_image: Run) -> None:
    code, out, _ = build_image(*TARGET, *MODULES, "--set", "disk.size_gib=20", "--show", "--json")
    assert code == 0
    rows = {row["option"]: row for row in json.loads(out)}
    assert rows["disk.size_gib"]["value"] == 20
    assert rows["disk.size_gib"]["origin"].startswith("command line")
    assert "modules.yaml" in rows["kubernetes.source"]["origin"]
    assert rows["images.registry"]["origin"] == "default"


def test_options_before_a_sub_command_are_not_lost_silently(build_image: Run) -> None:
    code, _, err = build_image("--os", "debian-12", "render", "folder")
    assert code == ExitCode.USAGE
    assert "build-image render --os" in err


def test_an_unknown_option_is_a_usage_error(build_image: Run) -> None:
    assert build_image("--oss", "debian-12")[0] == ExitCode.USAGE


def manifest() -> Manifest:
    target = Target(os="debian-12", kubernetes="v1.34.3", infra="qemu")
    return Manifest(
        tool_version="0",
        target=target,
        run_id="r",
        created_at="",
        lane="vm",
        accelerator="tcg",
        fingerprint="f",
        base_fingerprint="b",
        lock=Lock(target=target, flavour="self-built", inputs=()),
        contents=Contents(kernel="6.1", packages=(), components={}, images=()),
        members=(Member(name="disk.qcow2", format="qcow2", size=3 << 20, sha256="ab"),),
        stages=(StageTime(stage="base", seconds=60.0), StageTime(stage="node", seconds=30.5)),
    )


def test_the_result_says_where_how_large_which_digest_and_how_long(tmp_path: Path) -> None:
    text = result_text(manifest(), tmp_path)
    assert str(tmp_path / "disk.qcow2") in text
    assert "3 MiB, sha256 ab" in text
    assert "base 60 s, node 30 s; 90 s in all" in text


def test_a_manifest_reads_back_as_it_was_written() -> None:
    assert Manifest.model_validate_json(manifest().model_dump_json()) == manifest()
