"""Reads small files by URL or path, with retries, and says clearly what did not answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import stamina

from builder.core.errors import PreflightError

ATTEMPTS = 4
RETRY_SECONDS = 20.0
TIMEOUT_SECONDS = 20.0
BUSY = frozenset([408, 425, 429, 500, 502, 503, 504])
PROXY_HINT = "is this machine online? proxies are taken from http_proxy, https_proxy and no_proxy"

# Without this, every retry is a line of structlog on stdout, which belongs to the data that a command prints.
stamina.instrumentation.set_on_retry_hooks([])


class NotThere(PreflightError):
    """The server, or the file system, answered that there is no such file."""


class _Busy(Exception):
    """The server asked to come back later."""


@dataclass(frozen=True, slots=True)
class Web:
    """Reads URLs (http, https, file) and paths. `client` makes the HTTP client, so that a test brings its own."""

    client: Callable[[], httpx2.Client] = field(
        default=lambda: httpx2.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS)
    )

    def read(self, location: str) -> bytes:
        """Return the bytes of a file. Raises NotThere when there is none, PreflightError when nothing answers."""
        path = local_path(location)
        if path is not None:
            return _read_local(path)
        response = self._send("GET", location)
        return response.content

    def text(self, location: str) -> str:
        """Return the text of a file; raises as `read` does, also when it is no UTF-8 text."""
        try:
            return self.read(location).decode()
        except UnicodeDecodeError as error:
            raise PreflightError("the answer is not text", location) from error

    def check(self, location: str) -> None:
        """Raise NotThere or PreflightError when a file cannot be had; its content is not read."""
        path = local_path(location)
        if path is None:
            self._send("HEAD", location)
        elif not path.is_file():
            raise NotThere("no such file", str(path))

    def _send(self, method: str, url: str) -> httpx2.Response:
        try:
            with self.client() as client:
                response = _ask(client, method, url)
        except _Busy as error:
            raise PreflightError(f"the server is busy ({error})", url, "try again later") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise PreflightError(f"it does not answer: {error or type(error).__name__}", url, PROXY_HINT) from error
        if response.status_code in (404, 410):
            raise NotThere("no such file on the server", url)
        if response.is_error:
            raise PreflightError(f"the server answers {response.status_code} {response.reason_phrase}", url)
        return response


@stamina.retry(on=(httpx2.TransportError, _Busy), attempts=ATTEMPTS, timeout=RETRY_SECONDS, wait_initial=0.5)
def _ask(client: httpx2.Client, method: str, url: str) -> httpx2.Response:
    response = client.request(method, url)
    if response.status_code in BUSY:
        raise _Busy(str(response.status_code))
    return response


def local_path(location: str) -> Path | None:
    """Return the path that a location names (a path or a file URL), or None for any other URL."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(parts.path)
    return None if parts.scheme else Path(location)


def _read_local(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotThere("no such file", str(path)) from error
    except OSError as error:
        raise PreflightError(f"cannot read it: {error.strerror}", str(path)) from error
