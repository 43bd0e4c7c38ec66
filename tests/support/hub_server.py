"""A server that speaks enough of the Hugging Face Hub's protocol for its own client: repositories, commits, large files."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

OWNER, READER, STRANGER = f"hf_{'o' * 34}", f"hf_{'r' * 34}", f"hf_{'s' * 34}"
"""Tokens: of the user `me`, of somebody who may read what is private, and of somebody who may not."""


class Repository:
    """The commits of a repository, each with its files by name, and who may read it."""

    def __init__(self, private=False):
        self.private, self.gated, self.commits, self.names = private, False, {"0" * 40: {}}, {"main": "0" * 40}

    @property
    def newest(self):
        """The files of the newest commit."""
        return self.commits[self.names["main"]]

    def commit(self, files, name="main"):
        kept = {**self.commits[self.names.get(name, "0" * 40)], **files}
        digest = hashlib.sha1(repr(sorted(kept.items())).encode()).hexdigest()
        self.commits[digest], self.names[name] = kept, digest
        return digest


class Hub(ThreadingHTTPServer):
    """The server; `seen` has the method and path of every request, `answers` replaces headers of answers about a file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.large, self.seen, self.headers = {}, {}, [], {}
        self.fails = ""  # part of the path of requests that fail with 503
        self.cuts = False  # whether downloads of large files end in the middle

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self):
        """The address of large files, which is another host, as on the Hub: it must not be told the token."""
        return f"http://localhost:{self.server_port}/large"

    def serve(self, patch, cache):
        """Lets the Hub's client in this process, which has read the variables of the environment, use this server."""
        patch.setattr(constants, "ENDPOINT", self.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", OWNER)

    def __enter__(self):
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status=200, content=b"", error="", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **headers} | ({"X-Error-Code": error} if error else {})
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if headers.get("cut") else content)
            if headers.get("cut"):
                self.close_connection = True

    def _token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _readable(self, name):
        """The repository, if whoever asks may know of it; else the Hub's answer."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and self._token() not in (OWNER, READER)):
            self._answer(404 if self._token() else 401, error="RepoNotFound")
            return None
        return found

    def _handle(self):
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append((self.command, path))
        if self.server.fails and self.server.fails in path:
            return self._answer(503, {"error": "busy"})
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, *found.groups())
        return self._answer(404, {"error": f"no {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def create(self):
        body = json.loads(self._body())
        if self._token() not in (OWNER, READER):
            return self._answer(401, {"error": "Invalid username or password."})
        if self._token() == READER or body["organization"] == "you":
            return self._answer(403, {"error": f"You don't have the rights ({self._token()})"})
        name = f"{body['organization']}/{body['name']}"
        self.server.repositories[name] = Repository("private" in (body.get("visibility"),) or body.get("private") is True)
        return self._answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def info(self, name, revision=None):
        if found := self._readable(name):
            digest = found.names.get(revision or "main", revision)
            siblings = [{"rfilename": file} for file in found.commits[digest]]
            self._answer(200, {"id": name, "sha": digest, "private": found.private, "siblings": siblings})

    def validate(self):
        self._body()
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, revision):
        files = json.loads(self._body())["files"]
        if self._token() != OWNER:
            return self._answer(403, {"error": "no write access"})
        modes = {each["path"]: "lfs" if each["path"].endswith((".safetensors", ".png")) else "regular" for each in files}
        return self._answer(
            200, {"files": [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]}
        )

    def batch(self, name):
        found = []
        for each in json.loads(self._body())["objects"]:
            known = each["oid"] in self.server.large
            upload = {"upload": {"href": f"{self.server.store}/{each['oid']}", "header": {}}}
            found.append({"oid": each["oid"], "size": each["size"], **({} if known else {"actions": upload})})
        self._answer(200, {"transfer": "basic", "objects": found}, Content_Type="application/vnd.git-lfs+json")

    def put(self, digest):
        assert self._token() is None
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == digest
        self.server.large[digest] = content
        self._answer()

    def commit(self, name, revision):
        files = {}
        for line in self._body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        digest = self.server.repositories[name].commit(files, revision)
        address = f"{self.server.address}/{name}/commit/{digest}"
        self._answer(200, {"success": True, "commitOid": digest, "commitUrl": address, "hookOutput": ""})

    def resolve(self, name, revision, file):
        found = self._readable(name)
        if found is None:
            return None
        if found.gated and self._token() != OWNER:
            return self._answer(403, {"error": "gated"}, "GatedRepo")
        digest = found.names.get(revision, revision)
        if digest not in found.commits:
            return self._answer(404, error="RevisionNotFound")
        if file not in found.commits[digest]:
            return self._answer(404, error="EntryNotFound", X_Repo_Commit=digest)
        content = found.commits[digest][file]
        etag, large = hashlib.sha256(content).hexdigest(), file.endswith((".safetensors", ".png"))
        headers = {"X-Repo-Commit": digest, "ETag": f'"{etag}"', **self.server.headers}
        if not large:
            return self._answer(200, content, **headers)
        self.server.large[etag] = content
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return self._answer(302, Location=f"{self.server.store}/{etag}", **headers)

    def get(self, digest):
        assert self._token() is None
        self._answer(200, self.server.large[digest], **({"cut": "1"} if self.server.cuts else {}))


REPOSITORY = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    rf"GET /api/models/{REPOSITORY}": Handler.info,
    rf"GET /api/models/{REPOSITORY}/revision/(.+)": Handler.info,
    rf"POST /api/models/{REPOSITORY}/preupload/(.+)": Handler.preupload,
    rf"POST /{REPOSITORY}\.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /large/(\w+)": Handler.put,
    rf"POST /api/models/{REPOSITORY}/commit/(.+)": Handler.commit,
    rf"(?:GET|HEAD) /{REPOSITORY}/resolve/([^/]+)/(.+)": Handler.resolve,
    r"GET /large/(\w+)": Handler.get,
}
