"""Steps per second of training and seconds of an evaluation with 1, 2 and 3 processes, as they are, and as `scale.py`
predicts them from costs of this machine; and what else a training on many machines costs.

The costs are those of a training step of one process, alone and while another one computes, of what it takes longer if two
processes sum gradients by gloo, and of drawing samples. The ratio is the measured value over the predicted one: 1 would be
perfect. Processes have one thread each; with more of them than processors these are shared.
"""

import lightning_score.lean_imports  # noqa: F401

import csv
import os
import statistics
import time
from dataclasses import dataclass
from itertools import chain, repeat

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.parts import experiment_of, model_of
from benchmarks.scale import BUCKET, Evaluation, Fabric, Training
from benchmarks.test_start import call
from lightning_score import EMA
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import shipped
from lightning_score.data import ImageStream
from lightning_score.metrics import fit
from lightning_score.metrics.frechet import frechet_estimate
from lightning_score.metrics.manifold import kernel_distance, manifold
from lightning_score.metrics.statistics import BLOCKS, FeatureSums, block_of
from lightning_score.runs.checkpoints import SafeCheckpointIO

PROCESSES = (1, 2, 3)
TRAINER = 0.8e-3
"""Seconds that `fit` adds to a step: test_framework_tax.py."""
WIDER = ["--data.batch_size=16", "--model.network.channels=128", "--model.network.multipliers=[1,2]"]
NETWORKS = {"vp_pc": ([], 200, 60), "vp_pc, 4 times as wide": (WIDER, 40, 10)}
"""Options, steps, and the first of them that are timed."""
ROUNDS = 5
"""In which steps with and without sums take turns."""
DRAWN, STEPS = 898, ["--model.sampler.grid.steps=20"]


class Steps:
    """Training steps as `fit` takes them, with the data of the model, without the trainer."""

    def __init__(self, experiment, group):
        self.model = experiment.model.train()
        self.net = DistributedDataParallel(_Loss(self.model), process_group=group)
        configured = self.model.configure_optimizers()
        self.optimizer, self.schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self.ema = EMA()
        self.ema.begin(self.model)
        self.batches = chain.from_iterable(repeat(experiment.datamodule.train_dataloader()))
        self.backward = []

    def __call__(self):
        loss = self.net(next(self.batches))
        start = time.perf_counter()
        loss.backward()
        self.backward.append(time.perf_counter() - start)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.ema.update()


class _Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.loss(batch)


@dataclass(frozen=True)
class Costs:
    """What two processes measured: seconds of the steps of one, alone and while the other computes, of backward passes, of
    what gradients in common add to a step, and of the sum of a bucket.
    """

    batch: int
    gradients: int
    alone: list[float]
    together: list[float]
    backward: float
    exchange: float
    bucket: float

    def fabric(self, processors):
        """Bandwidth, and hop between processes that compute, of a process that has its processor for itself."""
        shared = max(1.0, 2 / processors)
        bandwidth, buckets = BUCKET / (self.bucket / shared), list(self.training(processors).buckets())
        hops = max(0.0, self.exchange / shared - self.gradients / bandwidth) / (2 * len(buckets))
        return Fabric(bandwidth, hops, per_machine=64, processors=processors)

    def training(self, processors):
        low, alone, high = statistics.quantiles(self.alone, n=4)
        together = statistics.median(self.together) / alone / max(1.0, 2 / processors)
        spread = (high - low) / 1.35 / alone if processors > 1 else 0.0  # of a normal law with these quartiles
        return Training(self.batch, alone + TRAINER, self.backward, self.gradients, together, spread)


