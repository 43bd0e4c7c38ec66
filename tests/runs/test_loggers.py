"""metrics.csv, and W&B in many situations: each in a separate process and environment."""

import csv
import json
import math
import os
import pty
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from wandb_server import serving

from lightning_score.runs.wandb_logger import SETTINGS, RunCSVLogger

pytestmark = pytest.mark.slow

NO_HOME = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "WANDB_ERROR_REPORTING": "false"}


# metrics.csv


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_stay_when_columns_are_added_and_when_the_run_resumes(tmp_path):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("kept")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger = RunCSVLogger(folder)
        logger.log_metrics({"train/loss": torch.tensor(1.5)}, step=0)
        (row,) = rows(folder)  # on disk at once
        assert abs(float(row.pop("time")) - time.time()) < 60 and row == {"step": "0", "train/loss": "1.5"}
        logger.log_metrics({"val/fid_digits": math.nan, "a": 1}, step=1)
        logger.finalize("failed")
        RunCSVLogger(folder).log_metrics({"train/loss": 0.5, "b": 2}, step=2)
        RunCSVLogger(folder).log_metrics({"train/loss": 0.25}, step=3)
    table = rows(folder)
    assert [row["train/loss"] for row in table] == ["1.5", "", "0.5", "0.25"]
    assert table[1]["val/fid_digits"] == "nan" and table[1]["a"] == "1" and table[2]["b"] == "2"
    assert (folder / "config.yaml").read_text() == "kept"


@pytest.mark.parametrize(
    ("there", "kept"),
    [("a,step,time\n1.5,0,2.0\n1.25,1", ["1.5"]), ("a,step,ti", []), ("", []), ("step,time,a\r\n0,2.0,1.5\r\n", ["1.5"])],
)
def test_rows_continue_after_half_a_row_and_in_any_order_of_columns(tmp_path, there, kept):
    (tmp_path / "metrics.csv").write_text(there, newline="")
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"a": 0.5}, step=2)
    logger.log_metrics({"b": 0.25}, step=3)
    assert [row["a"] for row in rows(tmp_path)] == [*kept, "0.5", ""]
    assert [row["step"] for row in rows(tmp_path)][-2:] == ["2", "3"] and rows(tmp_path)[-1]["b"] == "0.25"


def test_a_trainer_writes_into_the_folder_itself(tmp_path):
    class Tiny(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 3})
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch, batch_idx):
            self.log("train/loss", float(batch_idx))
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    logger = RunCSVLogger(tmp_path)
    trainer = Trainer(accelerator="cpu", logger=logger, max_epochs=1, log_every_n_steps=1, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(Tiny(), DataLoader(torch.zeros(3, 1)))
    assert [float(row["train/loss"]) for row in rows(tmp_path)] == [0.0, 1.0, 2.0]
    assert "width: 3" in (tmp_path / "hparams.yaml").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "hparams.yaml"}
    assert Path(trainer.log_dir) == tmp_path


# W&B

START = """
import gc, json, os, sys
import lightning_score.lean_imports  # noqa: F401
import torch, wandb, wandb.sdk.launch
from PIL import Image
from lightning.pytorch import LightningModule, Trainer
from lightning_score.runs.wandb_logger import RunCSVLogger, wandb_logger

torch.set_num_threads(1)
gc.freeze()
names, codes, never = {}, {}, os.pipe()

def finish():
    pid, status = os.wait()
    codes[names.pop(pid)] = os.waitstatus_to_exitcode(status)

for case in json.loads(sys.argv[1]):
    if len(names) == 2:
        finish()
    if pid := os.fork():
        names[pid] = case["name"]
        continue
    os.environ.clear()
    os.environ.update(case["environment"])
    for stream, path in enumerate(case["streams"]):  # a stdin without a path is a pipe into which nobody writes
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT) if path else never[0], stream)
    folder = case["folder"]
    exec(case["script"])
    break
else:
    while names:
        finish()
    print(json.dumps(codes))
"""  # saves eight imports of Lightning; what follows is the script of a case, which ends as a separate program would

LOG = """
logger = wandb_logger(folder, name="digits")
RunCSVLogger(folder).log_metrics({"train/loss": 0.5}, 3)
if logger is None:
    print("none")
else:
    logger.log_hyperparams({"model": {"step_size": 2e-5}})
    logger.log_metrics({"train/loss": 0.5}, 3)
    Image.new("RGB", (8, 8)).save(folder + "/grid.png")
    logger.log_image("samples", [folder + "/grid.png"], 3)
"""

