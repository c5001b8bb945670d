"""Finds byte strings in large sparse files: the proof that something deleted is really gone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CHUNK = 4 << 20


def search_bytes(
    path: Path, needles: Mapping[str, bytes], *, limit: int = 8, chunk: int = CHUNK
) -> dict[str, tuple[int, ...]]:
    """Return {name of a needle: byte offsets where it begins}, for the needles that are in a file.

    Every name has at most `limit` offsets, the lowest ones, ascending. Holes of a sparse file are not read: an
    8 GiB disk with 1 GiB of data costs 1 GiB. Raises ValueError for a needle that is empty or all zero bytes (it
    would be in every hole), OSError when the file cannot be read.
    """
    for name, needle in needles.items():
        if not needle.strip(b"\0"):
            raise ValueError(f"the needle {name!r} is empty or only zero bytes")
    if not needles:
        return {}
    reach = max(map(len, needles.values())) - 1
    found: dict[str, list[int]] = {}
    with path.open("rb", buffering=0) as file:
        for begin, end in _stretches(file.fileno(), reach):
            for at, data in _pieces(file.fileno(), begin, end, max(chunk, reach + 1), reach):
                _collect(found, needles, data, at, limit)
    return {name: tuple(offsets) for name, offsets in found.items()}


def _collect(found: dict[str, list[int]], needles: Mapping[str, bytes], data: bytes, at: int, limit: int) -> None:
    for name, needle in needles.items():
        offsets = found.get(name, [])
        place = data.find(needle)
        while place >= 0 and len(offsets) < limit:
            # What lies in the overlap of two pieces is seen twice.
            if not offsets or at + place > offsets[-1]:
                offsets.append(at + place)
            place = data.find(needle, place + 1)
        if offsets:
            found[name] = offsets


def _stretches(descriptor: int, reach: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of everything that can hold a match: the data, and `reach` bytes of the holes around it."""
    size = os.fstat(descriptor).st_size
    begin = end = 0
    for data, hole in _data(descriptor, size):
        if data - reach > end:
            if end > begin:
                yield begin, end
            begin = data - reach
        end = min(hole + reach, size)
    if end > begin:
        yield begin, end


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, at


def _pieces(descriptor: int, begin: int, end: int, chunk: int, reach: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a stretch in pieces that overlap by `reach` bytes."""
    at = begin
    while at < end:
        data = os.pread(descriptor, min(chunk + reach, end - at), at)
        if not data:
            return
        yield at, data
        if at + len(data) >= end:
            return
        at += max(len(data) - reach, 1)
