"""A read-only container registry on 127.0.0.1 that serves the images of OCI archives.

As much of https://github.com/opencontainers/distribution-spec/blob/main/spec.md as a pull takes.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Stock:
    """`blobs` by digest, `manifests` by (repository, tag or digest)."""

    blobs: dict[str, bytes]
    manifests: dict[tuple[str, str], bytes]


def add_archive(stock: Stock, archive: Path, repository: str, tag: str) -> str:
    """Take the one image of an OCI archive into stock; return the digest of its manifest."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.isfile() and member.name.startswith("blobs/sha256/"):
                file = tar.extractfile(member)
                assert file is not None
                stock.blobs["sha256:" + member.name.rpartition("/")[2]] = file.read()
        index = tar.extractfile("index.json")
        assert index is not None
        digest = str(json.load(index)["manifests"][0]["digest"])
    for reference in (tag, digest):
        stock.manifests[repository, reference] = stock.blobs[digest]
    return digest


@contextlib.contextmanager
def serve_registry(stock: Stock) -> Iterator[int]:
    """Serve a stock on a free port of 127.0.0.1; give the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = find(stock, self.path)
            kind, body = answer or ("application/json", b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def find(stock: Stock, path: str) -> tuple[str, bytes] | None:
    """Return (content type, body) for a path of the API, or None."""
    words: Sequence[str] = path.strip("/").split("/")
    if words == ["v2"]:
        return "application/json", b"{}"
    if len(words) < 4 or words[0] != "v2":
        return None
    repository, kind, reference = "/".join(words[1:-2]), words[-2], words[-1]
    if kind == "blobs" and reference in stock.blobs:
        return "application/octet-stream", stock.blobs[reference]
    if kind == "manifests" and (repository, reference) in stock.manifests:
        return MANIFEST, stock.manifests[repository, reference]
    return None
