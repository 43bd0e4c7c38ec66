"""The runs for programs, and queries that read like Python, which the page and the command line answer alike."""

import csv
import io
import json
import math
import random
from pathlib import Path

import pytest
from browser import chromium
from run_folders import config, record, run_folder

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.report.export import exported
from lightning_score.report.notes import Notes, write_notes
from lightning_score.report.query import Query

PARTS = Path(__file__).parents[2] / "lightning_score/report/parts"
COMMON = {"note": "", "notes": ""}
RUNS = [
    COMMON | {"name": "ncsn/a", "state": "finished", "archived": False, "tags": ["good", "old"],
     "settings": {"model.sampler.steps": 20, "lr": 1e-3, "x-y": None, "list": [1, "a", True], "empty": {}, "on": True},
     "values": {"fid": 1.5, "steps": 1000}},
    COMMON | {"name": "ddpm/b", "state": "running", "note": "n", "notes": "hello there", "archived": True, "tags": [],
     "settings": {"model.sampler.steps": "many", "lr": 0}, "values": {"fid": 3, "nfe": 20}},
    COMMON | {"name": "c", "state": "empty", "archived": False, "tags": ["bad"], "settings": {"model.sampler.steps": 50},
     "values": {}},
]  # fmt: skip
ATOMS = ["fid", "nfe", "steps", "name", "tag", "archived", "state", "notes", "config.model.sampler.steps", "config.lr",
         "config.x_y", "config.list", "config.empty", "config.on", "True", "False", "None", "1", "0", "2", "1.5", ".5",
         "1e3", "5.", '"ncsn"', "'good'", '""', '"a"', "1e999", "()", "[]", "[1, 'a', 1]", "(1,)"]  # fmt: skip
SIGNS = ["<", "<=", ">", ">=", "==", "!=", "in", "not in"]
SCRAPS = [*"()[],-'\"<>=!.1a\\+é", " not ", " in ", " and ", " or ", "\u00a0", " is ", " if ", " for ", "lambda", ":="]


def chosen(text):
    """The names of the runs that a query selects, or None for one that is refused."""
    try:
        query = Query(text, RUNS)
    except InputError:
        return None
    return [each["name"] for each in RUNS if query.matches(each)]


def expression(draws, depth):
    """A random query."""

    def part():
        return expression(draws, depth - 1)

    kinds = [lambda: f"{part()} and {part()}", lambda: f"{part()} or {part()}", lambda: f"not {part()}",
             lambda: f"-{part()}", lambda: f"({part()})", lambda: f"[{part()}, {part()}]",
             lambda: f"{part()} {draws.choice(SIGNS)} {part()}",
             lambda: f"{part()} {draws.choice(SIGNS)} {part()} {draws.choice(SIGNS)} {part()}"]  # fmt: skip
    return draws.choice(kinds)() if depth and draws.random() < 0.8 else draws.choice(ATOMS)


def damaged(draws, text):
    """A query with a few letters removed or added."""
    for _ in range(draws.randrange(1, 3)):
        k = draws.randrange(len(text))
        text = text[:k] + (draws.choice(SCRAPS) if draws.random() < 0.6 else "") + text[k + (draws.random() < 0.5) :] or "1"
    return text


