"""A GPU in twelve minutes: `python -m pytest tests/benchmarks/test_gpu.py -m benchmark -n 0` prints one table.

Training steps and forward passes are in bfloat16 with CUDA graphs, beside diffusers' networks that are compiled alike;
samplers are beside the same calls of their network; then come commands and tests that the pages say have not run on a GPU,
and larger batches. Every job is a process of its own, which ends when its time is over; what was not measured is a row, too.
`GPU_MINUTES` changes the time of all. `GPU_DRY_RUN=1` runs the same code on a CPU, uncompiled and with few examples.
"""

import lightning_score.lean_imports  # noqa: F401

import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CORRECTORS, PREDICTORS, quick
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import test_training_step
from benchmarks.conftest import duration, seconds
from benchmarks.parts import Diffusers, Ours, autocast, model_of
from lightning_score.sampling import NoPredictor, PredictorCorrector, Uniform

DRY = os.environ.get("GPU_DRY_RUN") == "1"
pytestmark = pytest.mark.skipif(not (DRY or torch.cuda.is_available()), reason="needs a GPU, or GPU_DRY_RUN=1")

DEVICE = "cpu" if DRY else "cuda"
PEERS = {name: test_training_step.PEERS.get(name) for name in ("cifar10/ddpm", "cifar10/edm", "cifar10/ncsnpp_ve")}
BATCHES = (1, 2) if DRY else (128, 512)
ROUNDS = 1 if DRY else 20
AIMS = {"training step": 0.35, "forward pass": 0.5}
MODE = "reduce-overhead"
DRAWN = {"cifar10/edm": 1, "vp_pc": 4} if DRY else {"cifar10/edm": 128, "vp_pc": 1024}
STEPS = 2 if DRY else 20
SAMPLERS = {
    **{k.__name__: PredictorCorrector(quick(k), grid=Uniform(STEPS, 1e-2)) for k in PREDICTORS if k is not NoPredictor},
    **{k.__name__: PredictorCorrector(NoPredictor(), k(), grid=Uniform(STEPS, 1e-2)) for k in CORRECTORS
       if k().min_dimension <= 64},
}  # fmt: skip
CHOSEN = {"cifar10/edm": ["Heun"] if DRY else ["Heun", "DDIM", "SASolver"], "vp_pc": list(SAMPLERS)}
"""Samplers of a network: each step is compiled with the network in it."""
ROOM = 120e9
"""Bytes of a GPU on which all networks fit at batch 128, so that they are compiled at the same time."""
BUDGET = 60 * float(os.environ.get("GPU_MINUTES", 12))
_ends = time.monotonic() + BUDGET


def left(limit=BUDGET):
    """Seconds that a job may take."""
    return max(min(limit, _ends - time.monotonic()), 0.0)


class Job:
    """A function `(pipe, *arguments)` in a process of its own."""

    def __init__(self, function, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, function, arguments), daemon=True)
        self.process.start()
        there.close()

    def hear(self, limit=BUDGET):
        """What it tells next; a `Failed` if that is an error, or if it is late."""
        try:
            if not self.pipe.poll(left(limit)):
                self.process.kill()
                return Failed("no time left")
            return self.pipe.recv()
        except EOFError:
            return Failed("its process ended")

    def ask(self, question):
        """What it answers."""
        try:
            self.pipe.send(question)
        except OSError:
            return Failed("its process ended")
        return self.hear(60)

    def end(self):
        self.process.kill()
        self.process.join()


class Failed(str):
    """Why there is no number."""


def failed(error):
    return Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")


def _work(pipe, function, arguments):
    if DRY:
        torch.set_num_threads(1)
        torch.compiler.set_stance("force_eager")
    try:
        function(pipe, *arguments)
    except Exception as error:
        pipe.send(failed(error))


