"""The one place that starts processes: argv lists, no shell, a small environment, live lines, clear failures."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from builder.core.errors import BuildError, PreflightError

TAIL_LINES = 30
PASSED_NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "TERM",
        "TMPDIR",
        "TZ",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "GOPROXY",
        "GOSUMDB",
        "GONOSUMDB",
        "GOPRIVATE",
        "GOCACHE",
        "GOMODCACHE",
        "GOPATH",
        "GOAUTH",
        "NETRC",
        "REGISTRY_AUTH_FILE",
        "PYENV_ROOT",
        "PYENV_VERSION",
        "SOURCE_DATE_EPOCH",
    ]
)


@dataclass(frozen=True, slots=True)
class Spec:
    """How a process is run. `env` is added to the small base environment; `what` names the action in an error."""

    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None
    timeout: float | None = None
    log: Path | None = None
    on_line: Callable[[str], None] | None = None
    secrets: tuple[str, ...] = ()
    check: bool = True
    what: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that ended: full stdout as text, the last lines of both streams, return code and seconds."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    tail: tuple[str, ...]
    seconds: float


def base_environment() -> dict[str, str]:
    """Return the few variables of the caller that a child process gets."""
    return {name: value for name, value in os.environ.items() if name in PASSED_NAMES}


def which(tool: str) -> Path | None:
    """Return the path of an executable on PATH (system sbin folders included), or None."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(tool, path=path)
    return Path(found) if found else None


def mask(text: str, secrets: Sequence[str]) -> str:
    """Replace every secret of more than three characters in a text."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return text


def run(argv: Sequence[str | Path], spec: Spec | None = None) -> Completed:
    """Run one process to its end.

    Every line of stdout and stderr goes to `spec.on_line` and `spec.log` as it comes, secrets masked. Raises
    PreflightError when the tool is missing, BuildError with the last 30 lines when it fails (unless `check` is off)
    or takes longer than `spec.timeout` seconds.
    """
    spec = spec or Spec()
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    process = _start(words, spec)
    sink = _Sink(spec)
    readers = [
        threading.Thread(target=sink.drain, args=(stream, keep), daemon=True)
        for stream, keep in ((process.stdout, True), (process.stderr, False))
        if stream is not None
    ]
    for reader in readers:
        reader.start()
    _feed(process, spec.input)
    try:
        returncode = process.wait(spec.timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise BuildError(
            f"{spec.what or words[0]} did not end within {spec.timeout:.0f} s\n{sink.tail_text()}", hint=spec.hint
        ) from None
    except BaseException:
        _end(process)
        raise
    finally:
        for reader in readers:
            reader.join(5)
        sink.close()
    done = Completed(words, returncode, "".join(sink.kept), tuple(sink.tail), time.monotonic() - started)
    if spec.check and returncode:
        raise BuildError(failure_text(done, spec), hint=spec.hint)
    return done


def failure_text(done: Completed, spec: Spec) -> str:
    """Say which command failed, how, and its last lines."""
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    command = mask(shlex.join(done.argv), spec.secrets)
    head = f"{spec.what} failed" if spec.what else f"{done.argv[0]} failed"
    return "\n".join([f"{head} ({how}): {command}", *(f"  | {line}" for line in done.tail)])


def spawn(argv: Sequence[str | Path], spec: Spec | None = None) -> subprocess.Popen[bytes]:
    """Start a long-living helper (a guest, a server) in its own process group; output goes to `spec.log`.

    The caller ends it with `stop_group(process.pid)` and waits for it.
    """
    spec = spec or Spec()
    words = tuple(str(word) for word in argv)
    output: int | IO[bytes] = spec.log.open("ab") if spec.log else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            _resolve(words),
            cwd=spec.cwd,
            env=base_environment() | dict(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    finally:
        if not isinstance(output, int):
            output.close()


def spawn_detached(argv: Sequence[str | Path], spec: Spec) -> int:
    """Start a process in a session of its own that outlives this one; return its process id.

    Nothing of it comes back but what it writes itself: this is how the shim is started.
    """
    words = tuple(str(word) for word in argv)
    with Path(spec.log or os.devnull).open("ab") as output:
        process = subprocess.Popen(
            _resolve(words),
            cwd=spec.cwd,
            env=base_environment() | dict(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def stop_group(group: int, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal to a process group; one that is gone already is fine."""
    try:
        os.killpg(group, signal_number)
    except (ProcessLookupError, PermissionError):
        return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: asked first, so that they remove what they made; killed after five seconds."""
    stop_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    stop_group(process.pid)
    process.wait()


def _resolve(words: tuple[str, ...]) -> list[str]:
    if "/" in words[0]:
        return list(words)
    found = which(words[0])
    if found is None:
        raise PreflightError(f"{words[0]} is not installed", hint="'build-image doctor' says what to type")
    return [str(found), *words[1:]]


def _start(words: tuple[str, ...], spec: Spec) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            _resolve(words),
            cwd=spec.cwd,
            env=base_environment() | dict(spec.env),
            stdin=subprocess.DEVNULL if spec.input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise PreflightError(f"cannot start {words[0]}: {error.strerror}", hint=spec.hint) from error


def _feed(process: subprocess.Popen[bytes], text: str | None) -> None:
    if process.stdin is None or text is None:
        return
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        return


class _Sink:
    """Collects the lines of both streams of one process; shared by two reader threads."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.kept: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.log = spec.log.open("a", encoding="utf-8") if spec.log else None
        self.lock = threading.Lock()

    def drain(self, stream: IO[bytes], keep: bool) -> None:
        for raw in stream:
            text = mask(raw.decode(errors="replace"), self.spec.secrets)
            with self.lock:
                self._take(text, keep)
        stream.close()

    def _take(self, text: str, keep: bool) -> None:
        if keep:
            self.kept.append(text)
        line = text.rstrip("\r\n")
        self.tail.append(line)
        if self.log:
            self.log.write(line + "\n")
            self.log.flush()
        if self.spec.on_line:
            self.spec.on_line(line)

    def tail_text(self) -> str:
        return "\n".join(f"  | {line}" for line in self.tail)

    def close(self) -> None:
        if self.log:
            self.log.close()