FIT = """
class Tiny(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        assert batch_idx < LAST
        self.log_dict({"train/loss": 0.25 * batch_idx, "train/lr": 0.125})
        return self.weight.sum()

    def on_train_end(self):
        self.loggers[1].log_image("samples", [Image.new("RGB", (8, 8))], self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)

trainer = Trainer(accelerator="cpu", logger=[RunCSVLogger(folder), wandb_logger(folder)], max_epochs=1,
                  log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False)
trainer.fit(Tiny(), torch.utils.data.DataLoader(torch.zeros(3, 1)))
"""

SEVERAL = """
import signal, time
from pathlib import Path

one = wandb_logger(folder + "/one")
one.log_metrics({"loss": 1.0}, 1)
two = wandb_logger(folder + "/two")
two.log_metrics({"loss": 2.0}, 1)
wandb.finish()
users = wandb.init(mode="offline", dir=folder)
three = wandb_logger(folder + "/three")
assert three.experiment is users

children = " ".join((task / "children").read_text() for task in Path("/proc/self/task").iterdir())
for child in children.split():
    if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
        os.kill(int(child), signal.SIGKILL)
time.sleep(0.5)
for step in range(3):
    three.log_metrics({"loss": 3.0}, step)
three.log_hyperparams({"a": 1})
print("trained on", flush=True)
"""


@dataclass
class Outcome:
    """The result of a case."""

    folder: Path
    code: int
    output: str
    messages: str

    def records(self, folder: str = "") -> list[dict]:
        """The records of the only W&B run in the folder."""
        (path,) = (self.folder / folder).glob("wandb/*run-*/*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def wandb_lines(self) -> list[str]:
        """The lines that W&B or our logger printed."""
        return [line for line in self.messages.splitlines() if "W&B" in line or "wandb" in line.lower()]


@pytest.fixture(scope="module")
def server():
    """A server of W&B's protocol, and its address."""
    with serving() as (state, url):
        yield state, url


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, server) -> dict[str, Outcome]:
    """Runs all cases, two at a time."""
    root = tmp_path_factory.mktemp("cases")
    terminal, screen = pty.openpty()
    (root / "home").mkdir()
    (root / "home" / ".cache").touch()  # a file where the cache's folder should be
    key = {"WANDB_API_KEY": "k" * 40}
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "theirs", "WANDB_RUN_ID": "trial1", "WANDB_MODE": "offline"}
    cases = {
        "refused": (LOG, {**key, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}),
        "fit": (FIT.replace("LAST", "3"), {}),
        "failing": (FIT.replace("LAST", "2"), {}),
        "terminal": (LOG, {}),
        "broken": (f"sys.modules['wandb'] = None\n{LOG}", {}),
        "online": (LOG, {**key, "WANDB_BASE_URL": server[1]}),
        "disabled": (LOG, {**key, "WANDB_MODE": "disabled"}),
        "sweep": (LOG, {**key, **agent, "HOME": str(root / "home")}),
        "several": (SEVERAL, {}),
    }
    listed = []
    for name, (script, environment) in cases.items():
        streams = [os.ttyname(screen)] * 3 if name == "terminal" else ["", f"{root}/{name}.out", f"{root}/{name}.err"]
        listed.append({"name": name, "script": script, "environment": NO_HOME | environment, "streams": streams,
                       "folder": str(root / name)})  # fmt: skip
    done = subprocess.run([sys.executable, "-c", START, json.dumps(listed)], cwd=root, capture_output=True, text=True,
                          timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (root / "terminal.out").touch()
    (root / "terminal.err").write_bytes(os.read(terminal, 100_000))
    return {
        name: Outcome(root / name, code, *((root / f"{name}.{end}").read_text() for end in ("out", "err")))
        for name, code in json.loads(done.stdout).items()
    }


@pytest.mark.slow
def test_without_key_and_home_a_run_is_recorded_offline(outcomes):
    outcome = outcomes["fit"]
    assert outcome.code == 0, outcome.messages
    records = outcome.records()
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["train/loss"] for item in history if "train/loss" in item] == [0.0, 0.25, 0.5]
    assert [item["train/lr"] for item in history if "train/lr" in item] == [0.125] * 3
    assert [item["trainer/global_step"] for item in history] == [0, 1, 2, 3]
    assert {"width": 3} in [record["config"]["update"] for record in records if record["type"] == "config"]
    image = next(item["samples.filenames"][0] for item in history if "samples.filenames" in item)
    assert list(outcome.folder.glob(f"wandb/offline-run-*/files/{image}"))
    assert records[-1]["type"] == "exit" and records[-1]["exit"].get("exit_code", 0) == 0
    assert [float(row["train/loss"]) for row in rows(outcome.folder)] == [0.0, 0.25, 0.5]
    (hint,) = outcome.wandb_lines()
    (run,) = outcome.folder.glob("wandb/offline-run-*")
    assert hint.endswith(f"wandb sync {run.relative_to(outcome.folder.parent)}")
    assert not Path("/nonexistent").exists()