def network_costs(pipe, whose, name, batch):
    """Compiles a training step and a forward pass, tells how long that took and what a GPU can do, answers with medians."""
    start = time.monotonic()
    if whose == "ours":
        made = Ours(model_of(name, f"--model.compile={MODE}"), batch, DEVICE, torch.bfloat16)
    else:
        made = Diffusers(PEERS[name](), batch, DEVICE, torch.bfloat16)
        made.plain.compile(mode=MODE)
    parts = {"training step": made, "forward pass": made.network}
    for part in parts.values():
        for _ in range(1 if DRY else 3):
            part()
    taken = time.monotonic() - start
    pipe.send((taken, *((operations(name), peak()) if whose == "ours" else ())))
    while True:
        part = parts[pipe.recv()]
        pipe.send(statistics.median(seconds(part, DEVICE) for _ in range(ROUNDS)))


def operations(name):
    """Floating-point operations of an example, by part."""
    plain = Ours(model_of(name), 2, DEVICE)
    found = {}
    for part, function in {"training step": plain, "forward pass": plain.network}.items():
        with FlopCounterMode(display=False) as counter:
            function()
        found[part] = counter.get_total_flops() / 2
    return found


def peak():
    """Floating-point operations per second of a large product of matrices."""
    n = 256 if DRY else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(seconds(lambda: a @ b, DEVICE) for _ in range(10))


def groups():
    """Networks that are compiled at the same time: as many as fit."""
    room = not DRY and torch.cuda.get_device_properties(0).total_memory > ROOM
    return [list(PEERS)] if room else [[name] for name in PEERS]


def sampling_costs(pipe, name, batch):
    """Tells for each sampler the number of its network's calls, the seconds of samples, and those of the calls alone."""
    model = model_of(name, f"--model.compile={MODE}").to(DEVICE)
    for parameter in model.parameters():
        if not parameter.any():  # a score of zero has no norm for a step size
            torch.nn.init.normal_(parameter, std=0.02)
    network, given = model.score_function.network, []
    with torch.compiler.set_stance("force_eager"), autocast(DEVICE, torch.bfloat16):
        hook = network.register_forward_pre_hook(lambda module, arguments: given.append(arguments))
        model.draw(range(batch), sampler=SAMPLERS["DDIM"])
        hook.remove()

    def alone(calls):
        with torch.inference_mode(), autocast(DEVICE, torch.bfloat16):
            for _ in range(calls):
                network(*given[0])

    def draw(sampler):
        with autocast(DEVICE, torch.bfloat16):
            return model.draw(range(batch), sampler=sampler)

    model.eval()
    alone(3)
    for kind in CHOSEN[name]:
        sampler = SAMPLERS[kind]
        try:
            calls = round(draw(sampler).nfe)
            pairs = [
                (seconds(lambda s=sampler: draw(s), DEVICE), seconds(lambda c=calls: alone(c), DEVICE)) for _ in range(2)
            ]
            pipe.send((calls, *(min(each) for each in zip(*pairs, strict=True))))
        except Exception as error:
            pipe.send(failed(error))


FEW = ["--samples.num_samples=0", "--evaluate.features=null", "--trainer.limit_val_batches=0"]
FIT = ["fit", "--config=vp_pc", "--trainer.val_check_interval=null", "--trainer.precision=bf16-mixed", *FEW]
COMMANDS = {
    "fit with CUDA graphs, 300 steps": [*FIT, "--trainer.max_steps=300", f"--model.compile={MODE}"],
    "fit with sharded weights and NCCL": [*FIT, "--trainer.max_steps=99", "--trainer.strategy=fsdp2", "--trainer.devices=1"],
    "predict, 16 samples": ["predict", "--ckpt_path=digits/vp_pc", "--num_samples=16"],
}
TESTS = ["tests/sampling/test_sampler.py", "tests/data/test_data.py", "tests/callbacks/test_system_metrics.py"]
"""Files of tests that have cases for a GPU."""


@pytest.mark.parametrize("names", groups() if DRY or torch.cuda.is_available() else [], ids=",".join)
def test_networks(names, note, benchmark):
    benchmark.pedantic(lambda: compare_networks(names, BATCHES[0], note), rounds=1)


def compare_networks(names, batch, note):
    """The rows of some networks, whose processes compile at the same time and are then timed in turns."""
    sides = [(name, whose) for name in names for whose in (("ours", "theirs") if PEERS[name] else ("ours",))]
    jobs = {(name, whose): Job(network_costs, whose, name, batch) for name, whose in sides}
    try:
        _note_networks(jobs, names, batch, note)
    finally:
        for job in jobs.values():
            job.end()


