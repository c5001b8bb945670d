"""The gate on a finished disk: nothing of the build or of its machine may be left, not even in freed blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from builder.core.errors import BuildError, CheckError, Problem
from builder.core.run import Spec, run
from builder.core.search import search_bytes
from builder.model.base import Value

SHOWN = 5
ACCOUNT_FILES = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
# What apt itself makes again at every start; everything else in the folder is a package list.
APT_OWN = frozenset({"lock", "partial", "auxfiles"})


class Check(Value):
    """One thing that was looked at. `detail` says what was found where, or what it means that nothing was."""

    name: str
    ok: bool
    detail: str


class Report(Value):
    """All checks of one disk."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the disk is fit to be used."""
        return all(check.ok for check in self.checks)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What a user has to read: the checks that failed."""
        hint = "the image is refused: what it holds would be in every machine that is made from it"
        return tuple(Problem(check.detail, check.name, hint) for check in self.checks if not check.ok)


class Files(Protocol):
    """A file system that is only read. `entries` of a folder that is not there are none, so is its text empty."""

    def entries(self, folder: str) -> Mapping[str, int | None]:
        """Return {name: size in bytes} of a folder; the size of a folder in it is None."""
        ...

    def text(self, path: str) -> str:
        """Return the content of a file."""
        ...


class DebugFs:
    """The ext file system that begins at a byte of a raw disk, read without a mount and without root."""

    def __init__(self, disk: Path, offset: int) -> None:
        self._disk = disk
        self._offset = offset

    def entries(self, folder: str) -> Mapping[str, int | None]:
        """Return {name: size} of a folder. Raises CheckError when the file system cannot be opened."""
        return parse_listing(self._ask(f'ls -p "{folder}"'))

    def text(self, path: str) -> str:
        """Return the content of a file. Raises CheckError when the file system cannot be opened."""
        return self._ask(f'cat "{path}"')

    def _ask(self, request: str) -> str:
        device = f"{self._disk.absolute()}?offset={self._offset}"
        done = run(["debugfs", "-R", request, device], Spec(check=False, timeout=120))
        # debugfs ends with 0 also when a file is not there; only a disk it cannot read is said in this way.
        if done.returncode or any("while trying to open" in line or "Bad magic" in line for line in done.tail):
            raise CheckError(f"the root file system cannot be read: {' '.join(done.tail)}", str(self._disk))
        return done.stdout


def check_disk(disk: Path, root_offset: int, needles: Mapping[str, bytes], user: str) -> Report:
    """Look at a finished raw disk offline; return everything that was looked at, never raise for a finding.

    `root_offset`: the byte where the root file system begins. `needles`: {what it is: bytes} that may be nowhere on
    the disk, such as the body of the build's public key, passwords, or a canary that was deleted during the build.
    `user`: whom Packer logged in as. Raises CheckError when the disk cannot be read, ValueError for an empty needle.
    """
    try:
        found = search_bytes(disk, needles)
        return Report(checks=(*_leftovers(needles, found), *inspect(DebugFs(disk, root_offset), user)))
    except (OSError, BuildError) as error:
        raise CheckError(f"the disk cannot be read: {error}", str(disk)) from error


def key_body(public_key: str) -> bytes:
    """Return the part of an OpenSSH public key line that is unique to the key: its base64 body."""
    return public_key.split()[1].encode()


def inspect(files: Files, user: str) -> tuple[Check, ...]:
    """Run all checks on the files of a root file system; pure but for `files`."""
    checks: tuple[tuple[str, str, Callable[[Files, str], Iterator[str]]], ...] = (
        ("machine-id", "empty: every machine makes its own", _machine_id),
        ("ssh host keys", "none: every machine makes its own", _host_keys),
        ("builder user", f"{user!r} is in no account file and has no home", _builder),
        ("authorized keys", "none for any user", _authorized_keys),
        ("passwords", "no account has a password hash, none is empty", _passwords),
        ("sudo rules", "none of cloud-init", _sudo_rules),
        ("cloud-init state", "none: the next boot is a first boot", _cloud_init),
        ("package lists", "none", _package_lists),
        ("logs", "no journal, no log of cloud-init", _logs),
    )
    done = []
    for name, good, look in checks:
        found = list(look(files, user))
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        done.append(Check(name=name, ok=not found, detail="; ".join([*found[:SHOWN], *more]) or good))
    return tuple(done)


def parse_listing(text: str) -> dict[str, int | None]:
    """Read what debugfs' `ls -p` prints, `/inode/mode/uid/gid/name/size/`: {name: size}, without . and .. ."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        fields = line.split("/")
        if len(fields) == 8 and fields[5] not in {"", ".", ".."}:
            found[fields[5]] = int(fields[6]) if fields[6] else None
    return found


