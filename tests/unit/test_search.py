"""The byte search misses nothing: not across pieces, not beside holes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core.search import search_bytes

SECRET = b"canary-4f1c"


def every_offset(data: bytes, needle: bytes) -> tuple[int, ...]:
    return tuple(at for at in range(len(data)) if data.startswith(needle, at))


@given(
    data=st.binary(max_size=200).map(lambda raw: bytes(byte & 1 for byte in raw)),
    needle=st.sampled_from([b"\1", b"\1\1", b"\0\1", b"\1\0\1\0", b"\0\0\1\1\0"]),
    chunk=st.integers(1, 40),
)
def test_all_places_are_found_whatever_the_size_of_the_pieces(data: bytes, needle: bytes, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        path.write_bytes(data)
        found = search_bytes(path, {"it": needle}, limit=1000, chunk=chunk)
    assert found.get("it", ()) == every_offset(data, needle)


def test_a_match_across_two_pieces_is_found_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 95 + SECRET + b"y" * 300)
    assert search_bytes(path, {"canary": SECRET, "other": b"absent"}, chunk=100) == {"canary": (95,)}


def test_holes_are_skipped_and_their_edges_are_not(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    far = 1 << 33
    with path.open("wb") as file:
        file.truncate(far + (1 << 20))
        file.seek(far)
        file.write(SECRET + b"\0" * 4085 + b"end\1")
    assert path.stat().st_blocks * 512 < 1 << 20, "this file system keeps no holes"
    needles = {"canary": SECRET, "from the hole": b"\0\0" + SECRET, "into the hole": b"end\1\0\0"}
    assert search_bytes(path, needles) == {
        "canary": (far,),
        "from the hole": (far - 2,),
        "into the hole": (far + 4096,),
    }


def test_only_the_first_places_are_told(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"ab" * 100)
    assert search_bytes(path, {"ab": b"ab"}, limit=3, chunk=7) == {"ab": (0, 2, 4)}


@pytest.mark.parametrize("needle", [b"", b"\0\0\0"])
def test_a_needle_that_is_everywhere_is_refused(tmp_path: Path, needle: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="password"):
        search_bytes(path, {"password": needle})


def test_an_empty_file_and_an_empty_list_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"")
    assert search_bytes(path, {"canary": SECRET}) == {}
    assert search_bytes(path, {}) == {}


def test_holes_cost_nothing_and_needles_that_touch_them_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(1 << 40)  # a terabyte: reading it would take minutes
        out.seek(1 << 39)
        out.write(b"token")
    assert search_bytes(path, {"it": b"\0token\0", "other": b"other"}) == {"it": ((1 << 39) - 1,)}
