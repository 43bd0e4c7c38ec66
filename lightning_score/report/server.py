"""Serves the report on loopback and updates it during training."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lightning_score.errors import InputError
from lightning_score.report import page
from lightning_score.report.pictures import add_pictures, version_name
from lightning_score.runs.folders import leads_out

HOST = "127.0.0.1"
PNG = b"\x89PNG\r\n\x1a\n"
TYPES = {"plotly.js": "text/javascript", "datatables.js": "text/javascript", "datatables.css": "text/css"}


class WatchedRuns:
    """The current data of the page; the runs are read on request, and only if a file has changed.

    Args:
        root: the folder of all runs.
    """

    def __init__(self, root: Path):
        self._root, self._lock = root, threading.Lock()
        self._seen, self._body = "", b""
        self._pictures: dict[str, Path] = {}

    def now(self) -> tuple[bytes, str]:
        """The JSON data of the page, and their version."""
        with self._lock:
            seen = hashlib.sha256(repr(list(self._files())).encode()).hexdigest()
            if seen != self._seen:
                self._body, self._seen = self._read(), seen
            return self._body, f'"{self._seen}"'

    def _files(self) -> Iterator[tuple[Any, ...]]:
        """What changes when a run makes progress, or a minute passes without."""
        for file in sorted(self._root.rglob("*")):
            if file.suffix in (".yaml", ".csv", ".json", ".jsonl", ".png", ".md"):
                with suppress(OSError):  # it was removed meanwhile
                    status = file.stat()
                    yield str(file), status.st_mtime_ns, status.st_size
        yield (int(time.time() // 60),)

    def _read(self) -> bytes:
        data, runs = page.page_data(self._root)
        sources = {}
        for file in [picture.file for run in runs for pictures in run.pictures.values() for picture in pictures]:
            path = f"picture/{version_name(file)}.png"
            sources[file], self._pictures[path] = f"/{path}", file
        add_pictures(data, runs, sources)
        return json.dumps(data, allow_nan=False).encode()

    def picture(self, path: str) -> bytes | None:
        """A picture by its address, if it is on the page and still a PNG file in the folder of all runs."""
        file = self._pictures.get(path)
        with suppress(OSError):
            if file is not None and not leads_out(file, self._root) and (found := file.read_bytes()).startswith(PNG):
                return found
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, watched: WatchedRuns, title: str, *args: Any):
        self._watched, self._title = watched, title
        super().__init__(*args)

    def do_GET(self) -> None:
        port, path = self.connection.getsockname()[1], self.path.partition("?")[0].lstrip("/")
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):  # the address of another site
            self._answer(403, b"ask 127.0.0.1")
        elif path == "":
            self._answer(200, page.render(None, self._title).encode(), "text/html")
        elif path == "data.json":
            body, version = self._watched.now()
            if self.headers.get("If-None-Match") == version:
                self._answer(304, b"", "application/json", ETag=version)
            else:
                self._answer(200, body, "application/json", ETag=version)
        elif path in TYPES:
            self._answer(200, page.libraries()[path].encode(), TYPES[path], "max-age=86400")
        elif found := self._watched.picture(path):
            self._answer(200, found, "image/png", "max-age=86400")
        else:
            self._answer(404, b"not found")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain", cache: str = "no-store", **more: str) -> None:
        headers = {
            "Content-Type": kind if kind == "image/png" else f"{kind}; charset=utf-8", "Content-Length": str(len(body)),
            "Cache-Control": cache, "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
        }  # fmt: skip
        self.send_response(status)
        for name, text in {**headers, **more}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Does not log requests."""


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
        return ThreadingHTTPServer((HOST, port), partial(_Handler, WatchedRuns(root), title))
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}; give another one, or 0 for any free port") from error
