"""A schedule's `max_steps` follows the trainer's, also when a run resumes with more steps."""

import lightning_score.lean_imports  # noqa: F401

import csv
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from optimized import Run, adam
from tiny import TINY
from torch.optim import lr_scheduler as schedules

from lightning_score.cli import run
from lightning_score.commands.configs import shipped
from lightning_score.commands.total_steps import linked
from lightning_score.errors import InputError
from lightning_score.sweep.loaded import ParsedCommand


def schedule_of(*options):
    return ParsedCommand(["fit", "--config=ncsn", *options]).config["model"]["lr_scheduler"]["init_args"]


KINDS = [
    ("LinearLR", "total_iters", ""),
    ("CosineAnnealingLR", "T_max", ""),
    ("PolynomialLR", "total_iters", ""),
    ("OneCycleLR", "total_steps", ", max_lr: 0.1"),
]


def test_every_shipped_schedule_that_decays_to_zero_follows_max_steps():
    for file in shipped().rglob("*.yaml"):
        schedule = (yaml.safe_load(file.read_text())["model"].get("lr_scheduler") or {}).get("init_args", {})
        assert schedule.get("end_factor") != 0.0 or schedule["total_iters"] == "max_steps", file


@pytest.mark.parametrize(("kind", "name", "others"), KINDS)
def test_the_number_is_that_of_the_trainer(kind, name, others):
    whole = f"--model.lr_scheduler={{class_path: {kind}, init_args: {{{name}: max_steps{others}}}}}"
    assert schedule_of(whole)[name] == 880
    assert schedule_of(whole, "--trainer.max_steps=7")[name] == 7
    assert schedule_of(whole, f"--model.lr_scheduler.{name}=9", "--trainer.max_steps=7")[name] == 9


def test_lists_and_what_cannot_be_followed():
    milestones = "--model.lr_scheduler={class_path: MultiStepLR, init_args: {milestones: [10, max_steps]}}"
    assert schedule_of(milestones)["milestones"] == [10, 880]
    with pytest.raises(InputError, match=r"total_iters=max_steps: follows trainer.max_steps, which is -1"):
        schedule_of("--trainer.max_steps=-1")


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("name", ["T_max", "total_iters", "total_steps"])
def test_any_number_of_steps_is_linked_again(steps, name):
    """After a run of a single step, too, where other numbers may well be 1."""
    config = {"trainer": {"max_steps": steps}, "model": {"lr_scheduler": {"init_args": {name: max(steps, 1), "power": 1}}}}
    assert linked(config) == {"model": {"lr_scheduler": {"init_args": {name: "max_steps", "power": 1}}}}


def sequence(steps):
    """Warm-up and decay over all steps, which has no closed form."""
    return lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1, 1.0, 2), schedules.LinearLR(optimizer, 1.0, 0.0, steps - 2)], [2]
    )


class Halves(schedules.LRScheduler):
    """A user's own, with a number that it computes once."""

    def __init__(self, optimizer, total: int):
        self.half = total // 2
        super().__init__(optimizer)

    def get_lr(self):
        return [rate if self.last_epoch < self.half else 0.0 for rate in self.base_lrs]


STRETCHED = {
    "linear": lambda n: partial(schedules.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=n),
    "cosine": lambda n: partial(schedules.CosineAnnealingLR, T_max=n),
    "polynomial": lambda n: partial(schedules.PolynomialLR, total_iters=n),
    "one cycle": lambda n: partial(schedules.OneCycleLR, max_lr=0.1, total_steps=n),
    "sequence": sequence,
}


@pytest.mark.parametrize("name", STRETCHED)
def test_a_schedule_that_has_ended_continues_like_a_longer_one(name):
    make = STRETCHED[name]
    old = Run(adam(lr=0.05), make(6)).steps(6)
    resumed = Run(adam(lr=0.05), make(14)).goes_on_from(old).steps(8)
    assert resumed.rates[6:] == pytest.approx(Run(adam(lr=0.05), make(14)).steps(14).rates[6:])
    assert all(resumed.rates[6:])


@pytest.mark.parametrize("make", [STRETCHED["linear"](6), STRETCHED["polynomial"](6), partial(Halves, total=6)])
def test_a_learning_rate_of_zero_in_all_steps_is_warned_of(make):
    old = Run(adam(lr=0.05), make).steps(6)
    resumed = Run(adam(lr=0.05), make).goes_on_from(old)
    with pytest.warns(UserWarning, match="the learning rate is 0 in all of the next 3 steps"):
        resumed.optimization.keep_settings(3)


def test_no_warning_where_the_rate_is_only_zero_at_first():
    resumed = Run(adam(lr=0.05), partial(schedules.CyclicLR, base_lr=0.0, max_lr=0.1, step_size_up=4, cycle_momentum=False))
    resumed.optimization.keep_settings(3)


