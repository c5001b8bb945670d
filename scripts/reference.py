"""Writes the generated parts of the docs: options, exit codes, support matrix.

usage: python scripts/reference.py [--check]     (--check writes nothing and fails when a file is out of date)
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path

from builder.core.errors import ExitCode
from builder.model.base import Value
from builder.target.options import Options
from providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[1]
EXIT_WORDS = {
    ExitCode.OK: "done",
    ExitCode.USAGE: "wrong usage or configuration; nothing was started",
    ExitCode.PREFLIGHT: "a tool, a source or the machine cannot do what is asked; nothing was built",
    ExitCode.BUILD: "a build failed; the run folder is kept",
    ExitCode.CHECK: "the finished disk was refused by a check",
    ExitCode.PUBLISH: "a publication failed",
    ExitCode.ENGINE: "the engine failed",
    ExitCode.VLCM: "a vSphere Lifecycle Manager operation failed",
    ExitCode.WORK: "there is work to do (only with --exit-code)",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}


def type_text(annotation: object) -> str:
    """Return the words for a field's type: `module | url`, `integer`, `list of text`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is typing.Literal:
        return " \\| ".join(str(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(type_text(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return "map"
    names = {"str": "text", "int": "integer", "bool": "true \\| false", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


def option_rows(model: type[Value], prefix: str) -> list[str]:
    """Return one table row for each option of a model, nested models walked."""
    rows = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Value):
            rows += option_rows(annotation, f"{path}.")
            continue
        extra = field.json_schema_extra
        kind = extra.get("class", "") if isinstance(extra, dict) else ""
        default = "" if field.default in (None, "", (), {}) else f"`{field.default}`"
        rows.append(f"| `{path}` | {type_text(annotation)} | {default} | {kind} | {field.description or ''} |")
    return rows


def options_page() -> str:
    """Return docs/reference/options.md."""
    lines = [
        "# Options",
        "",
        "Made from the option models by `make docs`; do not edit. Set an option in a site file, by environment",
        "(`BUILD_IMAGE_KUBERNETES__SOURCE=module`) or by `--set kubernetes.source=module`. *Content* options change",
        "what is in the image and count in its fingerprint; *placement* options say where and with what it is built.",
        "",
        "| option | values | default | class | meaning |",
        "| --- | --- | --- | --- | --- |",
        *option_rows(Options, ""),
    ]
    for name, provider in sorted(PROVIDERS.items()):
        lines += option_rows(provider.settings_model, f"{name}.")
    return "\n".join(lines) + "\n"


def exit_codes_page() -> str:
    """Return docs/reference/exit-codes.md."""
    rows = [f"| {code.value} | {code.name.lower()} | {EXIT_WORDS[code]} |" for code in ExitCode]
    table = ["| code | class | meaning |", "| --- | --- | --- |", *rows]
    return "\n".join(["# Exit codes", "", "Made by `make docs`; do not edit.", "", *table]) + "\n"


def support_matrix() -> str:
    """Return the table of OS x infrastructure for the README."""
    from builder.target.definitions import load_definitions

    definitions = load_definitions({name: provider.facts_model for name, provider in PROVIDERS.items()})
    infras = sorted(PROVIDERS)
    lines = [f"| OS | {' | '.join(infras)} | vendor support ends |", "| --- |" + " --- |" * (len(infras) + 1)]
    for name, os_file in sorted(definitions.os.items()):
        cells = ["yes" if infra in os_file.infra else "-" for infra in infras]
        lines.append(f"| {name} | {' | '.join(cells)} | {os_file.support.ends} |")
    series = ", ".join(sorted(definitions.kubernetes, key=lambda text: tuple(map(int, text.split(".")))))
    return "\n".join([*lines, "", f"Kubernetes series with verified component versions: {series}."])


def with_matrix(readme: str) -> str:
    """Return the README with the text between its two markers replaced."""
    begin, end = "<!-- matrix -->\n", "<!-- /matrix -->"
    head, _, rest = readme.partition(begin)
    return f"{head}{begin}{support_matrix()}\n{end}{rest.partition(end)[2]}"


def pages() -> dict[Path, str]:
    """Return every generated file with its text."""
    readme = ROOT / "README.md"
    return {
        ROOT / "docs/reference/options.md": options_page(),
        ROOT / "docs/reference/exit-codes.md": exit_codes_page(),
        readme: with_matrix(readme.read_text()),
    }


def main() -> int:
    """Write the pages, or with --check say which are out of date."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run 'make docs'", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
