"""Serves the report on loopback and updates it during training."""

import errno
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lightning_score.errors import InputError
from lightning_score.report import page
from lightning_score.report.pictures import address, run_pictures
from lightning_score.runs.folders import leads_out

HOST = "127.0.0.1"
REST = 2.0
"""Minimal number of seconds between two reads of the runs."""
PNG = b"\x89PNG\r\n\x1a\n"
TYPES = {"plotly.js": "text/javascript", "datatables.js": "text/javascript", "datatables.css": "text/css"}


class WatchedRuns:
    """The current data of the page; the runs are read on request, and only if a file has changed.

    Args:
        root: the folder of all runs.
    """

    def __init__(self, root: Path):
        self._root, self._lock = root, threading.Lock()
        self._seen, self._looked = "", -REST
        self._body, self._pictures = b"", {}

    def now(self) -> tuple[bytes, str]:
        """The JSON data of the page, and their version."""
        with self._lock:
            if time.monotonic() - self._looked >= REST:
                seen = hashlib.sha256(repr(list(self._files())).encode()).hexdigest()
                if seen != self._seen:
                    self._body, self._seen = self._read(), seen
                self._looked = time.monotonic()
            return self._body, f'"{self._seen}"'

    def _files(self) -> Iterator[tuple[Any, ...]]:
        """What changes when a run makes progress, or a minute passes without."""
        for file in sorted(self._root.rglob("*")):
            if file.suffix in (".yaml", ".csv", ".json", ".jsonl", ".png", ".md"):
                try:
                    status = file.stat()
                except OSError:  # it was removed meanwhile
                    continue
                yield str(file), status.st_mtime_ns, status.st_size
        yield (int(time.time() // 60),)

    def _read(self) -> bytes:
        data, runs = page.page_data(self._root)
        sources: dict[Path, str] = {}
        for run in runs:
            for pictures in run.pictures.values():
                for picture in pictures:
                    name = address(picture.file)
                    sources[picture.file], self._pictures[name] = f"/picture/{name}.png", picture.file
        for entry, run in zip(data["runs"], runs, strict=True):
            entry["pictures"] = run_pictures(run, sources)
        return json.dumps(data, allow_nan=False).encode()

    def picture(self, name: str) -> bytes | None:
        """A picture by its name, if it is on the page and still a PNG file in the folder of all runs."""
        file = self._pictures.get(name)
        try:
            found = None if file is None or leads_out(file, self._root) else file.read_bytes()
        except OSError:
            return None
        return found if found is not None and found.startswith(PNG) else None


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):  # the address of another site
            return self._answer(HTTPStatus.FORBIDDEN, b"ask 127.0.0.1", "text/plain")
        path = self.path.partition("?")[0].lstrip("/")
        if path == "":
            return self._answer(HTTPStatus.OK, page.render(None, self.server.title).encode(), "text/html")
        if path == "data.json":
            return self._data()
        if path in TYPES:
            return self._answer(HTTPStatus.OK, page.libraries()[path].encode(), TYPES[path], "max-age=86400")
        if path.startswith("picture/"):
            found = self.server.watched.picture(path.removeprefix("picture/").removesuffix(".png"))
            if found is not None:
                return self._answer(HTTPStatus.OK, found, "image/png", "max-age=86400")
        return self._answer(HTTPStatus.NOT_FOUND, b"not found", "text/plain")

    def _data(self) -> None:
        body, version = self.server.watched.now()
        if self.headers.get("If-None-Match") == version:
            return self._answer(HTTPStatus.NOT_MODIFIED, b"", "application/json", version=version)
        return self._answer(HTTPStatus.OK, body, "application/json", version=version)

    def _answer(
        self, status: HTTPStatus, body: bytes, kind: str, keep: str = "no-store", version: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith(("text/", "application/")) else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", keep)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if version is not None:
            self.send_header("ETag", version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Does not log requests."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path, title: str, port: int):
        self.watched, self.title = WatchedRuns(root), title
        super().__init__((HOST, port), _Handler)


def server(root: Path, title: str, port: int) -> ThreadingHTTPServer:
    """A server of the page on loopback, which `serve_forever` starts.

    Args:
        root: the folder of all runs.
        title: the page's heading.
        port: its port; 0: any free port.

    Raises:
        InputError: the port is in use or not permitted.
    """
    try:
        return _Server(root, title, port)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"--port {port}: {reason}; give another one, or 0 for any free port") from error