def rates(folder):
    rows = csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines())
    return [float(row["train/lr"]) for row in rows if row["train/lr"]]


@pytest.mark.parametrize("old", [False, True], ids=["", "run of an older version"])
@pytest.mark.slow
def test_a_finished_run_trains_when_it_resumes(tmp_path, monkeypatch, old):
    """As the README says: with its folder alone, and with its checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY.replace("total_iters: max_steps", "total_iters: 3") if old else TINY)
    quick = ["--evaluate.features=null"]
    assert run(["fit", "--config=tiny.yaml", *quick, "--output=run"]) == 0
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert written["model"]["lr_scheduler"]["init_args"]["total_iters"] == 3  # a number
    others = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=1", "--output=other"]
    assert run(["fit", "--ckpt_path=run/last.ckpt", *others]) == 0
    assert run(["fit", "--ckpt_path=run", "--trainer.max_steps=6"]) == 0
    expected = [1e-3 * (1 - k / 6) for k in (3, 4, 5)]
    assert rates("run")[3:] == pytest.approx(expected) and rates("other") == pytest.approx(expected)


STATES = ["loops", "callbacks", "optimizer_states", "lr_schedulers", "state_dict", "global_step"]


class TestOtherClasses:
    """A checkpoint of another optimizer, or another schedule."""

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("first")
        (folder / "tiny.yaml").write_text(TINY)
        assert run(["fit", f"--config={folder}/tiny.yaml", "--evaluate.features=null", f"--output={folder}/run",
                    "--trainer.logger=false"]) == 0  # fmt: skip
        return folder / "run" / "last.ckpt"

    @pytest.mark.parametrize(
        "options",
        [
            ["--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=max_steps"],
            ["--model.lr_scheduler=null"],
            ["--model.optimizer=SGD", "--model.optimizer.momentum=0.9"],
        ],
    )
    def test_it_resumes(self, checkpoint, tmp_path, options):
        more = [
            "--trainer.max_steps=5",
            "--trainer.log_every_n_steps=1",
            "--trainer.logger=false",
            f"--output={tmp_path / 'b'}",
        ]
        assert run(["fit", f"--ckpt_path={checkpoint}", *options, *more]) == 0
        assert torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["global_step"] == 5
        assert all(rates(tmp_path / "b"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--model.optimizer=SparseAdam"], "SparseAdam does not support dense gradients"),
            (["--model.optimizer=LBFGS"], "LBFGS: needs"),
            (["--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=0"], "optimizer, lr_scheduler"),
            (["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=0"], "optimizer, lr_scheduler"),
            (["--trainer.val_check_interval=0"], "--trainer.val_check_interval 0: must be above 0"),
            (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches 0: must be at least 1"),
            (["--trainer.val_check_interval=100"], "--trainer.val_check_interval 100: "),
            (["--trainer.devices=none"], "--trainer.devices none: "),
            (["--config=conditional"], "weights do not fit the network"),
            (
                ["--model.objective.weighting=Uncertainty"],
                "weights do not fit the objective of the options; keep its model.obj",
            ),
            ([f"--name={'x' * 300}", "--runs=r"], "1 to 200 bytes"),
        ],
    )
    def test_refused_in_one_line_with_nothing_left(self, checkpoint, tmp_path, monkeypatch, options, message, capsys):
        monkeypatch.chdir(tmp_path)
        output = [] if "--runs=r" in options else ["--output=a/b"]
        assert run(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_steps=5", *output, *options]) == 2
        printed = [line for line in capsys.readouterr().err.splitlines() if re.match("error", line)]
        assert len(printed) == 1 and message in printed[0]
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("damage", [*STATES, "no loops", "inner"])
    @pytest.mark.parametrize("command", ["fit", "test"])
    def test_a_text_in_place_of_a_state(self, checkpoint, tmp_path, damage, command, monkeypatch, capsys):
        content = torch.load(checkpoint, weights_only=True)
        if damage == "no loops":
            del content["loops"]
        elif damage == "inner":
            content["loops"]["fit_loop"] = "text"
        else:
            content[damage] = "text"
        torch.save(content, tmp_path / "c.ckpt")
        more = ["--trainer.max_steps=5"] if command == "fit" else []
        assert run([command, f"--ckpt_path={tmp_path}/c.ckpt", *more, f"--output={tmp_path}/b"]) == 2
        assert "error: --ckpt_path" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["c.ckpt"]


def test_a_schedule_that_is_replaced_is_reported_with_the_word(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--config=ncsn", "--model.lr_scheduler=ConstantLR", "--print_config"])
    assert "total_iters=max_steps" in capsys.readouterr().err
