"""`push` and `pull` against a server that speaks the Hub's protocol, with the Hub's own client."""

import json
import re
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import READER, STRANGER, Hub, Repository
from huggingface_hub import constants

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.runs.bundle import read_bundle
from lightning_score.runs.cards import license_of
from lightning_score.runs.hub import found_on_hub
from lightning_score.runs.pretrained import find_checkpoint

pytestmark = pytest.mark.slow
TOKEN = re.compile(r"hf_(o{9}|r{9}|s{9})")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Hub() as server:
        server.serve(monkeypatch, tmp_path / "hub")
        found_on_hub.cache_clear()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        yield server
        assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def shared(hub, trained):
    """A model that was pushed."""
    assert run(["push", str(trained), "me/digits", "--license=mit"]) == 0
    return hub.repositories["me/digits"]


def error_of(words, capsys):
    capsys.readouterr()
    assert run(words) == 2
    error = capsys.readouterr().err
    assert not TOKEN.search(error)
    return next(line for line in error.splitlines() if line.startswith("error: "))


def test_what_is_pulled_draws_the_samples_of_the_run(shared, trained, tmp_path, capsys):
    assert run(["pull", "me/digits"]) == 0
    printed = capsys.readouterr()
    assert run(["predict", "--ckpt_path=hf://me/digits", "--num_samples=2"]) == 0
    assert list((tmp_path / "runs/me/digits/predict").glob("*/samples.npz"))
    assert "license mit" in printed.out and not TOKEN.search(printed.out + printed.err)
    models = [ScoreModel.from_pretrained(name) for name in ("me/digits", "hf://me/digits@main", tmp_path / "digits")]
    expected = ScoreModel.load_from_checkpoint(trained / "last.ckpt").sample(3)
    assert all(torch.equal(model.sample(3), expected) for model in models)
    for name, message in (("hf://me/digits", "has no revision v9"), (tmp_path / "digits", "only a model on the Hub")):
        with pytest.raises(InputError, match=message):
            ScoreModel.from_pretrained(name, revision="v9")
    files = shared.newest
    assert sorted(files) == ["README.md", "config.yaml", "model.safetensors", "samples.png"]
    everything = b"".join(files.values()).decode(errors="replace")
    assert not TOKEN.search(everything) and str(trained.parent.parent) not in everything


