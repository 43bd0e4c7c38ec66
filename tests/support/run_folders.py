"""Run folders as training writes them, made without training."""

import csv
import json
import math
import random
import time
from dataclasses import asdict

import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_score.runs.records import Record, append_record

SIGMAS = ("0.03", "0.2", "1")


def record(**changed):
    """A measurement of a Frechet distance."""
    values = {
        "metric": "fid_digits_898", "value": 3.0, "error": 0.3, "floor": 1.72, "floor_n": 898, "n": 898,
        "features": "digits",
        "features_hash": "abcdef123456", "resize": "none", "data": "Digits", "split": "all", "shape": [1, 8, 8],
        "data_hash": "fedcba654321", "weights": "ema", "step": 100, "denoised": True,
        "sampler": {"class": "AnnealedLangevin", "steps": 20, "guidance": None}, "nfe": 201.0, "seed": 1, "seconds": 12.0,
    }  # fmt: skip
    return Record(**(values | changed))


def status(folder, **changed):
    """Writes run.json."""
    entries = {"command": "fit", "arguments": ["fit", "--config", "configs/ncsn.yaml"], "host": "elsewhere", "pid": 1,
               "started": time.time() - 3600, "updated": time.time(), "seconds": 3600.0, "state": "finished", "message": "",
               "step": 1000, "max_steps": 1000, "version": "0.1.0", "format": 2}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(entries | changed))


def config(folder, lr=1e-3, steps=20, **changed):
    """Writes config.yaml."""
    sampler = {"class_path": "lightning_score.sampling.AnnealedLangevin", "init_args": {"steps": steps, "step_size": 2e-5}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr}}
    entries = {"seed_everything": 0, "trainer": {"max_steps": 1000, "callbacks": None},
               "model": {"sampler": sampler, "optimizer": optimizer}, "ckpt_path": None}  # fmt: skip
    (folder / "config.yaml").write_text("# lightning.pytorch==2.6\n" + yaml.safe_dump(entries | changed))


def picture(file, step, noise=0):
    """A grid of gray images with its caption."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draws = random.Random(f"{file} {noise}")
    image = Image.frombytes("L", (64, 64), bytes(draws.randrange(256) for _ in range(64 * 64)))
    metadata = PngInfo()
    metadata.add_itxt("Description", f"step {step}, NFE 201")
    image.resize((320, 320), Image.Resampling.NEAREST).save(file, pnginfo=metadata)


def run_folder(folder, points=10, validations=4, lr=1e-3, best=2.0, pictures=("samples", "progress"), seed=0):
    """A finished run.

    Args:
        folder: the new folder.
        points: rows of the training loss.
        validations: measurements and pictures.
        lr: of the config.
        best: the distance at the end.
        pictures: kinds.
        seed: of what differs between runs.
    """
    folder.mkdir(parents=True)
    config(folder, lr)
    status(folder, started=time.time() - 3600 - seed)
    draws, start = random.Random(seed), time.time() - 3600 - seed
    levels = [
        f"val/{kind}_{split}/{s}" for kind in ("loss", "excess_loss") for split in ("train", "held_out") for s in SIGMAS
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "time", "train/loss", "val/loss", *levels])
        writer.writeheader()
        for i in range(points):
            step = max((i + 1) * 1000 // points, 1)
            writer.writerow(
                {"epoch": 0, "step": step, "time": start + 3 * step, "train/loss": 9 + draws.random() + 99 / step}
            )
        for k in range(validations):
            step = (k + 1) * 1000 // validations
            row = {name: draws.random() for name in levels} | {"val/loss": 8 + draws.random()}
            writer.writerow({"epoch": 0, "step": step, "time": start + 3 * step, **row})
    lines, health = [], []
    for k in range(validations):
        step = (k + 1) * 1000 // validations
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + 3 * step))
        lines.append(json.dumps(asdict(record(value=best * (1 + 3 * math.exp(-k)), step=step, time=stamp))))
        column = [draws.random() + 0.5 for _ in SIGMAS]
        fields = ("step_size", "snr", "score_norm", "sample_norm", "data_norm", "variance_ratio", "predicted_ratio")
        health.append(json.dumps({"step": step, "sigma": [1.0, 0.2, 0.03], **dict.fromkeys(fields, column)}))
        for kind in pictures:
            picture(folder / kind / f"step_{step:07d}.png", step, seed)
    (folder / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "langevin.jsonl").write_text("\n".join(health) + "\n")
    return folder


def measured(folder, *records):
    """Adds a test of a run with these records."""
    test = folder / f"test/{len(list(folder.glob('test/*')))}"
    test.mkdir(parents=True)
    config(test)
    status(test, command="test")
    for each in records:
        append_record(test / "evaluations.jsonl", each)
    return folder