@pytest.mark.slow
def test_a_failing_fit_is_a_failed_run(outcomes):
    outcome = outcomes["failing"]
    assert outcome.code == 1 and "AssertionError" in outcome.messages
    assert outcome.records()[-1]["exit"]["exit_code"] == 1
    assert len(rows(outcome.folder)) == 2


def test_without_an_answer_from_the_server_a_run_is_offline(outcomes):
    outcome = outcomes["refused"]
    assert outcome.code == 0 and SETTINGS["init_timeout"] <= 20
    refusal, hint = outcome.wandb_lines()
    assert "connection refused" in refusal and "wandb sync" in hint
    assert any(record["type"] == "history" for record in outcome.records())


def test_a_terminal_is_not_prompted(outcomes):
    outcome = outcomes["terminal"]
    assert outcome.code == 0
    assert len(outcome.messages.strip().splitlines()) == 1 and "wandb sync" in outcome.messages


def test_training_continues_where_wandb_cannot_be_imported(outcomes):
    outcome = outcomes["broken"]
    assert outcome.code == 0 and outcome.output == "none\n"
    assert len(outcome.wandb_lines()) == 1 and "import of wandb halted" in outcome.messages
    assert len(rows(outcome.folder)) == 1


def test_with_a_key_a_run_is_online(outcomes, server):
    state, _ = server
    outcome = outcomes["online"]
    assert outcome.code == 0 and len(outcome.wandb_lines()) == 1 and "/somebody/lightning_score/runs/" in outcome.messages
    upserts = [body["variables"] for _, body in state.received if "upsertBucket" in body.get("query", "")]
    assert upserts[0]["project"] == "lightning_score" and upserts[0]["displayName"] == "digits"
    assert any("step_size" in (values.get("config") or "") for values in upserts)
    streamed = [body for path, body in state.received if path.endswith("/file_stream")]
    lines = [line for body in streamed for line in body["files"].get("wandb-history.jsonl", {}).get("content", [])]
    assert any(json.loads(line).get("train/loss") == 0.5 for line in lines)
    assert any("/media/images/samples" in name for name in state.uploaded)
    assert streamed[-1]["complete"] is True and streamed[-1]["exitcode"] == 0


def test_wandb_mode_disabled_is_respected(outcomes):
    outcome = outcomes["disabled"]
    assert outcome.code == 0 and outcome.output == "none\n" and not outcome.wandb_lines()
    assert not (outcome.folder / "wandb").exists()
    assert len(rows(outcome.folder)) == 1


def test_an_agents_settings_win_and_an_unusable_cache_is_silent(outcomes):
    outcome = outcomes["sweep"]
    assert outcome.code == 0 and len(outcome.wandb_lines()) == 1
    begun = next(record["run"] for record in outcome.records() if record["type"] == "run")
    assert begun["project"] == "theirs" and begun["run_id"] == "trial1" and not begun.get("display_name")


def test_runs_of_one_process_are_separate_and_a_lost_one_does_not_stop_it(outcomes):
    outcome = outcomes["several"]
    assert outcome.code == 0 and outcome.output == "trained on\n", outcome.messages
    for name, loss in (("one", 1.0), ("two", 2.0)):
        records = outcome.records(name)
        assert [record["history"]["item"]["loss"] for record in records if record["type"] == "history"] == [loss]
        assert records[-1]["type"] == "exit"
    assert sum("the run is lost" in line for line in outcome.wandb_lines()) == 1
