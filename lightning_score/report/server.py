"""Serves the report on loopback and updates it during training."""

import json
import secrets
import threading
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lightning_score.errors import InputError, one_line, require
from lightning_score.report import page
from lightning_score.report.changes import changes
from lightning_score.report.finding import Reader
from lightning_score.report.notes import from_json, write_notes
from lightning_score.report.pictures import add_pictures, version_name
from lightning_score.runs.folders import leads_out

HOST = "127.0.0.1"
PNG = b"\x89PNG\r\n\x1a\n"
TYPES = {"plotly.js": "text/javascript", "datatables.js": "text/javascript", "datatables.css": "text/css"}
VERSIONS = 8
"""Versions of the data that are kept, from which changes are computed."""
LARGEST = 200_000
"""Bytes of a change of notes."""


class WatchedRuns:
    """The current data of the page; the runs are read on request, and only those whose files have changed.

    Args:
        root: the folder of all runs.
    """

    def __init__(self, root: Path):
        self._root, self._lock, self._reader = root, threading.Lock(), Reader(root)
        self._seen: Any = None
        self._known: dict[str, dict[str, Any]] = {}
        self._version = ""
        self._pictures: dict[str, Path] = {}

    def now(self, version: str = "", as_change: bool = True) -> tuple[Any, bool, str]:
        """The data of the page, or what has changed in them since a version, or None if nothing has; whether it is a
        change; and the version of today.

        Args:
            version: one that the page has, or empty.
            as_change: whether it asks for what has changed.
        """
        with self._lock:
            self._look()
            data, known = self._known[self._version], self._known.get(version)
        if version == self._version:
            return None, False, version
        if known is None or not as_change:
            return data, False, self._version
        return changes(known, data), True, self._version

    def _look(self) -> None:
        """Reads what is new; the data have a new version if they differ from those before."""
        if self._reader.look().seen == self._seen:
            return
        data = self._read()
        before = self._known.get(self._version)
        if before is None or data | {"made": 0} != before | {"made": 0}:
            self._version = f'"{secrets.token_hex(8)}"'
            self._known = dict([*self._known.items(), (self._version, data)][-VERSIONS:])
        self._seen = self._reader.seen

    def _read(self) -> dict[str, Any]:
        data, runs = page.page_data(self._root, self._reader)
        sources = {}
        for file in [picture.file for run in runs for pictures in run.pictures.values() for picture in pictures]:
            with suppress(OSError):  # it was removed meanwhile
                path = f"picture/{version_name(file)}.png"
                sources[file], self._pictures[path] = f"/{path}", file
        add_pictures(data, runs, sources)
        return data

    def note(self, asked: Any) -> dict[str, Any]:
        """Writes notes of a run that is on the page, and returns those it has now and whether they are the new ones.

        Args:
            asked: the run's name, the version of the notes that are replaced, and the new ones.

        Raises:
            InputError: they are not allowed, or cannot be written.
        """
        new = from_json(asked)
        with self._lock:
            found = [run for run in self._reader.runs if run.name == asked.get("run")]
            require(bool(found), f"{str(asked.get('run'))[:200]}: there is no such run any more")
            now = write_notes(found[0].folder, self._root, new, str(asked.get("version")))
        return {"written": now == new, "version": now.version, **asdict(now)}

    def picture(self, path: str) -> bytes | None:
        """A picture by its address, if it is on the page and still a PNG file in the folder of all runs."""
        file = self._pictures.get(path)
        with suppress(OSError):
            if file is not None and not leads_out(file, self._root) and (found := file.read_bytes()).startswith(PNG):
                return found
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    timeout = 60

    def __init__(self, watched: WatchedRuns, title: str, token: str, *args: Any):
        self._watched, self._title, self._token = watched, title, token
        super().__init__(*args)

    def _is_own(self) -> bool:
        """Whether a request is for this address; other sites may have a name that leads here."""
        port = self.connection.getsockname()[1]
        return self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")

    def do_POST(self) -> None:
        """Changes tags and notes of a run if the page asks for it, which alone knows the token."""
        own = self._is_own() and self.headers.get("Origin") == f"http://{self.headers.get('Host')}"
        own = own and self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        size = self.headers.get("Content-Length", "")
        self.close_connection = True  # a body that is refused is not read
        if not own or not secrets.compare_digest(self.headers.get("X-Token", "").encode(), self._token.encode()):
            self._answer(403, b"only the page itself may change notes; load it again")
        elif self.path != "/notes":
            self._answer(404, b"not found")
        elif self.headers.get_content_type() != "application/json":
            self._answer(415, b"must be application/json")
        elif not (size.isascii() and size.isdigit()) or len(size) > 9 or int(size) > LARGEST:
            self._answer(413, b"has no Content-Length, or is too large")
        else:
            try:
                answer = self._watched.note(json.loads(self.rfile.read(int(size))))
                self._answer(200 if answer["written"] else 409, json.dumps(answer).encode(), "application/json")
            except (ValueError, RecursionError) as error:  # of JSON, or an InputError
                self._answer(400, one_line(error).encode(errors="replace"))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        if not self._is_own():
            self._answer(403, b"ask 127.0.0.1")
        elif path == "":
            self._answer(200, page.render(None, self._title, self._token).encode(), "text/html")
        elif path == "data.json":
            self._answer_data()
        elif path in TYPES:
            self._answer(200, page.libraries()[path].encode(), TYPES[path], "max-age=86400")
        elif found := self._watched.picture(path):
            self._answer(200, found, "image/png", "max-age=86400")
        else:
            self._answer(404, b"not found")

    def _answer_data(self) -> None:
        """The data; 304 if the page has them; and by RFC 3229, if it asks for `changes`, 226 and what has changed."""
        asked = self.headers.get("If-None-Match", "")
        found, is_change, version = self._watched.now(asked, self.headers.get("A-IM") == "changes")
        if found is None:
            return self._answer(304, b"", "application/json", ETag=version)
        body = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
        more = {"IM": "changes", "Delta-Base": asked} if is_change else {}
        self._answer(226 if is_change else 200, body, "application/json", ETag=version, **more)

    def _answer(self, status: int, body: bytes, kind: str = "text/plain", cache: str = "no-store", **more: str) -> None:
        headers = {
            "Content-Type": kind if kind == "image/png" else f"{kind}; charset=utf-8", "Content-Length": str(len(body)),
            "Cache-Control": cache, "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
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
        return ThreadingHTTPServer((HOST, port), partial(_Handler, WatchedRuns(root), title, secrets.token_urlsafe(24)))
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}; give another one, or 0 for any free port") from error