class TestQuery:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ('config.model.sampler.steps <= 50 and "n" in name and not archived', ["ncsn/a"]),
            ("fid < 2", ["ncsn/a"]),
            ("not fid < 2", ["ddpm/b"]),
            ("fid < 2 or not fid < 2", ["ncsn/a", "ddpm/b"]),
            ("1 < fid < 2 < 3", ["ncsn/a"]),
            ("1 < fid < 2 < 1", []),
            ('tag == "good"', ["ncsn/a"]),
            ('tag != "good"', ["ddpm/b", "c"]),
            ('"oo" in tag', ["ncsn/a"]),
            ('tag in ["bad", "old"]', ["ncsn/a", "c"]),
            ("not tag", ["ddpm/b"]),
            ("config.model.sampler.steps < 50", ["ncsn/a"]),
            ("config.x_y == None", ["ncsn/a"]),
            ('config.model.sampler.steps == "many"', ["ddpm/b"]),
            ("config.on == 1", ["ncsn/a"]),
            ('state in ("running", "empty") and name', ["ddpm/b", "c"]),
            ("nfe == 20.0", ["ddpm/b"]),
            ("True", ["ncsn/a", "ddpm/b", "c"]),
            ("archived or fid > 1 and fid < 2", ["ncsn/a", "ddpm/b"]),
            ("config.lr == 0", ["ddpm/b"]),
            ("config.lr", ["ncsn/a"]),
            ('not "x" in name', ["ncsn/a", "ddpm/b", "c"]),
            ('"hello" in notes', ["ddpm/b"]),
            ("fid == -1.5 or fid == - -1.5", ["ncsn/a"]),
        ],
    )
    def test_selects(self, text, names):
        assert chosen(text) == names

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fidd < 2", "no run has fidd; near: fid"),
            ("config.model.sampler.step < 1", "near: config.model.sampler.steps"),
            ("fid <", "cannot be read"),
            ("fid(2)", "not allowed"),
            ("__import__('os').system('true')", "cannot be read from .system"),
            ("[r for r in name]", "not allowed"),
            ("fid if fid else 1", "not allowed"),
            ("fid + 1", r"cannot be read from \+ 1"),
            ("", "must be one condition"),
            ("fid, 1", "must be one condition"),
            ("fid) or (fid", "must be one condition"),
            ('"a" "b"', "must be one condition"),
            ("(" * 500 + "1" + ")" * 500, "cannot be read"),
            ("not " * 50_000 + "1", "cannot be read"),
            ("fid is None", "cannot be read|not allowed"),
            ("lambda: 1", "cannot be read"),
            ("name[0]", "not allowed"),
            ("x := 1", "cannot be read"),
        ],
    )
    def test_refuses(self, text, message):
        with pytest.raises(InputError, match=message):
            Query(text, RUNS)

    def test_the_page_agrees_on_many_queries(self):
        """Right ones and damaged ones: both select the same runs, or both refuse."""
        draws = random.Random(0)
        texts = [expression(draws, draws.randrange(4)) for _ in range(2000)]
        texts += [damaged(draws, text) for text in texts]
        texts += ["1" * 5000, "9" * 400 + " > fid", "007 == fid", "fid,", "(fid, 1)", "await fid", "fid\n< 2", "5.fid", "_"]
        script = f"{(PARTS / 'query.js').read_text()}; return [parsedQuery, namesOf]"
        with chromium() as browser:
            theirs = browser.new_page().evaluate("""([script, runs, texts]) => {
                const [parsedQuery, namesOf] = new Function(script)();
                const names = namesOf(runs);
                return texts.map((text) => {
                    try {
                        const matches = parsedQuery(text, names);
                        return runs.filter(matches).map(({ name }) => name);
                    } catch { return null; }
                });
            }""", [script, RUNS, texts])  # fmt: skip
        ours = [chosen(text) for text in texts]
        assert [each for each in zip(texts, ours, theirs, strict=True) if each[1] != each[2]] == []
        assert 1500 < len([each for each in ours if each is not None]) < 3500 and len({str(each) for each in ours}) >= 7

    def test_the_parser_of_the_page_is_short_and_runs_no_code(self):
        text = (PARTS / "query.js").read_text()
        parser = text[text.index("function parsedQuery") :]
        assert parser[: parser.index("\n}\n")].count("\n") < 60 and "eval" not in text and "Function(" not in text


