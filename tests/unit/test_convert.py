from __future__ import annotations

from pathlib import Path

import pytest

from builder.build.convert import ImageInfo, parse_info, require_alone
from builder.core.errors import BuildError


def test_an_image_on_a_backing_file_is_not_a_result() -> None:
    text = """{"virtual-size": 8589934592, "filename": "o.qcow2", "format": "qcow2", "actual-size": 200704,
        "backing-filename": "base.qcow2", "full-backing-filename": "/b/base.qcow2"}"""
    info = parse_info(Path("o.qcow2"), text)
    assert info == ImageInfo(Path("o.qcow2"), "qcow2", 8 << 30, 200704, "/b/base.qcow2")
    with pytest.raises(BuildError, match=r"still needs /b/base\.qcow2"):
        require_alone(info)
    require_alone(parse_info(Path("o"), '{"virtual-size": 1, "format": "raw"}'))