def _note_networks(jobs, names, batch, note):
    compiled = {key: job.hear(300) for key, job in jobs.items()}
    for name in names:
        first = compiled[name, "ours"]
        for part, aim in AIMS.items():
            what = f"{name} {part}, batch {batch}, bf16, CUDA graphs"
            if isinstance(first, Failed):
                note(what, "-", first, "", "")
                continue
            taken, count, most = first
            ours = jobs[name, "ours"].ask(part)
            if isinstance(ours, Failed):
                note(what, "-", ours, "", "")
                continue
            rate = count[part] * batch / ours
            note(what, f"{duration(ours)}, {batch / ours:.4g} images/s", "compiled in", f"{taken:.0f} s", "")
            note(what, f"{rate / 1e12:.3g} TFLOP/s", f"a large matrix product (aim {aim})", f"{most / 1e12:.3g}",
                 f"{rate / most:.2f}")  # fmt: skip
            for theirs in [jobs[name, "theirs"].ask(part)] if (name, "theirs") in jobs else []:
                failed = isinstance(theirs, Failed) or isinstance(compiled[name, "theirs"], Failed)
                found = compiled[name, "theirs"] if failed else duration(theirs)
                note(what, duration(ours), "diffusers, compiled alike", found, "-" if failed else f"{theirs / ours:.2f}")


@pytest.mark.parametrize("name", DRAWN)
def test_sampling(name, note, benchmark):
    job = Job(sampling_costs, name, DRAWN[name])

    def run():
        end = time.monotonic() + 150
        for kind in CHOSEN[name]:
            found, what = job.hear(end - time.monotonic()), f"{name}, {kind}, {DRAWN[name]} samples"
            if isinstance(found, Failed):
                note(what, "-", found, "", "")
            else:
                calls, whole, alone = found
                what += f", {calls} network calls, CUDA graphs"
                note(what, duration(whole), "its network alone (aim 0.95)", duration(alone), f"{alone / whole:.3f}")

    benchmark.pedantic(run, rounds=1)
    job.end()


@pytest.mark.parametrize("what", [*COMMANDS, "tests with cases for a GPU"])
def test_commands(what, tmp_path, note, benchmark):
    tests = what not in COMMANDS
    cuda = ["--trainer.accelerator=cpu"] if DRY else []
    command = (
        ["pytest", "-q", "-n", "0", "-k", "cuda or gpu", *TESTS] if tests else ["lightning_score", *COMMANDS[what], *cuda]
    )
    root = Path(__file__).parents[2]
    variables = {**os.environ, "PYTHONPATH": str(root), "WANDB_MODE": "disabled"}

    def run():
        start = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=root if tests else tmp_path,
                env=variables,
                capture_output=True,
                text=True,
                timeout=left(90),
            )
        except subprocess.TimeoutExpired:
            return note(what, "-", "no time left", "", "")
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        result = "done" if done.returncode == 0 else f"exit code {done.returncode}"
        note(what, result, "", f"{time.monotonic() - start:.1f} s", lines[-1][:100] if tests or done.returncode else "")

    benchmark.pedantic(run, rounds=1)


def test_pages(note, benchmark):
    """Lists what the pages say has not run: what needs more than one GPU, or data and weights that are not here."""
    root, found = Path(__file__).parents[2], []
    for page in sorted(root.rglob("README.md")):
        for paragraph in page.read_text().split("\n\n"):
            text = " ".join(paragraph.split())
            if re.search(r"\b(GPU|GPUs|NCCL|H100|H200)\b", text):
                sentences = re.findall(
                    r"[^.|*]*\bnot (?:been )?(?:measured|tested|run|trained)\b[^.|*]*", text, re.IGNORECASE
                )
                found += [(str(page.relative_to(root)), sentence.strip()) for sentence in sentences]
    benchmark.pedantic(lambda: [note(page, "-", "it says", sentence, "") for page, sentence in found], rounds=1)


@pytest.mark.parametrize("name", PEERS)
def test_networks_at_a_large_batch(name, note, benchmark):
    benchmark.pedantic(lambda: compare_networks([name], BATCHES[1], note), rounds=1)