class TestExport:
    def test_an_empty_folder(self, tmp_path, capsys):
        assert run(["report", str(tmp_path), "--json", "--query", "fid < 2"]) == 0
        assert json.loads(capsys.readouterr().out) == {"format": 1, "root": str(tmp_path), "runs": [], "sweeps": []}
        assert run(["report", str(tmp_path), "--csv"]) == 0
        assert capsys.readouterr().out.splitlines() == ["name,state,step,seconds,tags,archived"]
        assert list(tmp_path.iterdir()) == []

    def test_runs_with_their_measurements(self, tmp_path, capsys):
        folder = run_folder(tmp_path / "a")
        config(folder, lr=math.inf)
        write_notes(folder, tmp_path, Notes(("good",), "n"), Notes().version)
        run_folder(tmp_path / "b", seed=1)
        assert run(["report", str(tmp_path), "--json", "--query", 'tag == "good"']) == 0
        text = capsys.readouterr().out
        assert "NaN" not in text and "Infinity" not in text
        (each,) = json.loads(text)["runs"]
        assert (each["name"], each["state"], each["step"], each["tags"]) == ("a", "finished", 1000, ["good"])
        assert each["settings"]["model.sampler.steps"] == 20 and each["settings"]["model.optimizer.lr"] is None
        last = each["measurements"][-1]
        assert (last["metric"], last["error"], last["floor"]) == ("fid_digits_898", 0.3, 1.72)
        assert each["values"]["fid"] == pytest.approx(min(record["value"] for record in each["measurements"]), rel=1e-5)

    def test_sweeps_with_best_front_and_failures(self, tmp_path):
        folder = tmp_path / "sweeps/eps"
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text("metric: {name: test/fid, goal: minimize}\n")
        titles = ["trial", "state", "steps", "test/fid", "error", "floor", "n", "nfe", "seconds", "folder", "message",
                  "without", "paired", "worker", "floor_kind"]  # fmt: skip
        lines = [[0, "complete", 5, 3.0, 0.1, "nan", 0, 5, 1, "", "", "[]", "", "", ""],
                 [1, "complete", 10, 2.0, 0.1, "nan", 0, 10, 1, "", "", "[]", "", "", ""],
                 [2, "complete", 20, 2.5, 0.1, "nan", 0, 20, 1, "", "", "[]", "", "", ""],
                 [3, "failed", 40, "nan", "nan", "nan", 0, "nan", 1, "", "no room", "[]", "", "", ""]]  # fmt: skip
        with (folder / "trials.csv").open("w", newline="") as file:
            csv.writer(file).writerows([titles, *lines])
        (tmp_path / "sweeps/none").mkdir()
        (tmp_path / "sweeps/none/study.db").touch()
        eps, none = exported(tmp_path)["sweeps"]
        assert (eps["name"], eps["best"], eps["front"]) == ("sweeps/eps", 1, [0, 1])
        assert eps["objectives"] == [{"name": "test/fid", "goal": "minimize"}] and eps["problem"] == ""
        assert [(each["state"], each["value"], each["message"]) for each in eps["trials"]][-1] == ("failed", None, "no room")
        assert none["problem"] and none["trials"] == []

    def test_a_table(self, tmp_path, capsys):
        run_folder(tmp_path / "a, b", lr=0.5)
        run_folder(tmp_path / "c", seed=1)
        assert run(["report", str(tmp_path), "--csv", "--output", str(tmp_path / "x.csv")]) == 0
        rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
        assert [(row["name"], row["config.model.optimizer.lr"], row["nfe"]) for row in rows] == [
            ("a, b", "0.5", "201.0"),
            ("c", "0.001", "201.0"),
        ]
        assert run(["report", str(tmp_path), "--query", "fid"]) == 2
        assert "add one of them" in capsys.readouterr().err

    def test_a_damaged_record_does_not_hide_the_others(self, tmp_path):
        folder = run_folder(tmp_path / "a")
        with (folder / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(vars(record(value=math.nan, step=2000)) | {"shape": [1]}) + "\n{broken\n")
        (each,) = exported(tmp_path)["runs"]
        assert each["measurements"][-1]["value"] is None and len(each["problems"]) == 1
