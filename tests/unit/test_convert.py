from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.build import convert
from builder.build.convert import ImageInfo, parse_info, require_alone, search_bytes
from builder.core.errors import BuildError

# A small chunk makes every needle lie across a border in some example.
SMALL = 16
needles = st.sets(st.binary(min_size=1, max_size=24).filter(lambda needle: needle.strip(b"\0")), max_size=4)


@given(data=st.binary(max_size=200), wanted=needles, cut=st.tuples(st.integers(0, 200), st.integers(1, 40)))
def test_search_finds_what_a_plain_find_finds(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, wanted: set[bytes], cut: tuple[int, int]
) -> None:
    wanted |= {piece for piece in [data[cut[0] : cut[0] + cut[1]]] if piece.strip(b"\0")}
    file = tmp_path_factory.mktemp("search") / "data"
    file.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "CHUNK", SMALL)
        found = search_bytes(file, wanted)
    assert found == {needle: data.find(needle) for needle in wanted if needle in data}


def test_search_skips_holes_and_finds_needles_that_touch_them(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.truncate(1 << 40)  # a terabyte: reading it would take minutes
        out.seek(1 << 39)
        out.write(b"token")
    assert search_bytes(file, [b"\0token\0", b"other"]) == {b"\0token\0": (1 << 39) - 1}


@pytest.mark.parametrize("needle", [b"", b"\0\0"])
def test_a_needle_that_every_hole_holds_is_refused(tmp_path: Path, needle: bytes) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match="not zero"):
        search_bytes(tmp_path / "file", [needle])


def test_an_image_on_a_backing_file_is_not_a_result() -> None:
    text = """{"virtual-size": 8589934592, "filename": "o.qcow2", "format": "qcow2", "actual-size": 200704,
        "backing-filename": "base.qcow2", "full-backing-filename": "/b/base.qcow2"}"""
    info = parse_info(Path("o.qcow2"), text)
    assert info == ImageInfo(Path("o.qcow2"), "qcow2", 8 << 30, 200704, "/b/base.qcow2")
    with pytest.raises(BuildError, match=r"still needs /b/base\.qcow2"):
        require_alone(info)
    require_alone(parse_info(Path("o"), '{"virtual-size": 1, "format": "raw"}'))
