"""The command line: parses what a person types, hands it to the command, turns errors into exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.core.errors import BuildImageError, ConfigError, ExitCode, Problem
from builder.target.request import Ask, Request

# Every import of a command module happens inside the command: `--help` must not pay for pydantic, Rich or a cloud.
NAME = "build-image"
app = typer.Typer(
    name=NAME,
    help="Builds Kubernetes node images for every OS, Kubernetes version and infrastructure.\n\n"
    "build-image --os debian-12 --k8s v1.34.3 --infra qemu",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Os = Annotated[str, typer.Option("--os", metavar="OS", help="Operating system, such as debian-12.")]
Kubernetes = Annotated[str, typer.Option("--k8s", metavar="VERSION", help="Kubernetes version, such as v1.34.3.")]
Infra = Annotated[str, typer.Option("--infra", metavar="INFRA", help="Infrastructure, such as qemu.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Site file (YAML).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one option; may be given again.")
]
Definitions = Annotated[
    list[Path] | None, typer.Option("--definitions", metavar="DIR", help="Folder with more OS and Kubernetes files.")
]
State = Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Run folders. [env: BUILD_IMAGE_STATE]")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Where finished files go.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with its reasons; start nothing.")]
Show = Annotated[bool, typer.Option("--show", help="Print every option with its value and where it came from.")]
Keep = Annotated[bool, typer.Option("--keep-on-failure", help="Keep disks and keys of a failed build.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every line of Packer and Ansible.")]
OUTPUT = Path("out")


@app.callback(invoke_without_command=True)
@app.command("run")
def build(
    context: typer.Context,
    os: Os = "",
    k8s: Kubernetes = "",
    infra: Infra = "",
    config: Config = None,
    set_: Set = None,
    definitions: Definitions = None,
    state: State = None,
    output: Output = OUTPUT,
    dry_run: DryRun = False,
    show: Show = False,
    keep_on_failure: Keep = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Build one image and write it to the output folder; the same without the word run."""
    ask = Ask(os, k8s, infra, config, tuple(set_ or ()), tuple(definitions or ()))
    request = Request(ask, state, output, keep_on_failure, json, verbose)
    if context.invoked_subcommand:
        if request != Request() or dry_run or show:
            hint = f"write: build-image {context.invoked_subcommand} --os … --k8s … --infra …"
            raise ConfigError("options stand before the sub-command", hint=hint)
    elif request == Request() and not (dry_run or show) and context.info_name == NAME:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
    else:
        _build(request, dry_run, show)


@app.command()
def render(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    os: Os = "",
    k8s: Kubernetes = "",
    infra: Infra = "",
    config: Config = None,
    set_: Set = None,
    definitions: Definitions = None,
    json: Json = False,
) -> None:
    """Write the work folder of a build (HCL, variables, keys) and start nothing."""
    from builder.cli.run import render_command

    ask = Ask(os, k8s, infra, config, tuple(set_ or ()), tuple(definitions or ()))
    render_command(Request(ask, json=json), folder)


@app.command()
def doctor(json: Json = False) -> None:
    """Check tools, versions, accelerator and disk space; say what to type to fix each."""
    from builder.cli.doctor import doctor_command

    doctor_command(json)


@app.command()
def version(json: Json = False) -> None:
    """Print the version of this tool."""
    from builder import __version__

    typer.echo(f'{{"version": "{__version__}"}}' if json else f"build-image {__version__}")


def _build(request: Request, dry_run: bool, show: bool) -> None:
    from builder.cli.run import plan_command, run_command, show_command

    if show:
        show_command(request)
    elif dry_run:
        plan_command(request)
    else:
        run_command(request)


def report(problems: tuple[Problem, ...]) -> None:
    """Print problems on stderr, one paragraph each."""
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)


def main() -> None:
    """Run the command line; the only place where an error becomes an exit code."""
    try:
        app(prog_name=NAME)
    except BuildImageError as error:
        report(error.problems)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
