"""How time and memory grow: each at three sizes, with the exponent of the power law fitted through them.

Memory is the most that the process held beyond what it held before, on the CPU.
"""

import lightning_score.lean_imports  # noqa: F401

import csv
import ctypes
import gc
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parts import Ours, model_of
from benchmarks.test_start import call
from lightning_score.sampling import AnnealedLangevin, PredictorCorrector, Uniform

STATUS = Path("/proc/self/status")


def kilobytes(name):
    return int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])


def used(function):
    """Seconds and peak megabytes of the second call; the first one warms up."""
    function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives back to the system what a model keeps for its next step
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = kilobytes("VmRSS"), time.perf_counter()
    function()
    return time.perf_counter() - start, max(kilobytes("VmHWM") - before, 0) / 1024


def training(batch):
    return Ours(model_of("ddpm"), batch, "cpu")


def drawing(n):
    model = model_of("vp_pc")
    model.sampler = PredictorCorrector(grid=Uniform(10, 1e-3))
    return lambda: model.sample(n, batch_size=64)


def descending(levels):
    model = model_of("ncsn", f"--model.process.levels={levels}")
    model.sampler = AnnealedLangevin(1e-6, 2)
    return lambda: model.sample(64)


def measuring(batch):
    """The same 256 samples in batches of different sizes."""
    model = model_of("vp_pc")
    model.sampler = PredictorCorrector(grid=Uniform(10, 1e-3))
    return lambda: model.sample(256, batch_size=batch)


CASES = {
    "training step, by batch": (training, (64, 128, 256)),
    "drawing, by number of samples, 64 at once": (drawing, (64, 128, 256)),
    "annealed Langevin, by levels": (descending, (10, 20, 40)),
    "drawing 256 samples, by how many at once": (measuring, (64, 128, 256)),
}


@pytest.mark.skipif(not STATUS.exists() or torch.cuda.is_available(), reason="reads /proc; on the CPU")
@pytest.mark.parametrize("what", CASES)
def test_growth(what, note, benchmark):
    make, sizes = CASES[what]
    found = []
    benchmark.pedantic(lambda: found.extend(used(make(size)) for size in sizes), rounds=1)
    seconds, megabytes = zip(*found, strict=True)
    report(note, f"time of {what}", sizes, seconds, "s")
    report(note, f"memory of {what}", sizes, [value + 1 for value in megabytes], "MB")  # a megabyte is nothing


def test_growth_with_processes(tmp_path, note, benchmark):
    """The same evaluation on 1, 2 and 3 processes of one thread each: on two cores the third gains nothing."""
    call(tmp_path, ["fit", "--config=vp_pc", "--trainer.max_steps=2", "--evaluate.features=null", "--samples.num_samples=1"])
    sizes, seconds = (1, 2, 3), []

    def measure():
        for processes in sizes:
            options = ["--ckpt_path=runs/vp_pc/latest/last.ckpt", "--evaluate.features=DigitFeatures"]
            options += ["--evaluate.num_samples=898", "--model.sampler.grid.steps=20"]
            spread = [f"--trainer.devices={processes}", "--trainer.accelerator=cpu"]
            spread += ["--trainer.strategy=ddp"] if processes > 1 else []
            call(tmp_path, ["test", *options, *spread, f"--output=test{processes}"], OMP_NUM_THREADS="1")
            with open(tmp_path / f"test{processes}" / "metrics.csv", newline="") as file:
                found = [row["test/sampling_seconds"] for row in csv.DictReader(file)]
            seconds.append(float(next(filter(None, found))))

    benchmark.pedantic(measure, rounds=1)
    report(note, "time of an evaluation, by processes", sizes, seconds, "s")


def test_training_with_processes(tmp_path, note, benchmark):
    """Training with 1 and 2 processes of one thread and 128 images each: examples per second, and the ratio."""
    rates = []

    def measure():
        for processes in (1, 2):
            options = [
                "--config=ncsn",
                "--trainer.max_steps=60",
                "--trainer.log_every_n_steps=10",
                "--trainer.callbacks=null",
            ]
            options += ["--evaluate.features=null", "--samples.num_samples=0", "--trainer.accelerator=cpu"]
            options += [f"--trainer.devices={processes}"] + (["--trainer.strategy=ddp"] if processes > 1 else [])
            call(tmp_path, ["fit", *options, f"--output=fit{processes}"], OMP_NUM_THREADS="1")
            with open(tmp_path / f"fit{processes}" / "metrics.csv", newline="") as file:
                times = {int(row["step"]): float(row["time"]) for row in csv.DictReader(file) if row["train/loss"]}
            rates.append(40 * 128 * processes / (times[59] - times[19]))

    benchmark.pedantic(measure, rounds=1)
    one, two = (f"{rate:.0f} examples/s, {rate / 128 / k:.2f} steps/s" for k, rate in enumerate(rates, 1))
    note("training with 2 processes", two, "1 process", one, f"{rates[1] / rates[0]:.2f}")


def report(note, what, sizes, values, unit):
    exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
    note(
        f"{what} {', '.join(map(str, sizes))}",
        " ".join(f"{v:.3g}" for v in values) + f" {unit}",
        "exponent",
        "",
        f"{exponent:.2f}",
    )
