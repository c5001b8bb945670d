"""Where and with what the stages of one run are built; and how one Packer build is begun, or taken up again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder.build.accelerator import Accelerator
from builder.build.bootstrap import BootstrapSpec
from builder.build.job import Companion, Dead, NotStarted, end_orphans, state_of
from builder.build.packer import BuildSettings, Packer, build, validate
from builder.build.render import Content, Guest, StageFolder, StageInputs, Tree, render_stage
from builder.build.runfolder import RunFolder
from builder.core.paths import share
from builder.model.local import LocalRoute
from builder.target.options import Options


@dataclass(frozen=True, slots=True)
class Site:
    """The surroundings of the stages: the run, the tools, the caches, the user's wishes that are not content."""

    run: RunFolder
    packer: Packer
    accelerator: Accelerator
    route: LocalRoute
    options: Options
    cache: Path
    bootstrap: BootstrapSpec | None = None
    keep_on_failure: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    on_tick: Callable[[], None] = lambda: None

    def note(self, stage: str) -> Callable[[str], None]:
        """Return a function that notes a line for people under a stage."""
        return lambda text: self.run.note(stage, text)


def begun(folder: StageFolder) -> bool:
    """Say whether a build runs or has ended in this folder, so that it is waited for and not begun.

    What a shim left that was killed itself is ended and removed: half a build is no build.
    """
    state = state_of(folder.job)
    if isinstance(state, Dead):
        end_orphans(folder.job)
    if isinstance(state, Dead | NotStarted):
        shutil.rmtree(folder.path, ignore_errors=True)
        return False
    return True


def stage_inputs(
    site: Site, content: Content, folder: Path, machine: Guest | Tree, payload: Path | None = None
) -> StageInputs:
    """Return what a stage folder is rendered from."""
    return StageInputs(
        content=content,
        folder=folder,
        target_id=site.run.target_id,
        playbooks=share("playbooks"),
        events=site.run.events,
        machine=machine,
        user=site.options.build.user,
        payload=payload,
        apt_proxy=site.options.build.apt_proxy,
        secret_names=tuple(sorted(site.environment)),
        plugins=site.packer.plugins_for(content.lane),
    )


def render(site: Site, inputs: StageInputs) -> StageFolder:
    """Write a stage folder; Packer itself has looked at it when this returns."""
    folder = render_stage(inputs)
    validate(folder, site.packer)
    return folder


def build_stage(site: Site, folder: StageFolder, stage: str, companion: Companion | None = None) -> None:
    """Run the Packer build of a stage folder, or wait for the one that runs in it already."""
    settings = BuildSettings(
        stage=stage,
        events=site.run.events,
        env=site.environment,
        companions=(companion,) if companion else (),
        keep_on_failure=site.keep_on_failure,
    )
    build(folder, site.packer, settings, site.on_tick)
