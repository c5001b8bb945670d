"""Boots a finished disk with a fresh identity, logs in by ssh, runs commands; the machine is always gone at the end."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from builder.check.machine import (
    GuestSpec,
    find_firmware,
    overlay_command,
    qemu_command,
    seed_command,
    seed_files,
)
from builder.core.errors import BuildError, CheckError
from builder.core.run import Completed, Spec, run, spawn, stop_group

SERIAL_LINES = 30
POLL_SECONDS = 0.5
# Colours and cursor moves of firmware and boot loader, and what else is not text on a serial console.
CONTROL = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[78=>cDM])|[^\t\n -~\u00a0-\uffff]")


@dataclass(frozen=True, slots=True)
class Marks:
    """When a guest was where, in seconds since power-on; `cpu_s` is what QEMU computed until ssh answered.

    CPU seconds say more than wall seconds on a machine that does other work too.
    """

    banner: float
    ssh: float
    cpu_s: float


class _Process(Protocol):
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Guest:
    """A running virtual machine. Made by `started` or `booted`, which also end it."""

    def __init__(self, spec: GuestSpec, work: Path, port: int, control: Path, process: _Process) -> None:
        self.spec = spec
        self.work = work
        self.port = port
        self.serial = work / "serial.log"
        self.marks: Marks | None = None
        self._process = process
        self._power_on = time.monotonic()
        self._ssh = ssh_options(work, control)

    def wait(self) -> Marks:
        """Wait until the test user can log in; return the times.

        Raises CheckError with the end of the serial console when the machine stops, or when `spec.timeout_s` seconds
        after power-on nobody can log in.
        """
        banner = self._poll(self._speaks_ssh, "its ssh server does not answer")
        ssh = self._poll(self._lets_in, f"its ssh server does not let the user {self.spec.user!r} in")
        times = psutil.Process(self._process.pid).cpu_times()
        self.marks = Marks(banner, ssh, round(times.user + times.system, 1))
        return self.marks

    def run(
        self, command: str, *, root: bool = False, check: bool = True, timeout: float = 300.0, stdin: str | None = None
    ) -> Completed:
        """Run a shell command in the guest, as the test user or as root.

        Raises CheckError with the last lines when it fails (unless `check` is off) or takes longer than `timeout`
        seconds.
        """
        wrapped = f"sudo -n sh -c {shlex.quote(command)}" if root else command
        done = self._call([*self._login(self.spec.user), wrapped], timeout, command, stdin)
        if check and done.returncode:
            raise self._error(f"failed in the guest (exit code {done.returncode}): {command}", done.tail)
        return done

    def output(self, command: str, *, root: bool = False) -> str:
        """Run a command that must not fail; return what it printed, without blanks around it."""
        return self.run(command, root=root).stdout.strip()

    def accepts_key(self, user: str, public_key: str) -> bool:
        """Say whether the ssh server would let a user in with a key, of which only the public half is at hand.

        A client may ask before it signs; only for a key that would do the server says so. RFC 4252, section 7.
        """
        asked = self.work / "asked.pub"
        asked.touch(mode=0o600)
        asked.write_text(f"{public_key.strip()}\n")
        words = self._login(user, asked, ["-o", "ControlPath=none", "-o", "LogLevel=DEBUG1"])
        said = self._call([*words, "true"], 120.0, f"asking for a key of {user}").tail
        if not any("Offering public key" in line for line in said):
            raise self._error(f"ssh did not offer the key to {user}", said)
        return any("Server accepts key" in line for line in said)

    def copy_in(self, sources: Sequence[Path], folder: str, timeout: float = 900.0) -> None:
        """Copy files and folders of the host into a folder of the guest that the test user may write."""
        target = f"{self.spec.user}@127.0.0.1:{folder}"
        names = [str(source) for source in sources]
        argv = ["scp", "-r", *self._ssh, "-i", str(self.work / "key"), "-P", str(self.port), *names, target]
        done = self._call(argv, timeout, f"copy to {folder}")
        if done.returncode:
            raise self._error(f"copying to {folder} failed", done.tail)

    def write(self, path: str, text: str) -> None:
        """Write a text file in the guest, as root."""
        self.run(f"mkdir -p $(dirname {shlex.quote(path)}) && cat >{shlex.quote(path)}", root=True, stdin=text)

    def power_off(self, timeout: float = 300.0) -> float:
        """Shut the guest down cleanly; return how many seconds it took. Raises CheckError when it does not stop."""
        begin = time.monotonic()
        self.run("systemctl poweroff", root=True, check=False, timeout=timeout)
        while self._process.poll() is None:
            if time.monotonic() - begin > timeout:
                raise self._error(f"the guest did not power off within {timeout:.0f} s", self.serial_tail())
            time.sleep(POLL_SECONDS)
        return round(time.monotonic() - begin, 1)

    def serial_tail(self, lines: int = SERIAL_LINES) -> tuple[str, ...]:
        """Return the last lines of the serial console as plain text."""
        return console_tail(self.serial.read_bytes() if self.serial.exists() else b"", lines)

    def stop(self) -> None:
        """Kill the machine if it still runs."""
        if self._process.poll() is None:
            stop_group(self._process.pid)
        self._process.wait()

    def _poll(self, ready: Callable[[], bool], otherwise: str) -> float:
        while True:
            if self._process.poll() is not None:
                raise self._error(f"the guest stopped after {self._seconds():.0f} s", self._last_words())
            if ready():
                return self._seconds()
            if self._seconds() > self.spec.timeout_s:
                raise self._error(f"{self._seconds():.0f} s after power-on {otherwise}", self._last_words())
            time.sleep(POLL_SECONDS)

    def _speaks_ssh(self) -> bool:
        # QEMU accepts the connection at once; only the guest's own words prove that somebody listens.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                connection.settimeout(2)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _lets_in(self) -> bool:
        try:
            return self._call([*self._login(self.spec.user), "true"], 60.0, "login").returncode == 0
        except CheckError:
            return False

    def _login(self, user: str, key: Path | None = None, more: Sequence[str] = ()) -> list[str]:
        # The first value of an option is the one that holds.
        words = ["ssh", *more, *self._ssh, "-i", str(key or self.work / "key"), "-p", str(self.port)]
        return [*words, f"{user}@127.0.0.1"]

    def _call(self, argv: Sequence[str], timeout: float, what: str, stdin: str | None = None) -> Completed:
        try:
            return run(argv, Spec(check=False, timeout=timeout, what=what, input=stdin))
        except BuildError as error:
            raise self._error(str(error), self.serial_tail()) from error

    def _last_words(self) -> tuple[str, ...]:
        log = self.work / "qemu.log"
        said = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        return (*said, *self.serial_tail())

    def _error(self, what: str, lines: Sequence[str]) -> CheckError:
        text = "\n".join([what, *(f"  | {line}" for line in lines)])
        return CheckError(text, str(self.spec.disk), f"the whole serial console is in {self.serial}")

    def _seconds(self) -> float:
        return round(time.monotonic() - self._power_on, 1)


@contextlib.contextmanager
def started(spec: GuestSpec, work: Path) -> Iterator[Guest]:
    """Power a guest on, and kill it at the end whatever happens. Call `wait` before anything else.

    `work` is made, and keeps the serial console. Two guests can run at once, each with its own `work`. Raises
    PreflightError when a tool or a firmware is missing, BuildError when the seed or the overlay cannot be made.
    """
    work.mkdir(parents=True, exist_ok=True)
    firm = find_firmware(spec.firmware)
    if firm:
        shutil.copyfile(firm.variables, work / "vars.fd")
    if spec.overlay and not spec.overlay.exists():
        run(overlay_command(spec, spec.overlay), Spec(what="making the overlay"))
    _write_seed(spec, work)
    for name in ("serial.log", "qemu.log"):
        (work / name).unlink(missing_ok=True)
    port = free_port()
    # A folder of its own with a short name: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="check-") as control:
        process = spawn(qemu_command(spec, work, port, firm), Spec(log=work / "qemu.log"))
        guest = Guest(spec, work, port, Path(control), process)
        try:
            yield guest
        finally:
            guest.stop()
            (work / "key").unlink(missing_ok=True)


@contextlib.contextmanager
def booted(spec: GuestSpec, work: Path) -> Iterator[Guest]:
    """Start a guest, wait until it lets the test user in, and power it off cleanly when all went well."""
    with started(spec, work) as guest:
        guest.wait()
        yield guest
        guest.power_off()


def ssh_options(work: Path, control: Path) -> list[str]:
    """Return the options of ssh and scp for one guest: its own host keys, never a question, one connection for all.

    A login costs a second or more of computing without KVM, so later commands go through the first connection.
    """
    options = {
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": str(work / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "ConnectTimeout": "30",
        "ServerAliveInterval": "30",
        "ServerAliveCountMax": "10",
        "ControlMaster": "auto",
        "ControlPath": str(control / "s"),
        "ControlPersist": "60",
        "LogLevel": "ERROR",
    }
    # -F none: nothing of the caller's own configuration, such as a jump host for every address.
    return ["-F", "none", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


def console_tail(raw: bytes, lines: int) -> tuple[str, ...]:
    """Return the last lines of a serial console that hold text, without escape sequences."""
    text = CONTROL.sub("", raw[-64_000:].decode(errors="replace").replace("\r", "\n"))
    return tuple([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


def _write_seed(spec: GuestSpec, work: Path) -> None:
    for name in ("key", "key.pub", "known_hosts"):
        (work / name).unlink(missing_ok=True)
    run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "check", "-f", work / "key"],
        Spec(what="making an ssh key"),
    )
    instance = f"{spec.hostname}-{secrets.token_hex(4)}"
    for name, text in seed_files(spec, instance, (work / "key.pub").read_text()).items():
        (work / name).write_text(text)
    run(seed_command(work), Spec(what="making the seed"))