def test_the_card_has_the_numbers_of_the_run(shared, trained):
    card = shared.newest["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    records = [json.loads(line) for line in (trained / "evaluations.jsonl").read_text().splitlines()]
    last = next(each for each in reversed(records) if each["step"] == 30)
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert (front["license"], metric["type"], metric["value"]) == ("mit", last["metric"], last["value"])
    row = next(line for line in card.splitlines() if line.startswith(f"| {last['metric']}"))
    for number in (last["value"], last["floor"]):
        assert f"| {number:.4g} |" in row
    assert (
        f"| {2 * last['error']:.2g} |" in row
        and f"\n{last['n']} samples with seed {last['seed']}, {last['nfe']:g} network" in card
    )
    assert "validate --ckpt_path hf://me/digits" in card and "fit --config=ncsn --trainer.max_steps=30" in card
    assert huggingface_hub.ModelCard(card).data.eval_results[0].metric_value == last["value"]


MISTAKES = [
    (["push", "RUN", "me/x"], "--license: a model card needs one; the common ones are mit"),
    (["push", "RUN", "me/x", "--license=My own"], "--license My own"),
    (["push", "RUN", "x", "--license=mit"], "as user/name"),
    (["push", "RUN", "../me/x", "--license=mit"], "as user/name"),
    (["push", "RUN", "me/x@v1", "--license=mit"], "give me/x alone"),
    (["push", "nothing", "me/x", "--license=mit"], "no such file"),
    (["push", "RUN", "you/x", "--license=mit"], "403"),
    (["pull", "me/nothing"], "there is no such model on the Hub"),
    (["pull", "me/digits", "--revision=v9"], "has no revision v9"),
    (["pull", "me/digits", "--revision=../x"], "--revision ../x"),
    (["pull", "me/other"], "not a model of lightning_score"),
    (["pull", "me/large"], "config.yaml has 2,000,000 bytes"),
    (["pull", "me/digits", "--output=kept"], "kept: already exists"),
    (["push", "RUN", "me/other", "--license=mit"], "another kind of model"),
    (["push", "RUN", "me/digits", "--license=mit", "--private"], "exists and is public"),
]


def test_mistakes_are_one_line(shared, hub, trained, tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    hub.repositories["me/other"], hub.repositories["me/large"] = Repository(), Repository()
    hub.repositories["me/other"].commit({"pytorch_model.bin": b"pickle"})
    hub.repositories["me/large"].commit({"config.yaml": b"a" * 2_000_000, "model.safetensors": b""})
    before = {name: list(each.commits) for name, each in hub.repositories.items()}
    for words, message in MISTAKES:
        assert message in error_of([str(trained) if word == "RUN" else word for word in words], capsys), words
    assert before == {name: list(each.commits) for name, each in hub.repositories.items()}
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "temporary", "kept"}
    assert not list((tmp_path / "kept").iterdir())


def test_who_may_read_what(hub, trained, monkeypatch, capsys):
    assert run(["push", str(trained), "me/secret", "--license=mit", "--private"]) == 0
    assert hub.repositories["me/secret"].private
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert "it is private; check the name, and log in by `hf auth login`" in error_of(["pull", "me/secret"], capsys)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert run(["pull", "me/secret"]) == 0
    assert "403" in error_of(["push", str(trained), "me/secret", "--license=mit"], capsys)
    hub.repositories["me/secret"].gated = True
    assert "agree on " in error_of(["pull", "me/secret", "--output=again"], capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert "push needs an account" in error_of(["push", str(trained), "me/secret", "--license=mit"], capsys)


@pytest.mark.faults("a server that lies about digests", 4)
def test_names_from_the_server_cannot_leave_the_cache(shared, hub, tmp_path, capsys):
    for name in ("ETag", "X-Repo-Commit"):
        for lie in ("../../../../escaped", "x/../../escaped"):
            hub.headers = {name: lie}
            assert "digests" in error_of(["pull", "me/digits"], capsys)
    assert not list(tmp_path.rglob("escaped*")) and not list(tmp_path.parent.glob("escaped*"))


@pytest.mark.faults("a download that is cut off")
def test_what_ends_in_the_middle_leaves_nothing(shared, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
    hub.cuts = True
    assert "hf://me/digits: " in error_of(["pull", "me/digits"], capsys)
    assert not (tmp_path / "digits").exists() and not list(tmp_path.rglob("*.incomplete"))
    hub.cuts = False
    assert run(["pull", "me/digits"]) == 0


def test_without_a_network_the_cache_serves(shared, hub, trained, monkeypatch, capsys):
    assert run(["pull", "me/digits"]) == 0
    hub.fails = "/"
    assert run(["pull", "me/digits", "--output=again"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(["pull", "me/digits", "--output=offline"]) == 0
    error = error_of(["pull", "me/absent"], capsys)
    assert "not in the cache" in error and "--ckpt_path FOLDER" in error
    assert "--output FOLDER" in error_of(["push", str(trained), "me/new", "--license=mit"], capsys)


def test_an_interrupted_push_leaves_nothing_here(hub, trained, monkeypatch, capsys):
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", interrupted)
    with pytest.raises(SystemExit):
        run(["push", str(trained), "me/digits", "--license=mit"])
    assert "empty until an upload succeeds" in capsys.readouterr().out


def test_a_folder_is_written_edited_and_pushed(hub, trained, tmp_path, capsys):
    assert run(["push", str(trained / "best.ckpt"), "me/digits", "--license=apache-2.0", "--output=model"]) == 0
    assert not hub.seen
    card = tmp_path / "model/README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: cc0-1.0") + "\nBy me.\n")
    assert run(["push", "model", "me/digits"]) == 0
    assert (
        hub.repositories["me/digits"].commits[hub.repositories["me/digits"].names["main"]]["README.md"].endswith(b"By me.\n")
    )
    assert "says cc0-1.0" in error_of(["push", "model", "me/digits", "--license=mit"], capsys)
    card.write_text("# No license\n")
    assert license_of(tmp_path / "model") is None
    assert "has no license" in error_of(["push", "model", "me/digits"], capsys)
    shutil.move(card, tmp_path / "elsewhere")
    card.symlink_to(tmp_path / "elsewhere")
    card.write_text("---\nlicense: mit\n---\n")
    assert "leads out" in error_of(["push", "model", "me/digits"], capsys)
    assert read_bundle("model")["config"]["name"] == "ncsn"


def test_a_model_of_the_package_is_passed_on_without_a_picture(hub):
    """Its weights are those of the package, and no longer compressed."""
    assert run(["push", "digits/ncsn", "me/packed"]) == 0
    assert sorted(hub.repositories["me/packed"].newest) == ["README.md", "config.yaml", "model.safetensors"]
    assert run(["pull", "me/packed"]) == 0
    found, expected = (read_bundle(folder)["state_dict"] for folder in ("packed", find_checkpoint("digits/ncsn")))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
