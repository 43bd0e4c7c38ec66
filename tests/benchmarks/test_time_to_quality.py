"""The distance of samples after the same processor time: ours, diffusers' training and denoising-diffusion-pytorch.

All train networks of about as many parameters on the digits of the package. `fit` is measured as a whole, with its start,
checkpoints and measurements; the others get as much processor time for their training steps alone, so that their data, logs
and checkpoints cost nothing. Their steps are those of diffusers' `train_unconditional.py` and of the `Trainer` of
denoising-diffusion-pytorch (`pip install denoising-diffusion-pytorch`), without flips, once with the batch and the learning
rate of these programs and once with the batch of ours and the best of a few learning rates. Each draws samples with its own
DDIM in 100 steps, and `evaluate` measures all in the same features.
"""

import lightning_score.lean_imports  # noqa: F401

import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from lightning_score import Digits

SAMPLES, STEPS, SEEDS, WARM = 898, 100, (0, 1, 2), 20
OURS = ("ncsn", "ddpm", "vp_pc")
RATES = (1e-3, 2e-3, 4e-3)
"""Learning rates that the others are given besides their own, for the batch of ours."""


def digits(batch):
    """Endless batches of the training digits in [-1, 1], in a new order in each epoch."""
    data = Digits(batch_size=batch, data_range=(-1, 1))
    x = data.as_input(data.splits.train.x)
    while True:
        for rows in torch.randperm(len(x)).split(batch):
            if len(rows) == batch:
                yield x[rows]


def train(step, make_schedule, budget):
    """Takes steps for some processor time, and returns their number.

    Args:
        step: takes a training step.
        make_schedule: given the number of steps, makes what is called after each.
        budget: seconds of processor time for all.
    """
    start = time.process_time()
    for _ in range(WARM):
        step()
    total = int(budget * WARM / (time.process_time() - start))
    after = make_schedule(total)
    for _ in range(WARM):
        after()
    taken = WARM
    while time.process_time() - start < budget:
        step()
        after()
        taken += 1
    return taken


def diffusers_samples(file, budget, seed, batch, rate):
    """Writes samples of diffusers' pipeline after training as its script does."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        norm_num_groups=8,
    )
    scheduler, average = DDPMScheduler(1000), EMAModel(network.parameters(), use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.95, 0.999), weight_decay=1e-6)
    batches = digits(batch)

    def step():
        x = next(batches)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (batch,))
        mse_loss(network(scheduler.add_noise(x, noise, t), t).sample, noise).backward()
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    steps = train(step, lambda total: get_cosine_schedule_with_warmup(optimizer, min(500, total // 10), total).step, budget)
    average.copy_to(network.parameters())
    pipeline = DDIMPipeline(network.eval(), DDIMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(SAMPLES, torch.Generator().manual_seed(seed), num_inference_steps=STEPS, output_type="numpy").images
    return write(file, drawn, network, steps)


def lucidrains_samples(file, budget, seed, batch, rate):
    """Writes samples of denoising-diffusion-pytorch after training as its trainer does."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(seed)
    network = Unet(dim=24, dim_mults=(1, 1), channels=1)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=1000, sampling_timesteps=STEPS)
    optimizer, average = (
        torch.optim.Adam(network.parameters(), rate, betas=(0.9, 0.99)),
        EMA(diffusion, beta=0.995, update_every=10),
    )
    batches = digits(batch)

    def step():
        diffusion((next(batches) + 1) / 2).backward()
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    steps = train(step, lambda total: lambda: None, budget)
    with torch.inference_mode():
        drawn = average.ema_model.eval().sample(batch_size=SAMPLES).permute(0, 2, 3, 1).numpy()
    return write(file, drawn, network, steps)


def write(file, drawn, network, steps):
    """Writes images (N, H, W, C) in [0, 1] as bytes; returns the numbers of parameters and steps."""
    np.savez(file, images=(drawn.clip(0, 1) * 255).round().astype(np.uint8))
    return sum(p.numel() for p in network.parameters()), steps


PEERS = {"diffusers": (diffusers_samples, 16, 1e-4), "denoising-diffusion-pytorch": (lucidrains_samples, 16, 1e-4)}
"""By name: the function, and the batch and the learning rate of the program."""


def call(folder, *arguments):
    """Runs a command, and returns the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-m", "lightning_score", *arguments], cwd=folder, env=environment, check=True,
                   capture_output=True)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def distance(folder, *arguments):
    """The last `fid_digits_898` that a command measures in a new folder."""
    call(folder, *arguments, "--output=measured", "--evaluate.features=DigitFeatures")
    records = [json.loads(line) for line in (folder / "measured" / "evaluations.jsonl").read_text().splitlines()]
    return next(record["value"] for record in reversed(records) if record["metric"] == f"fid_digits_{SAMPLES}")


def mean_and_error(values):
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def drawn_by(peer, folder, *arguments):
    """The distance of a peer, which trains and samples in a process of its own, and its numbers of parameters and steps."""
    file = folder / "samples.npz"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        counts = pool.apply(peer, (file, *arguments))
    return distance(folder, "evaluate", str(file), "--data=Digits"), counts


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("config", OURS)
def test_distance_after_the_same_time(config, peer, tmp_path, note, benchmark):
    pytest.importorskip("denoising_diffusion_pytorch" if "pytorch" in peer else "diffusers")
    draw, batch, rate = PEERS[peer]
    folders = [tmp_path / str(seed) for seed in SEEDS]
    for folder in folders:
        folder.mkdir()
    budgets, ours = [], []

    def compare():
        for seed, folder in zip(SEEDS, folders, strict=True):
            budgets.append(call(folder, "fit", f"--config={config}", f"--seed_everything={seed}"))
            ours.append(
                distance(folder, "test", f"--ckpt_path=runs/{config}/latest/last.ckpt", f"--evaluate.num_samples={SAMPLES}")
            )
        budget = statistics.mean(budgets)
        first = {}
        for each in (rate, *RATES):
            (folder := tmp_path / f"{each}").mkdir()
            first[each] = drawn_by(draw, folder, budget, 0, batch if each == rate else 128, each)
        best = min(RATES, key=lambda each: first[each][0])
        tuned = [first[best][0]]
        for seed in SEEDS[1:]:
            (folder := tmp_path / f"{best}_{seed}").mkdir()
            tuned.append(drawn_by(draw, folder, budget, seed, 128, best)[0])
        parameters, steps = first[best][1]
        (mine, my_error), (other, error) = mean_and_error(ours), mean_and_error(tuned)
        what, found = f"distance of {config} after {budget:.0f} CPU s", f"{mine:.2f} +- {my_error:.2f}"
        note(what, found, f"{peer}, batch 128, rate {best:g}, {parameters} parameters, {steps} steps",
             f"{other:.2f} +- {error:.2f}", f"{(other - mine) / math.hypot(error, my_error):.1f} errors apart")  # fmt: skip
        note(what, found, f"{peer}, batch {batch}, rate {rate:g}, one training", f"{first[rate][0]:.2f}", "")

    benchmark.pedantic(compare, rounds=1)
