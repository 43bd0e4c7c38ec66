"""A resumed run has the optimizer's state of the checkpoint, and its own settings."""

import lightning_score.lean_imports  # noqa: F401

import csv
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from optimized import Run, adam
from torch.nn import Parameter
from torch.optim import lr_scheduler as schedules

from lightning_score.cli import run
from lightning_score.training.optimization import Optimization

STEPS = 14
LR = 6e-3  # of configs/ddpm.yaml


SCHEDULES = {
    "none": None,
    "warm-up": partial(schedules.LinearLR, start_factor=0.1, total_iters=8),
    "cosine": partial(schedules.CosineAnnealingLR, T_max=STEPS, eta_min=1e-5),
    "exponential": partial(schedules.ExponentialLR, gamma=0.9),
    "steps": partial(schedules.MultiStepLR, milestones=[3, 9], gamma=0.5),
    "function": partial(schedules.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "one cycle": partial(schedules.OneCycleLR, max_lr=0.1, total_steps=30),
    "sequence": lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1), schedules.ExponentialLR(optimizer, 0.9)], [5]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_changes_with_the_same_settings(name):
    make = adam(lr=0.05, betas=(0.8, 0.9)), SCHEDULES[name]
    expected = Run(*make).steps(STEPS)
    resumed = Run(*make).goes_on_from(Run(*make).steps(6)).steps(STEPS - 6)
    assert resumed.rates == expected.rates and torch.equal(resumed.weight, expected.weight)
    groups = ({**one.optimizer.param_groups[0], "params": None} for one in (resumed, expected))
    assert next(groups) == next(groups)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one cycle"])
def test_another_learning_rate_is_used(name):
    """As if the run had used it from the start."""
    before, after = adam(lr=0.05), adam(lr=0.002)
    resumed = Run(after, SCHEDULES[name]).goes_on_from(Run(before, SCHEDULES[name]).steps(6)).steps(STEPS - 6)
    expected = Run(after, SCHEDULES[name]).steps(STEPS)
    assert resumed.rates[6:] == pytest.approx(expected.rates[6:])


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (schedules.LinearLR, {"start_factor": 0.1, "total_iters": 4}, {"start_factor": 0.1, "total_iters": 10}),
        (schedules.CosineAnnealingLR, {"T_max": 6}, {"T_max": STEPS}),
        (schedules.ExponentialLR, {"gamma": 0.5}, {"gamma": 0.9}),
        (schedules.MultiStepLR, {"milestones": [2]}, {"milestones": [8]}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_another_schedule_is_used(kind, before, after):
    """A finished cosine continues where a longer one would be, not at zero."""
    old = Run(adam(lr=0.05), partial(kind, **before)).steps(6)
    resumed = Run(adam(lr=0.05), partial(kind, **after)).goes_on_from(old).steps(STEPS - 6)
    assert resumed.rates[6:] == pytest.approx(Run(adam(lr=0.05), partial(kind, **after)).steps(STEPS).rates[6:])


def test_other_settings_are_used_and_the_state_is_kept():
    old = Run(adam(lr=0.05)).steps(6)
    resumed = Run(adam(lr=0.05, weight_decay=0.3, betas=(0.5, 0.6))).goes_on_from(old)
    group, state = resumed.optimizer.param_groups[0], resumed.optimizer.state[resumed.weight]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.5, 0.6)) and state["step"] == 6
    assert torch.equal(state["exp_avg"], old.optimizer.state[old.weight]["exp_avg"])


@pytest.mark.slow
def test_from_the_command_line(tmp_path, monkeypatch):
    """The learning rates in the log of a resumed run."""
    monkeypatch.chdir(tmp_path)
    quick = ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.val_check_interval=4", "--output=first",
             "--trainer.log_every_n_steps=1", "--trainer.callbacks=null",
             "--model.lr_scheduler.total_iters=2600"]  # fmt: skip
    assert run(["fit", "--config=ddpm", *quick, "--trainer.max_steps=4"]) == 0
    again = [*quick, "--trainer.max_steps=8", "--output=second"]
    assert run(["fit", "--ckpt_path=first/last.ckpt", *again, "--model.optimizer.init_args.lr=1.0e-5"]) == 0
    first, second = (
        [
            float(row["train/lr"])
            for row in csv.DictReader(Path(name, "metrics.csv").read_text().splitlines())
            if row["train/lr"]
        ]
        for name in ("first", "second")
    )
    slope = (first[1] - first[0]) / LR  # of the config's schedule
    assert len(first) == 4 and second == pytest.approx([1e-5 * (1 + n * slope) for n in range(4, 8)])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_adam_of_channels_last_weights_is_adam(kind):
    """Also after it has read its state from a checkpoint, which has the shapes of the weights."""
    shape = 64, 32, 3, 9
    kernels = (torch.ones(shape).to(memory_format=torch.channels_last) for _ in range(2))
    weights = [[Parameter(kernel), Parameter(torch.ones(6))] for kernel in kernels]
    settings = {"lr": 0.1, "weight_decay": 0.2, "amsgrad": True}
    ours, plain = Optimization(partial(kind, fused=True, **settings), None), kind(weights[1], foreach=False, **settings)
    fused = ours.configure(iter(weights[0]))
    for step in range(6):
        for ours_, theirs in zip(*weights, strict=True):
            theirs.grad = torch.randn_like(theirs)
            ours_.grad = theirs.grad.clone()
        fused.step()
        plain.step()
        if step == 2:
            state = fused.state_dict()
            assert state["state"][0]["exp_avg"].shape == shape
            fused.load_state_dict({**state, "state": pickle.loads(pickle.dumps(state["state"]))})
    for ours_, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours_, theirs)
