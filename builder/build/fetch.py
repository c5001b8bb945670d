"""Bring files of known sha256 into the cache, by URL or path, and unpack release archives safely."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import stamina

from builder.core import paths
from builder.core.digest import CHUNK
from builder.core.errors import PreflightError
from builder.core.files import file_lock
from builder.resolve.web import BUSY, PROXY_HINT, NotThere, local_path

ATTEMPTS = 5
RETRY_SECONDS = 300.0
TIMEOUT_SECONDS = 60.0

Note = Callable[[str], None]


class _Busy(Exception):
    """The server asked to come back later."""


def _client() -> httpx2.Client:
    return httpx2.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Keeps files under `<cache>/sha256/<hex>`. `client` makes the HTTP client, so that a test brings its own."""

    note: Note
    cache: Path = field(default_factory=lambda: paths.cache_home() / "downloads")
    client: Callable[[], httpx2.Client] = _client

    def path_of(self, sha256: str) -> Path:
        """Return where a file of this sha256 (hex) is kept, whether it is there or not."""
        return self.cache / "sha256" / sha256.lower()

    def fetch(self, location: str, sha256: str) -> Path:
        """Return the cached file of a URL or path, downloaded or copied when it is not there yet.

        Raises PreflightError that names both digests when the content is another one, NotThere when there is no
        such file, and PreflightError when nothing answers after several attempts. Nothing unchecked is ever kept.
        """
        place = self.path_of(sha256)
        if place.is_file():
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(place.with_name(place.name + ".lock")):
            if place.is_file():
                return place
            with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as folder:
                temporary = Path(folder) / "file"
                real = self._bring(location, temporary)
                if real != sha256.lower():
                    raise PreflightError(
                        f"checksum mismatch: expected sha256 {sha256.lower()}, got {real}",
                        location,
                        "a damaged download, or the file was replaced after its checksum was taken",
                    )
                temporary.rename(place)
        return place

    def _bring(self, location: str, out: Path) -> str:
        path = local_path(location)
        if path is not None:
            return _copy(path, out)
        self.note(f"downloading {location}")
        try:
            with self.client() as client:
                return _download(client, location, out)
        except _Busy as error:
            raise PreflightError(f"the server is busy ({error})", location, "try again later") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            text = f"the download fails: {error or type(error).__name__}"
            raise PreflightError(text, location, PROXY_HINT) from error


def unpack(archive: Path, out: Path) -> None:
    """Unpack a release archive (tar, compressed or not) into a new folder `out`.

    Members that would leave the folder, devices and odd permission bits are refused by the `data` filter
    (https://docs.python.org/3.11/library/tarfile.html#tarfile.data_filter). Raises PreflightError for a file that
    is no such archive; `out` is then gone.
    """
    out.mkdir(parents=True)
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(out, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        shutil.rmtree(out)
        raise PreflightError(f"cannot be unpacked: {error}", str(archive)) from error


def _copy(path: Path, out: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source, out.open("wb") as target:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotThere("no such file", str(path)) from error
    except OSError as error:
        raise PreflightError(f"cannot copy it: {error.strerror}", str(path)) from error
    return digest.hexdigest()


@stamina.retry(on=(httpx2.TransportError, _Busy), attempts=ATTEMPTS, timeout=RETRY_SECONDS, wait_initial=0.5)
def _download(client: httpx2.Client, url: str, out: Path) -> str:
    digest = hashlib.sha256()
    # The checksum is over the bytes as they are stored: no transfer compression, and none undone.
    with client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
        if response.status_code in BUSY:
            raise _Busy(str(response.status_code))
        if response.status_code in (404, 410):
            raise NotThere("no such file on the server", url)
        if response.is_error:
            raise PreflightError(f"the server answers {response.status_code} {response.reason_phrase}", url)
        with out.open("wb") as target:
            for chunk in response.iter_raw(CHUNK):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()
