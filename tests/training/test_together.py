"""N processes train as one that accumulates the gradients of N batches: the same examples, noise, losses and weights."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_score import MLP, ScoreModel, SigmaTable
from lightning_score.data import GaussianMixture
from lightning_score.data.order import InTurn, Shuffled
from lightning_score.training.steps import Draws

SCRIPT = Path(__file__).parent.parent / "support" / "trained_together.py"


SLOW = [
    (2, "ddp", 1, ["images", "workers", "points", "few", "tuned"]),
    (2, "fsdp2", 1, ["images", "few"]),
    (3, "ddp", 2, ["images", "points"]),
    (3, "ddp", 1, ["few"]),
    (3, "fsdp2", 1, ["images"]),
]
"""Processes, strategy, accumulated batches of each, and cases."""


def trained(folder, *settings):
    """Trains with each of the settings, and on one process that accumulates as many batches; the results are in files."""
    groups = [(name(*each), *each) for each in settings]
    alone = {}
    for processes, _, accumulated, cases in settings:
        alone.setdefault(processes * accumulated, {}).update(dict.fromkeys(cases))
    groups += [(name(1, "auto", batches), 1, "auto", batches, list(cases)) for batches, cases in alone.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), json.dumps(groups)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def name(processes, strategy, accumulated, *_):
    return f"{processes}-{strategy}-{accumulated}"


def compare(folder, processes, strategy, accumulated, cases):
    """Losses, weights and averages of 20 steps across epochs, and the losses of held-out data, each example used once."""
    one = torch.load(folder / name(1, "auto", processes * accumulated), weights_only=True)
    several = torch.load(folder / name(processes, strategy, accumulated), weights_only=True)
    for case in cases:
        assert one[case].keys() == several[case].keys() and len(one[case]["losses"]) == 20
        for key, value in one[case].items():
            torch.testing.assert_close(
                several[case][key], value, rtol=1e-9, atol=1e-12, msg=lambda text, at=(case, key): f"{at}: {text}"
            )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    settings = 2, "ddp", 1, ["images"]
    compare(trained(tmp_path, settings), *settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all that are slow, by one start of Python."""
    return trained(tmp_path_factory.mktemp("results"), *SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SLOW, ids=lambda each: name(*each))
def test_several_processes_train_as_one(settings, results):
    compare(results, *settings)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 4, 5, 29, 40])
def test_batches_go_to_the_processes_in_turn(n, processes):
    """All examples once, in equally many batches for each process, of which some may be empty."""
    shares = [list(InTurn(n, 4, rank, processes)) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(InTurn(n, 4, 0, processes))}
    turns = [batch for together in zip(*shares, strict=True) for batch in together]
    assert turns == [*map(list, torch.arange(n).split(4)), *[[]] * (len(turns) - -(-n // 4))]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_epochs_are_of_whole_steps_of_one_order(processes, accumulated):
    """Those of one process that accumulates as many batches, whatever the number of examples."""
    settings = {"n": 59, "batch_size": 4, "seed": 5}
    one = Shuffled(**settings, accumulated=processes * accumulated)
    several = [Shuffled(**settings, rank=rank, processes=processes, accumulated=accumulated) for rank in range(processes)]
    epochs = []
    for _ in range(3):
        turns = [batch for together in zip(*several, strict=True) for batch in together]
        epochs.append([list(map(int, batch)) for batch in one])
        assert turns == epochs[-1] and len(turns) == 14 // (processes * accumulated) * processes * accumulated
        assert all(len(batch) == 4 for batch in turns)
    assert epochs[0] != epochs[1] != epochs[2]


def test_too_few_examples_for_a_step_make_a_smaller_one():
    assert len(Shuffled(8, 4, processes=1, accumulated=5)) == 2


def place(rank, processes):
    """The attributes of a trainer that give the rank and the number of processes."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda value: value)
    return SimpleNamespace(global_rank=rank, world_size=processes, strategy=strategy)


def common_share(gradients):
    """The share of the variance of a process's gradient that it has in common with another's, and its standard error.

    Args:
        gradients: of two processes at K steps, (2, K, P).
    """
    first, second = gradients - gradients.mean((0, 1))
    variance = (gradients - gradients.mean((0, 1))).square().sum(2).mean()
    products = (first * second).sum(1) / variance
    return float(products.mean()), float(products.std()) / len(products) ** 0.5


def gradients(model, examples, batch_size, steps, numbers):
    """Of two processes at some steps, which take other examples; `numbers` gives the rank that each draws as."""
    draws, rows = Draws(), torch.Generator().manual_seed(0)
    draws.begin(place(0, 2))
    found = torch.zeros(2, steps, sum(p.numel() for p in model.parameters()))
    for step in range(steps):
        for rank in range(2):
            x, y = (part[torch.randint(len(part), (batch_size,), generator=rows)] for part in examples)
            model.zero_grad()
            with draws.of(place(numbers[rank], 2), 0, step):
                model.loss((x, y)).backward()
            found[rank, step] = torch.cat([p.grad.flatten() for p in model.parameters()])
    return found


def test_the_gradients_of_two_processes_are_independent():
    """Unless both draw the same random numbers."""
    torch.manual_seed(0)
    model = ScoreModel(partial(MLP, width=16, depth=1), (2,), SigmaTable(0.1, 3.0, 10)).train()
    optimizer, train = torch.optim.Adam(model.parameters(), 1e-2), GaussianMixture(num_samples=2000).splits.train
    for _ in range(200):
        optimizer.zero_grad()
        model.loss((train.x[:256], train.y[:256])).backward()
        optimizer.step()
    share, error = common_share(gradients(model, train, 32, 100, [0, 1]))
    assert abs(share) < 4 * error
    alike, error = common_share(gradients(model, train, 32, 100, [0, 0]))
    assert alike > 0.05 and alike > 5 * error


def test_batches_have_different_random_numbers():
    """On any process, epoch and run; torch's own random numbers do not change."""
    torch.manual_seed(0)
    before, drawn = torch.get_rng_state(), set()
    for _ in range(2):
        draws = Draws()
        draws.begin(place(0, 3))
        for epoch, batch, rank in torch.cartesian_prod(*map(torch.arange, (2, 5, 3))).tolist():
            with draws.of(place(rank, 3), epoch, batch):
                drawn.add(float(torch.rand(())))
        assert torch.equal(torch.get_rng_state(), before)
        before = torch.manual_seed(1).get_state()
    assert len(drawn) == 2 * 2 * 5 * 3
