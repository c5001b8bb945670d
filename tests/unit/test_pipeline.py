"""What the pipeline promises around its stages: all problems at once, times, nothing half done, nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder import pipeline
from builder.build.finish import prepare_output
from builder.build.runfolder import RunFolder
from builder.core.errors import BuildImageError, ConfigError, PreflightError, Problem
from builder.model.base import Value
from builder.model.local import LocalRoute
from builder.target.request import Ask
from builder.target.select import Models, Selection, select
from providers.qemu.settings import OsFacts, Settings, local_route

MODULES = ("kubernetes.source=module", "containerd.source=module", "cni.source=module", "cni.version=v1.8.0")


@dataclass(frozen=True)
class LackingProvider:
    """A machine without QEMU."""

    name: str = "qemu"
    settings_model: type[Value] = Settings
    facts_model: type[Value] = OsFacts

    def preflight(self, settings: Value) -> list[Problem]:
        return [Problem("qemu-system-x86_64 is not installed", "qemu.lane vm", "apt-get install qemu-system-x86")]

    def local_route(self, settings: Value, facts: Value) -> LocalRoute:
        assert isinstance(settings, Settings)
        assert isinstance(facts, OsFacts)
        return local_route(settings, facts)


@pytest.fixture
def selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Selection]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def make(*sets: str) -> Selection:
        return select(Ask("debian-12", "v1.34.3", "qemu", sets=sets), Models({"qemu": Settings}, {"qemu": OsFacts}))

    return make


def wishes(tmp_path: Path) -> pipeline.Wishes:
    return pipeline.Wishes(tmp_path / "state", tmp_path / "out")


def test_what_the_machine_lacks_and_what_the_sources_lack_comes_in_one_error(
    selected: Callable[..., Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "missing_space", lambda needs: [Problem("0 GiB free", ", ".join(map(str, needs)))])
    chosen = selected(*MODULES, "images.source=none", "base.source=image")
    with pytest.raises(PreflightError) as error:
        pipeline.resolve(chosen, LackingProvider(), wishes(tmp_path))
    told = str(error.value)
    assert "qemu-system-x86_64 is not installed" in told
    assert "0 GiB free" in told
    assert "base.source image needs a file" in told
    assert "base.source image needs its checksum" in told


def test_only_the_programs_of_what_is_asked_for_are_needed(
    selected: Callable[..., Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note_names(names: Sequence[str], _: str) -> list[Problem]:
        asked.extend(names)
        return []

    monkeypatch.setattr(pipeline, "missing_tools", note_names)
    pipeline.machine_problems(selected(*MODULES, "images.source=none"), wishes(tmp_path))
    assert "mmdebstrap" in asked
    assert "skopeo" not in asked
    asked.clear()
    pipeline.machine_problems(selected(*MODULES, "base.source=image"), wishes(tmp_path))
    assert asked == ["skopeo"]


def test_a_stage_says_when_it_began_why_and_how_it_ended(tmp_path: Path) -> None:
    clock = pipeline.Clock(RunFolder(tmp_path, "run", "target"))
    with clock.stage("base", "none was made yet"):
        pass
    with pytest.raises(KeyError), clock.stage("node", "it was asked for"):
        raise KeyError
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["stage"], row["data"].get("status")) for row in rows] == [
        ("stage_start", "base", None),
        ("stage_end", "base", "done"),
        ("stage_start", "node", None),
        ("stage_end", "node", "failed"),
    ]
    assert rows[0]["data"]["why"] == "none was made yet"
    assert [time.stage for time in clock.times] == ["base", "node"]


def test_a_folder_with_something_in_it_is_never_rendered_into(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="something in it already"):
        pipeline.render(None, tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_output_folder_that_cannot_be_made_is_told_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(BuildImageError, match="cannot be made"):
        prepare_output(tmp_path / "out", "target")
