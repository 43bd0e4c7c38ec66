"""The overhead of `fit`: processor time per step of a tiny network, compared with a bare loop.

Both take batches from data in memory and do loss, backward, Adam, its schedule and EMA; `fit` adds the trainer, its
progress bar, its logging and its checkpoints.
"""

import lightning_score.lean_imports  # noqa: F401

import time

import pytest
import torch
from lightning.pytorch import Callback

from lightning_score import EMA, Digits
from lightning_score.cli import run
from lightning_score.commands.base import IdleExperiment

TINY = ["--config=toy", "--data.batch_size=32", "--evaluate.features=null", "--evaluate.distances=[]"]
FIRST, LAST = 500, 3500


class StepClock(Callback):
    """Notes the processor time at the steps FIRST and LAST."""

    times: list[float] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in (FIRST, LAST):
            self.times.append(time.process_time())


def fit_step():
    """Processor seconds per step of `fit`."""
    StepClock.times.clear()
    options = [f"--trainer.max_steps={LAST}", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    clock = f"--trainer.callbacks+={StepClock.__module__}.StepClock"
    assert run(["fit", *TINY, *options, clock, "--samples.num_samples=1"]) == 0
    return (StepClock.times[1] - StepClock.times[0]) / (LAST - FIRST)


def bare_step():
    """Processor seconds per step of a loop without a framework, on the same data."""
    from lightning_score.commands.arguments import Arguments
    from lightning_score.commands.configs import with_found_configs

    cli = IdleExperiment(with_found_configs(Arguments.parse(["fit", *TINY])))
    model, data = cli.model.train(), cli.datamodule
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    ema = EMA()
    ema.begin(model)
    batches = data.train_dataloader().dataset
    rows = len(batches) // 32 * 32

    def steps(n):
        while True:
            for part in torch.randperm(len(batches))[:rows].split(32):
                loss = model.loss(batches.__getitems__(part))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                ema.update()
                n -= 1
                if n == 0:
                    return

    steps(FIRST)
    start = time.process_time()
    steps(LAST - FIRST)
    return (time.process_time() - start) / (LAST - FIRST)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_fit_beside_a_bare_loop(tmp_path, monkeypatch, one_thread, note, benchmark):
    monkeypatch.chdir(tmp_path)
    ours, bare = [], []
    benchmark.pedantic(lambda: (bare.append(bare_step()), ours.append(fit_step())), rounds=3)
    fit, loop = min(ours), min(bare)
    note(
        "a step of fit, tiny network, CPU time",
        f"{1e3 * fit:.2f} ms",
        "a bare loop",
        f"{1e3 * loop:.2f} ms",
        f"{loop / fit:.2f}",
    )
    note(
        "what the framework adds per step", f"{1e3 * (fit - loop):.2f} ms", "the aim", "1.0 ms", f"{1e-3 / (fit - loop):.2f}"
    )


def test_digits_are_there_at_once(benchmark, note):
    loader = Digits(batch_size=128).train_dataloader()
    benchmark(lambda: sum(len(x) for x, _ in loader))
    seconds = benchmark.stats.stats.median
    note("an epoch of digits from memory", f"{1e3 * seconds:.1f} ms", "", "", "")