def measure(rank, folder, options, steps, results):
    """One of two processes that measure the costs of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    groups = [dist.new_group([each]) for each in range(2)]
    experiment = experiment_of("vp_pc", *options)
    own, common = Steps(experiment, groups[rank]), Steps(experiment_of("vp_pc", *options), dist.group.WORLD)
    times(own, 5)
    times(common, 5)
    alone = times(own, steps) if rank == 0 else []
    together, summed = [], []
    for _ in range(ROUNDS):
        for step, found in ((own, together), (common, summed)):
            dist.barrier()
            found += times(step, steps // ROUNDS)
    x = torch.ones(BUCKET // 4)
    dist.barrier()
    bucket = statistics.median(times(lambda: dist.all_reduce(x), 20)[2:])
    if rank == 0:
        gradients = sum(4 * parameter.numel() for parameter in experiment.model.parameters())
        backward = statistics.median(own.backward[5 : 5 + steps])
        exchange = statistics.median(summed) - statistics.median(together)
        results.put(Costs(experiment.datamodule.batch_size, gradients, alone, together, backward, exchange, bucket))
    dist.barrier()  # or the first that ends would take the connection from the other
    dist.destroy_process_group()


def times(function, rounds):
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return found


def measured(folder, options, steps=40):
    """The costs of a step."""
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(measure, (folder, options, steps, results), nprocs=2)
    return results.get()


def spread_over(processes):
    """The options for so many processes."""
    options = ["--trainer.accelerator=cpu", f"--trainer.devices={processes}"]
    return options + (["--trainer.strategy=ddp"] if processes > 1 else [])


def rows(folder, name):
    """The rows of metrics.csv with a value of this name."""
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture
def processors():
    return len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NETWORKS)
def test_training(name, tmp_path, processors, note, benchmark):
    options, steps, first = NETWORKS[name]
    rates = {}

    def run():
        for n in PROCESSES:
            output = tmp_path / f"fit{n}"
            few = [f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=10", "--samples.num_samples=0"]
            few += ["--trainer.limit_val_batches=0", "--trainer.val_check_interval=null", "--evaluate.features=null"]
            call(tmp_path, ["fit", "--config=vp_pc", *options, *few, *spread_over(n), f"--output={output}"])
            at = {int(row["step"]): float(row["time"]) for row in rows(output, "train/loss")}
            begin, end = min(step for step in at if step >= first), max(at)
            rates[n] = (end - begin) / (at[end] - at[begin])

    costs = measured(tmp_path, options)
    benchmark.pedantic(run, rounds=1)
    training, fabric = costs.training(processors), costs.fabric(processors)
    note(
        f"{name}: a step of one process alone",
        f"{1e3 * training.step:.1f} ms",
        f"its {training.gradients / 1e6:.3g} MB of gradients, summed over 2 by gloo in steps",
        f"{1e3 * costs.exchange:.2g} ms",
        f"{training.together:.2f} times as long while another computes",
    )
    for n in PROCESSES:
        predicted = 1 / training.seconds(n, fabric)
        what = f"{name}: steps/s, {n} processes on {processors} processors, predicted"
        note(what, f"{predicted:.2f}", "measured", f"{rates[n]:.2f}", f"{rates[n] / predicted:.2f}")


def test_evaluation(tmp_path, processors, note, benchmark):
    experiment = IdleExperiment(["--config", str(shipped() / "vp_pc.yaml"), "--evaluate.features=null", *STEPS])
    model, found = experiment.model, {}
    few, many = (statistics.median(times(lambda n=n: model.draw(range(n)), 3)) for n in (DRAWN // 4, DRAWN))
    image = (many - few) / (DRAWN - DRAWN // 4)
    evaluation = Evaluation(image, max(many - DRAWN * image, 0.0))
    given = ["--ckpt_path=digits/vp_pc", "--evaluate.features=DigitFeatures", f"--evaluate.num_samples={DRAWN}", *STEPS]

    def run():
        for n in PROCESSES:
            output = tmp_path / f"test{n}"
            call(tmp_path, ["test", *given, *spread_over(n), f"--output={output}"], XDG_CACHE_HOME=str(tmp_path))
            found[n] = float(rows(output, "test/sampling_seconds")[0]["test/sampling_seconds"])

    benchmark.pedantic(run, rounds=1)
    fabric = Fabric(1e9, 0.0, per_machine=64, processors=processors)
    for n in PROCESSES:
        predicted = evaluation.drawing(DRAWN, n, fabric)
        what = f"sampling seconds of {DRAWN}, {n} processes on {processors} processors, predicted"
        note(what, f"{predicted:.2f}", "measured", f"{found[n]:.2f}", f"{found[n] / predicted:.2f}")


def test_checkpoint(tmp_path, note, benchmark):
    """Weights, their average and Adam's two moments of DDPM for CIFAR-10, written as `fit` does."""
    weights = {name: each.detach() for name, each in model_of("cifar10/ddpm").named_parameters()}
    state = {kind: {name: each.clone() for name, each in weights.items()} for kind in ("raw", "average", "first", "second")}
    benchmark.pedantic(lambda: SafeCheckpointIO().save_checkpoint(state, tmp_path / "last.ckpt"), rounds=3)
    gigabytes = (tmp_path / "last.ckpt").stat().st_size / 1e9
    seconds = benchmark.stats.stats.median
    note("a checkpoint of DDPM", f"{seconds:.2f} s", "size", f"{gigabytes:.3g} GB", f"{gigabytes / seconds:.2f} GB/s")


def test_streaming(tmp_path, note, benchmark):
    """Images of 64x64 from chunks on a disk, by one process without others to load them."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(torch.randint(256, (1200, 64, 64, 3), dtype=torch.uint8).numpy()):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.bmp")
    data = ImageStream(str(tmp_path / "images"), (3, 64, 64), cache=str(tmp_path), num_workers=0, batch_size=64)
    data.chunks  # noqa: B018  # packs them
    loader = data.train_dataloader()
    benchmark.pedantic(lambda: sum(len(x) for x, _ in loader), rounds=3, warmup_rounds=1)
    images = len(loader) * 64 / benchmark.stats.stats.median
    note("streaming images of 64x64, one thread", f"{images:.0f} images/s", "", f"{images * 3 * 64**2 / 1e6:.0f} MB/s", "")


def test_metrics(note, benchmark):
    """Everything that `test` computes from the sums of 50 000 samples in 2048 features, in every process."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(2048, 2048, generator=generator) / 45
    sums = FeatureSums(2048, BLOCKS, sync_on_compute=False)
    fake, real = ((torch.randn(10_000, 2048, generator=generator) @ mixing).relu() for _ in range(2))
    sums.update(fake, block_of(torch.arange(10_000), 10_000, BLOCKS))
    statistics_of_data = fit(real)

    def metrics():
        frechet_estimate(statistics_of_data, sums)
        kernel_distance(real, fake)
        manifold(real, fake)

    benchmark.pedantic(metrics, rounds=1)
    note("FID with its error, KID, precision and recall", f"{benchmark.stats.stats.median:.0f} s", "", "", "")
