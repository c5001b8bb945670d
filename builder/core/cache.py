"""Entries of the content-addressed caches: each made once per machine, and there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from builder.core.files import file_lock

PREFIX = ".new-"
STALE_SECONDS = 86400


def ensure_entry(place: Path, marker: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `place`, filled by `make(folder)` when the file `marker` is not in it yet.

    `make` works in a folder beside it, which is renamed at the end, so that a reader never sees half an entry; what
    it raises is passed on and nothing is left. Of several processes that need the same entry, one makes it and the
    others wait. What killed processes left half-made is removed a day later.
    """
    if (place / marker).is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(place.with_name(f"{place.name}.lock")):
        if (place / marker).is_file():
            return place
        _sweep(place.parent)
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place.parent))
        try:
            work.chmod(0o755)
            make(work)
            shutil.rmtree(place, ignore_errors=True)
            work.rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return place


def _sweep(folder: Path) -> None:
    limit = time.time() - STALE_SECONDS
    for path in folder.glob(f"{PREFIX}*"):
        if path.is_dir() and path.lstat().st_mtime < limit:
            shutil.rmtree(path, ignore_errors=True)