def _leftovers(needles: Mapping[str, bytes], found: Mapping[str, tuple[int, ...]]) -> Iterator[Check]:
    for name in needles:
        places = ", ".join(str(offset) for offset in found.get(name, ()))
        detail = f"found on the disk at byte {places}" if places else "nowhere on the disk, not even in free space"
        yield Check(name=name, ok=not places, detail=detail)


def _machine_id(files: Files, _: str) -> Iterator[str]:
    size = files.entries("/etc").get("machine-id")
    if size is None:
        yield "/etc/machine-id is not there; it must be there and empty"
    elif size and files.text("/etc/machine-id").strip() != "uninitialized":
        yield "/etc/machine-id is not empty"
    if files.entries("/var/lib/dbus").get("machine-id") and files.text("/var/lib/dbus/machine-id").strip():
        yield "/var/lib/dbus/machine-id is not empty"


def _host_keys(files: Files, _: str) -> Iterator[str]:
    for name in files.entries("/etc/ssh"):
        if name.startswith("ssh_host_"):
            yield f"/etc/ssh/{name} is there"


def _builder(files: Files, user: str) -> Iterator[str]:
    if user in files.entries("/home"):
        yield f"/home/{user} is there"
    present = files.entries("/etc")
    for name in [name + end for name in ACCOUNT_FILES for end in ("", "-")]:
        if name in present and any(user in _accounts(line) for line in files.text(f"/etc/{name}").splitlines()):
            yield f"{user!r} is in /etc/{name}"


def _accounts(line: str) -> set[str]:
    """Return the names a line of an account file holds: its own, and the members of a group."""
    first, *rest = line.split(":")
    return {first, *(rest[-1].split(",") if rest else ())}


def _authorized_keys(files: Files, _: str) -> Iterator[str]:
    homes = ["/root", *(f"/home/{name}" for name, size in files.entries("/home").items() if size is None)]
    for home in homes:
        for name, size in files.entries(f"{home}/.ssh").items():
            if name.startswith("authorized_keys") and size:
                yield f"{home}/.ssh/{name} is there"


def _passwords(files: Files, _: str) -> Iterator[str]:
    present = files.entries("/etc")
    if "shadow" not in present:
        yield "/etc/shadow is not there"
    for name in ("shadow", "shadow-"):
        for line in files.text(f"/etc/{name}").splitlines() if name in present else ():
            account, _, rest = line.partition(":")
            secret = rest.partition(":")[0]
            if secret.strip("!*"):
                yield f"{account!r} has a password hash in /etc/{name}"
            elif not secret:
                yield f"{account!r} has an empty password in /etc/{name}"


def _sudo_rules(files: Files, _: str) -> Iterator[str]:
    for name in files.entries("/etc/sudoers.d"):
        if "cloud-init" in name:
            yield f"/etc/sudoers.d/{name} is there"


def _cloud_init(files: Files, _: str) -> Iterator[str]:
    for name in files.entries("/var/lib/cloud"):
        yield f"/var/lib/cloud/{name} is there"


def _package_lists(files: Files, _: str) -> Iterator[str]:
    for name in files.entries("/var/lib/apt/lists"):
        if name not in APT_OWN:
            yield f"/var/lib/apt/lists/{name} is there"


def _logs(files: Files, _: str) -> Iterator[str]:
    for name in files.entries("/var/log/journal"):
        yield f"/var/log/journal/{name} is there"
    for name, size in files.entries("/var/log").items():
        if name.startswith("cloud-init") and size:
            yield f"/var/log/{name} is not empty"
