"""Tags and notes of runs: what is allowed, who may change them, and that nothing else is touched."""

import http.client
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_folders import run_folder

from lightning_score.errors import InputError
from lightning_score.report import notes
from lightning_score.report.finding import Reader
from lightning_score.report.notes import Notes, from_json, read_notes, write_notes
from lightning_score.report.server import server


def content(root):
    """All files below a folder, with their bytes."""
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def refused(*_):
    raise PermissionError(13, "Permission denied")


class TestFile:
    def test_it_is_read_as_it_was_written_and_nothing_else_changes(self, tmp_path):
        folder = run_folder(tmp_path / "a")
        (folder / "last.ckpt").write_bytes(b"weights")
        before = content(tmp_path)
        new = Notes(("good", "größer"), "two\nlines", True)
        assert write_notes(folder, tmp_path, new, Notes().version) == new == read_notes(folder)
        assert Reader(tmp_path).look().runs[0].notes == new
        after = content(tmp_path)
        assert json.loads(after.pop("a/tags.json")) == {
            "tags": ["good", "größer"], "notes": "two\nlines", "archived": True
        }  # fmt: skip
        assert after == before

    @pytest.mark.parametrize(
        "wrong",
        [
            [], None, "text", {"tags": "good"}, {"tags": [1]}, {"tags": [""]}, {"tags": [" a"]}, {"tags": ["a,b"]},
            {"tags": ["a\nb"]}, {"tags": ["x" * 61]}, {"tags": [f"t{i}" for i in range(51)]}, {"tags": {"a": 1}},
            {"notes": 5}, {"notes": "x" * 20_001}, {"notes": "\ud800"}, {"archived": "yes"}, {"archived": 1},
        ],
    )  # fmt: skip
    def test_other_values_are_refused(self, wrong):
        with pytest.raises(InputError):
            from_json(wrong)

    def test_a_tag_is_kept_once_and_later_fields_are_ignored(self):
        assert from_json({"tags": ["a", "b", "a"], "color": "red"}) == Notes(("a", "b"))

    @pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff\xfe", b'{"tags": 7}', b"[" * 100_000])
    def test_a_damaged_file_is_named_and_not_overwritten(self, tmp_path, damage):
        folder = run_folder(tmp_path / "a")
        (folder / "tags.json").write_bytes(damage)
        (found,) = Reader(tmp_path).look().runs
        assert found.notes == Notes() and found.problems[0].startswith("tags.json: cannot be read") and found.records
        with pytest.raises(InputError, match=r"tags\.json: is damaged"):
            write_notes(folder, tmp_path, Notes(("a",)), Notes().version)
        assert (folder / "tags.json").read_bytes() == damage

    def test_only_folders_below_the_root_and_no_links(self, tmp_path):
        root, outside = tmp_path / "runs", run_folder(tmp_path / "outside")
        folder = run_folder(root / "a")
        (root / "link").symlink_to(outside)
        before = content(outside)
        for place in (outside, root / "link", root / "../outside", root / "none"):
            with pytest.raises(InputError):
                write_notes(place, root, Notes(("a",)), Notes().version)
        for target in (outside / "run.json", folder / "run.json"):
            (folder / "tags.json").unlink(missing_ok=True)
            (folder / "tags.json").symlink_to(target)
            with pytest.raises(InputError):
                write_notes(folder, root, Notes(("a",)), Notes().version)
        assert content(outside) == before and not (root / "none").exists()

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path, monkeypatch):
        folder = run_folder(tmp_path / "a")
        if os.geteuid() == 0:  # root may write everywhere
            monkeypatch.setattr(
                notes, "replace_text", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
            )
        folder.chmod(0o500)
        try:
            with pytest.raises(InputError, match=r"tags\.json: cannot be written \(Permission denied\)"):
                write_notes(folder, tmp_path, Notes(("a",)), Notes().version)
        finally:
            folder.chmod(0o700)
        assert not (folder / "tags.json").exists()

    def test_of_edits_at_the_same_time_one_is_written(self, tmp_path):
        folder = run_folder(tmp_path / "a")
        new = [Notes((f"t{i}",)) for i in range(16)]
        with ThreadPoolExecutor(16) as threads:
            results = [*threads.map(lambda each: write_notes(folder, tmp_path, each, Notes().version), new)]
        assert sum(one == each for one, each in zip(results, new, strict=True)) == 1
        assert {read_notes(folder)} == {*results}
        assert [file.name for file in folder.glob(".*")] == []


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("served") / "runs"
    run_folder(root / "a")
    with server(root, "runs", 0) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield root, serving.server_address[1]
        serving.shutdown()


