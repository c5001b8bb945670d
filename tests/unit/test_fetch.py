from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import stamina

from builder.build.fetch import Fetcher, unpack
from builder.core.digest import sha256_bytes
from builder.core.errors import PreflightError
from builder.resolve.web import NotThere

DATA = b"a program" * 100_000
DIGEST = sha256_bytes(DATA)
URL = "https://dl.example.org/kubelet"
Answer = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def fetcher(tmp_path: Path, *answers: Answer) -> tuple[Fetcher, list[httpx2.Request]]:
    asked: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1](request)

    made = Fetcher(lambda _: None, tmp_path / "cache", lambda: httpx2.Client(transport=httpx2.MockTransport(handle)))
    return made, asked


def good(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(DATA))


def broken(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError("connection reset", request=request)


def status(code: int) -> Answer:
    return lambda _: httpx2.Response(code)


def left_over(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache/sha256").iterdir() if path.suffix != ".lock"]


def test_a_download_is_kept_by_its_digest(tmp_path: Path) -> None:
    made, asked = fetcher(tmp_path, good)
    place = made.fetch(URL, DIGEST.upper())
    assert place == tmp_path / "cache/sha256" / DIGEST
    assert place.read_bytes() == DATA
    assert made.fetch(URL, DIGEST) == place
    assert len(asked) == 1


def test_the_bytes_are_those_that_lie_on_the_server(tmp_path: Path) -> None:
    packed = gzip.compress(DATA)
    headers = {"content-encoding": "gzip"}
    made, asked = fetcher(tmp_path, lambda _: httpx2.Response(200, stream=httpx2.ByteStream(packed), headers=headers))
    assert made.fetch(URL, sha256_bytes(packed)).read_bytes() == packed
    assert asked[0].headers["accept-encoding"] == "identity"


def test_a_broken_connection_and_a_busy_server_are_asked_again(tmp_path: Path) -> None:
    made, asked = fetcher(tmp_path, broken, status(503), good)
    assert made.fetch(URL, DIGEST).read_bytes() == DATA
    assert len(asked) == 3


def test_other_content_names_both_digests_and_is_not_kept(tmp_path: Path) -> None:
    made, _ = fetcher(tmp_path, good)
    with pytest.raises(PreflightError) as caught:
        made.fetch(URL, "0" * 64)
    assert "0" * 64 in str(caught.value)
    assert DIGEST in str(caught.value)
    assert URL in str(caught.value)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (broken, "the download fails: connection reset"),
        (status(503), r"the server is busy \(503\)"),
        (status(403), "the server answers 403"),
    ],
)
def test_what_does_not_answer_is_said(tmp_path: Path, answer: Answer, text: str) -> None:
    made, _ = fetcher(tmp_path, answer)
    with pytest.raises(PreflightError, match=text):
        made.fetch(URL, DIGEST)
    assert left_over(tmp_path) == []


def test_a_missing_file_is_asked_for_once(tmp_path: Path) -> None:
    made, asked = fetcher(tmp_path, status(404))
    with pytest.raises(NotThere):
        made.fetch(URL, DIGEST)
    assert len(asked) == 1


def test_paths_and_file_urls_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "kubelet"
    source.write_bytes(DATA)
    made, asked = fetcher(tmp_path, good)
    for location in (str(source), f"file://{source}"):
        assert made.fetch(location, DIGEST).read_bytes() == DATA
    with pytest.raises(NotThere, match="no such file"):
        made.fetch(str(tmp_path / "none"), "1" * 64)
    with pytest.raises(PreflightError, match="cannot copy it"):
        made.fetch(str(tmp_path), "1" * 64)
    assert asked == []


def tarball(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.mode = kind, len(b"data") if kind == tarfile.REGTYPE else 0, 0o4755
        archive.addfile(entry, io.BytesIO(b"data"))
    return path


def test_a_release_archive_is_unpacked_without_odd_permissions(tmp_path: Path) -> None:
    unpack(tarball(tmp_path / "a.tgz", "bin/containerd"), tmp_path / "out")
    file = tmp_path / "out/bin/containerd"
    assert file.read_bytes() == b"data"
    assert file.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(("name", "kind"), [("../evil", tarfile.REGTYPE), ("dev/sda", tarfile.BLKTYPE)])
def test_members_that_do_harm_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with pytest.raises(PreflightError, match="cannot be unpacked"):
        unpack(tarball(tmp_path / "a.tgz", name, kind), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(PreflightError, match=r"page\.html: cannot be unpacked"):
        unpack(tmp_path / "page.html", tmp_path / "out")
