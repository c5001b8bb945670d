"""Files by URL or path whose sha256 stands in a file beside them: Kubernetes programs and release archives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.core.digest import sha256_file
from builder.core.errors import PreflightError, Problem
from builder.model.lock import Input, InputKind
from builder.resolve.web import NotThere, Web, local_path

HEX = re.compile(r"\b[0-9a-fA-F]{64}\b")


def fill(template: str, version: str, arch: str) -> str:
    """Fill {version} (v1.34.3), {number} (1.34.3) and {arch} of a URL or path."""
    number = version.removeprefix("v")
    values = {"{version}": f"v{number}", "{number}": number, "{arch}": arch}
    for word, value in values.items():
        template = template.replace(word, value)
    return template


def program_inputs(programs: Sequence[str], template: str, version: str, arch: str, web: Web) -> list[Input]:
    """Return one `binary` input for each program in a folder or below a base URL, with the digest beside it.

    Raises PreflightError with all that is missing or does not match; a local program is read and compared.
    """
    base = fill(template, version, arch).rstrip("/")

    def look(name: str) -> Input | PreflightError:
        try:
            return file_input(f"{base}/{name}", (".sha256",), ("binary", name, version), web)
        except PreflightError as error:
            return error

    # At once: a server that does not answer is waited for once, not once for each program.
    with ThreadPoolExecutor(len(programs)) as pool:
        answers = list(pool.map(look, programs))
    problems = [problem for answer in answers if isinstance(answer, PreflightError) for problem in answer.problems]
    if problems:
        hint = f"is {version} there at all? the option is kubernetes.url"
        raise PreflightError(Problem(entry.what, entry.where, entry.hint or hint) for entry in problems)
    return [answer for answer in answers if isinstance(answer, Input)]


def file_input(location: str, suffixes: Sequence[str], identity: tuple[InputKind, str, str], web: Web) -> Input:
    """Return the input (`identity`: kind, name, version) of one file, its digest read from the file beside it.

    `suffixes` are tried in order (`.sha256sum`, `.sha256`). Raises PreflightError when the file or its digest is
    not there, or when a local file is not what its digest says.
    """
    kind, name, version = identity
    digest = _digest_beside(location, suffixes, web)
    path = local_path(location)
    if path is not None:
        check_local(path, digest)
    else:
        web.check(location)
    return Input(name=name, kind=kind, version=version, url=location, digest=f"sha256:{digest}")


def check_local(path: Path, digest: str) -> None:
    """Raise PreflightError when a local file is not there or its sha256 (hex) is another one."""
    if not path.is_file():
        raise NotThere("no such file", str(path))
    real = sha256_file(path)
    if real != digest.lower():
        what = f"checksum mismatch: expected sha256 {digest}, the file has {real}"
        raise PreflightError(what, str(path), "a damaged download, or another file than the checksum is for")


def _digest_beside(location: str, suffixes: Sequence[str], web: Web) -> str:
    for suffix in suffixes:
        try:
            text = web.text(location + suffix)
        except NotThere:
            continue
        return _digest_in(text, location.rpartition("/")[2], location + suffix)
    tried = " or ".join(location.rpartition("/")[2] + suffix for suffix in suffixes)
    raise NotThere(f"there is no {tried} beside it", location)


def _digest_in(text: str, name: str, where: str) -> str:
    """Return the digest of a checksum file: the line of the file when there are several, else the only one."""
    lines = [line for line in text.splitlines() if HEX.search(line)]
    own = [line for line in lines if line.split()[-1].lstrip("*").rpartition("/")[2] == name]
    fitting = own or lines
    if len(fitting) != 1:
        raise PreflightError(f"it names no sha256 of {name}", where)
    match = HEX.search(fitting[0])
    assert match is not None
    return match.group().lower()
