"""The cache of base images: found by fingerprint and age, made once, never changed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from builder.core.digest import sha256_bytes
from builder.core.errors import BuildImageError
from builder.core.files import file_lock, write_atomic, write_json
from builder.model.base import Value
from builder.plan.fingerprint import Ingredients, difference

RECORD = "base.json"
TIME_FORMAT = "%Y%m%dT%H%M%SZ"


class BaseRecord(Value):
    """What a base was made from. `group` names bases that differ in their ingredients only (`debian-12-qemu-vm`);
    `tree_key` is the root tree under the layer of a base of the tree lane; `public_key` is that of its build.
    """

    schema_version: Literal[1] = 1
    group: str
    ingredients: Ingredients
    created_at: str
    tree_key: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Base:
    """A finished base in the cache: `disk`, `kernel` and `initrd` in the vm lane, `layer` in the tree lane."""

    folder: Path
    record: BaseRecord

    @property
    def disk(self) -> Path:
        """The qcow2 that node disks are overlays of."""
        return self.folder / "base.qcow2"

    @property
    def kernel(self) -> Path:
        """The kernel inside the disk, for a start without boot loader; may be missing."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initramfs inside the disk; may be missing."""
        return self.folder / "initrd.img"

    @property
    def layer(self) -> Path:
        """The folder of the box whose upper layer is the base."""
        return self.folder / "box"


@dataclass(frozen=True, slots=True)
class BaseWish:
    """Which base is wanted. `tree_key` is None where any tree will do, because the disk does not need it any more."""

    group: str
    ingredients: Ingredients
    max_age_days: int
    tree_key: str | None = None

    @property
    def fingerprint(self) -> str:
        """The name of the base."""
        return self.ingredients.fingerprint


def find_base(cache: Path, wish: BaseWish, now: datetime | None = None) -> tuple[Base | None, str]:
    """Return the newest base that fits and how old it is, or None and why one must be made."""
    now = now or datetime.now(UTC)
    fitting = [base for base in _all(cache, f"{wish.fingerprint}-*") if base.record.ingredients == wish.ingredients]
    if not fitting:
        return None, _why_none(cache, wish)
    newest = max(fitting, key=lambda base: base.record.created_at)
    age = now - datetime.strptime(newest.record.created_at, TIME_FORMAT).replace(tzinfo=UTC)
    if age > timedelta(days=wish.max_age_days):
        return None, f"the last one is {age.days} days old, more than base.max_age_days = {wish.max_age_days}"
    if wish.tree_key is not None and newest.record.tree_key != wish.tree_key:
        return None, "the root tree under the last one is not there any more"
    return newest, f"nothing changed since it was made {_ago(age)}"


def _why_none(cache: Path, wish: BaseWish) -> str:
    others = [base for base in _all(cache, "*") if base.record.group == wish.group]
    if not others:
        return "none was made on this machine yet"
    last = max(others, key=lambda base: base.record.created_at)
    return f"since the last one, {difference(last.record.ingredients, wish.ingredients)}"


def _all(cache: Path, pattern: str) -> list[Base]:
    found = []
    for record in cache.glob(f"{pattern}/{RECORD}"):
        # A record of another version of this program, or one that is just being removed, is no base.
        with contextlib.suppress(OSError, ValidationError):
            found.append(Base(record.parent, BaseRecord.model_validate_json(record.read_bytes())))
    return found


def _ago(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    if hours < 1:
        return f"{age.total_seconds() / 60:.0f} minutes ago"
    return f"{hours:.0f} hours ago" if hours < 48 else f"{age.days} days ago"


@contextlib.contextmanager
def making_base(cache: Path, wish: BaseWish, folder: Path) -> Iterator[Path]:
    """Hold the right to make a base; yields the stage folder to build it in.

    That is `folder`, unless a process that died had begun the same base in another: then it is that one, and whatever
    still runs in it can be waited for. So two processes that need the same base build it once.
    """
    cache.mkdir(parents=True, exist_ok=True)
    pointer = cache / f"{wish.fingerprint}.building"
    with file_lock(cache / f"{wish.fingerprint}.lock"):
        begun = Path(pointer.read_text()) if pointer.exists() else None
        place = begun if begun is not None and begun.is_dir() else folder
        write_atomic(pointer, str(place))
        try:
            yield place
        except BuildImageError:
            pointer.unlink(missing_ok=True)  # it failed, nothing of it goes on: the next one starts afresh
            raise
        pointer.unlink(missing_ok=True)


def draft_folder(cache: Path, wish: BaseWish, stage_folder: Path) -> Path:
    """Return the folder in the cache in which a base is put together; the same for the same stage folder."""
    draft = cache / f".{wish.fingerprint[:16]}-{sha256_bytes(os.fsencode(stage_folder))[:12]}"
    draft.mkdir(parents=True, exist_ok=True)
    return draft


def new_record(wish: BaseWish, tree_key: str, public_key: str) -> BaseRecord:
    """Return the record of a base that was finished now."""
    return BaseRecord(
        group=wish.group,
        ingredients=wish.ingredients,
        created_at=datetime.now(UTC).strftime(TIME_FORMAT),
        tree_key=tree_key,
        public_key=public_key,
    )


def store_base(cache: Path, wish: BaseWish, draft: Path, record: BaseRecord) -> Base:
    """Put a finished draft under its name; returns the base."""
    write_json(draft / RECORD, record.model_dump(mode="json"))
    place = cache / f"{wish.fingerprint}-{record.created_at}"
    shutil.rmtree(place, ignore_errors=True)
    draft.rename(place)
    return Base(place, record)