class TestServer:
    def ask(self, port, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def token(self, port):
        page = self.ask(port, "GET", "/")[1].decode()
        return re.search(r'<meta name="token" content="([^"]{20,})">', page)[1]

    def post(self, port, change, **headers):
        """As the page does, with some headers changed, or left out if they are None."""
        own = {
            "X_Token": self.token(port),
            "Origin": f"http://127.0.0.1:{port}",
            "Content_Type": "application/json",
        } | headers
        body = change if isinstance(change, (bytes, str)) else json.dumps(change)
        return self.ask(
            port, "POST", "/notes", body, **{name: value for name, value in (own | headers).items() if value is not None}
        )

    def test_the_page_changes_notes(self, served):
        root, port = served
        (run,) = json.loads(self.ask(port, "GET", "/data.json")[1])["runs"]
        change = {"run": "a", "version": run["notes_version"], "tags": ["good"], "notes": "n", "archived": False}
        code, answer = self.post(port, change)
        assert code == 200 and json.loads(answer)["written"]
        (run,) = json.loads(self.ask(port, "GET", "/data.json")[1])["runs"]
        assert (run["tags"], run["notes"], run["archived"]) == (["good"], "n", False)
        code, answer = self.post(port, change | {"tags": ["late"]})  # of a page that has not seen the first change
        assert code == 409 and json.loads(answer)["tags"] == ["good"]
        assert read_notes(root / "a").tags == ("good",)

    @pytest.mark.parametrize(
        ("code", "changed"),
        [
            (403, {"X_Token": None}), (403, {"X_Token": "x"}), (403, {"X_Token": "é"}), (403, {"Origin": None}),
            (403, {"Origin": "http://evil.example"}), (403, {"Origin": "null"}), (403, {"Origin": "https://127.0.0.1"}),
            (403, {"Host": "evil.example"}), (403, {"Sec_Fetch_Site": "cross-site"}), (403, {"Sec_Fetch_Site": "same-site"}),
            (415, {"Content_Type": "text/plain"}), (415, {"Content_Type": "application/x-www-form-urlencoded"}),
            (415, {"Content_Type": None}), (413, {"Content_Length": "200001"}), (413, {"Content_Length": "-1"}),
            (413, {"Content_Length": "1e9"}), (413, {"Content_Length": "²"}),
        ],
    )  # fmt: skip
    def test_others_do_not(self, served, code, changed):
        root, port = served
        before = content(root)
        changed = {name: value and value.encode() for name, value in changed.items()}
        change = {"run": "a", "version": read_notes(root / "a").version, "tags": ["evil"]}
        assert self.post(port, change, **changed)[0] == code
        assert content(root) == before

    @pytest.mark.parametrize(
        "change",
        [
            b"", b"{", b"[1]", b"null", b"[" * 50_000, b"\xff", {}, {"run": "../outside"}, {"run": ""}, {"run": None},
            {"run": ["a"]}, {"run": "/etc"}, {"run": "a/samples"}, {"run": "a", "tags": ["x" * 100]},
            {"run": "a", "notes": 1},
        ],
    )  # fmt: skip
    def test_nonsense_is_refused_with_a_reason(self, served, change):
        root, port = served
        before = content(root)
        code, reason = self.post(port, change)
        assert code == 400 and reason and content(root) == before

    def test_only_there_and_only_so(self, served):
        _, port = served
        headers = {"X_Token": self.token(port), "Origin": f"http://127.0.0.1:{port}", "Content_Type": "application/json"}
        assert self.ask(port, "POST", "/data.json", "{}", **headers)[0] == 404
        for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
            assert self.ask(port, method, "/notes", "{}", **headers)[0] == 501

    def test_a_run_outside_of_the_root_is_not_written(self, tmp_path):
        """An evaluation in the folder of all runs is shown as a run of the folder above."""
        test = run_folder(tmp_path / "up/runs/test")
        Path(test / "run.json").write_text(json.dumps({"command": "test"}))
        with server(tmp_path / "up/runs", "runs", 0) as serving:
            threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
            port = serving.server_address[1]
            (run,) = json.loads(self.ask(port, "GET", "/data.json")[1])["runs"]
            change = {"run": run["name"], "version": run["notes_version"], "tags": ["a"]}
            code, reason = self.post(port, change)
            serving.shutdown()
        assert code == 400 and b"leads out of the folder of runs" in reason and not (tmp_path / "up/tags.json").exists()
