"""The event stream of a run: appended line by line, readable while it grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from builder.core.run import mask


def append_event(path: Path, kind: str, stage: str, data: dict[str, Any], secrets: Sequence[str] = ()) -> None:
    """Append one event as one line; a single write with O_APPEND, so that processes do not mix lines."""
    row = {"time": round(time.time(), 3), "kind": kind, "stage": stage, "data": data}
    line = mask(json.dumps(row, ensure_ascii=False), secrets) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_lines(path: Path, offset: int) -> Iterator[tuple[str, int]]:
    """Yield (line, offset behind it) for every complete line of a growing file from a byte offset on."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            yield raw.decode(errors="replace").rstrip("\n"), offset
