"""The commands about one target: show its options, print its plan, render its folder, build it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from builder import pipeline
from builder.build.planning import Planned
from builder.build.progress import shown
from builder.core.paths import state_home
from builder.model.artifact import Manifest
from builder.model.plan import Plan
from builder.provider import Provider
from builder.target.request import Request
from builder.target.select import Models, Selection, select, selection_rows
from providers import PROVIDERS


def choose(request: Request) -> tuple[Selection, Provider]:
    """Return the selection and its provider; warnings go to stderr."""
    models = Models(
        settings={name: provider.settings_model for name, provider in PROVIDERS.items()},
        facts={name: provider.facts_model for name, provider in PROVIDERS.items()},
    )
    ask = replace(request.ask, environment=dict(os.environ))
    selection = select(ask, models)
    for warning in selection.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return selection, PROVIDERS[selection.target.infra]


def wishes(request: Request) -> pipeline.Wishes:
    """Return what is wanted beside the content of the image."""
    return pipeline.Wishes(state_home(request.state), request.output, request.keep_on_failure)


def show_command(request: Request) -> None:
    """Print every option with its value and origin."""
    selection, _ = choose(request)
    rows = selection_rows(selection)
    if request.json:
        print_json([{"option": path, "value": value, "origin": origin} for path, value, origin in rows])
        return
    texts = [(path, json.dumps(value, default=str), origin) for path, value, origin in rows]
    widths = [max(len(row[column]) for row in texts) for column in (0, 1)]
    for path, value, origin in texts:
        typer.echo(f"{path:<{widths[0]}}  {value:<{min(widths[1], 60)}}  {origin}")


def plan_command(request: Request) -> None:
    """Print the plan with its reasons; start nothing."""
    selection, provider = choose(request)
    planned = pipeline.plan(selection, provider, wishes(request))
    if request.json:
        print_json(planned.plan.model_dump(mode="json"))
    else:
        typer.echo(plan_text(planned.plan, planned))


def plan_text(plan: Plan, planned: Planned) -> str:
    """Return a plan as people read it: one line for each action, then the identity of the result."""
    width = max(len(action.name) for action in plan.actions)
    lines = [f"{plan.target.id}: {len(planned.order.lock.inputs)} inputs, lock {plan.lock_digest[:12]}"]
    lines += [
        f"  {action.action:<6} {action.stage:<8} {action.name:<{width}}  because: {action.why}"
        for action in plan.actions
    ]
    return "\n".join([*lines, f"fingerprint {plan.fingerprint}"])


def render_command(request: Request, folder: Path) -> None:
    """Write the work folder of a build and start nothing."""
    selection, provider = choose(request)
    planned = pipeline.plan(selection, provider, wishes(request))
    written = pipeline.render(planned, folder)
    if request.json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            typer.echo(str(path))


def run_command(request: Request) -> None:
    """Build the image; progress goes to stderr, the result to stdout."""
    selection, provider = choose(request)
    asked = wishes(request)
    planned = pipeline.plan(selection, provider, asked)
    if not request.json:
        typer.echo(plan_text(planned.plan, planned), err=True)
    manifest = pipeline.build(planned, asked, lambda run: shown(run.events, verbose=request.verbose))
    if request.json:
        print_json(manifest.model_dump(mode="json"))
    else:
        typer.echo(result_text(manifest, asked.output / manifest.target.id))


def result_text(manifest: Manifest, folder: Path) -> str:
    """Return where the image lies, its size and sha256, and the time of each stage."""
    lines = []
    for member in manifest.members:
        lines.append(f"{folder.absolute() / member.name}")
        lines.append(f"  {member.size / 2**20:.0f} MiB, sha256 {member.sha256}")
    lines.append(f"{folder.absolute() / 'manifest.json'}")
    total = sum(stage.seconds for stage in manifest.stages)
    times = ", ".join(f"{stage.stage} {stage.seconds:.0f} s" for stage in manifest.stages)
    return "\n".join([*lines, f"{times}; {total:.0f} s in all"])


def print_json(value: Any) -> None:
    """Print data on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
