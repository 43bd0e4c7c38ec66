"""Trains small models on some processes by Lightning's Trainer alone, and keeps the results: run as a script."""

import lightning_score.lean_imports  # noqa: F401

import json
import sys
import warnings
from functools import partial

import torch
import torch._dynamo
from forked import fork
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_score import EMA, MLP, VE, VP, ConsistencyTuning, Digits, GaussianMixture, ScoreModel
from lightning_score.data.augmentation import GeometricAugmentation
from lightning_score.networks import DDPMpp
from lightning_score.objective import (
    DenoisingScoreMatching,
    ImportanceTimes,
    Likelihood,
    SlicedScoreMatching,
    Uncertainty,
    UniformTimes,
)

STEPS = 20


def images(workers=0):
    """All that is drawn in training, in images: 14 batches of 1437, of which three processes drop two."""
    network = partial(DDPMpp, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.3, augmentations=9)
    objective = DenoisingScoreMatching(Likelihood(), ImportanceTimes(stratified=True))
    parts = {"num_classes": 10, "conditional": True, "label_dropout": 0.3, "augmentation": GeometricAugmentation(0.5)}
    data = Digits(batch_size=100, flip=True, dequantize=True, num_workers=workers)
    return ScoreModel(network, (1, 8, 8), VP(), objective=objective, **parts), data


def points():
    """Probes of sliced score matching, and a held-out part that divides by nothing: 7 batches and a rest."""
    objective = SlicedScoreMatching(times=UniformTimes(stratified=True), probes=2)
    data = GaussianMixture(num_samples=1801, batch_size=50)
    return ScoreModel(partial(MLP, width=16, depth=1), (2,), VE(0.1, 3.0), objective=objective), data


def few():
    """Fewer held-out batches than processes, and weights of the objective."""
    data, objective = GaussianMixture(num_samples=400, batch_size=100), DenoisingScoreMatching(Uncertainty())
    return ScoreModel(partial(MLP, width=16, depth=1), (2,), VE(0.1, 3.0), objective=objective), data


def tuned():
    """Stages of consistency tuning, which follow the optimizer steps, and its two passes with dropout."""
    network = partial(DDPMpp, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.3)
    objective = ConsistencyTuning(stages=3, steps=6)
    return ScoreModel(network, (1, 8, 8), VP(), objective=objective), Digits(batch_size=100)


class Seen(Callback):
    """Keeps what is logged, and the held-out examples that were seen."""

    def __init__(self):
        self.losses, self.held_out = [], 0

    def on_train_batch_end(self, trainer, model, *_):
        if "train/loss" in trainer.callback_metrics and trainer.global_step > len(self.losses):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_batch_end(self, trainer, model, outputs, batch, *_):
        self.held_out += len(batch[0])


def train(case, processes, strategy, accumulated, seeded=True):
    """The trainer and the results of a short training."""
    if seeded:
        seed_everything(3, verbose=False)
    model, data = {"images": images, "workers": partial(images, 1), "points": points, "few": few, "tuned": tuned}[case]()
    ema, seen = EMA(0.9, lengths=[0.05, 0.1]), Seen()
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, precision="64-true", max_steps=STEPS, max_epochs=-1,
        accumulate_grad_batches=accumulated, callbacks=[ema, seen], logger=False, enable_checkpointing=False,
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    full = lambda tensor: getattr(tensor, "full_tensor", lambda: tensor)().double().clone()  # noqa: E731
    found = {f"{part}/{name}": full(tensor) for part in ("state_dict", "current_model_state")
             for name, tensor in checkpoint[part].items()}  # fmt: skip
    saved = torch.load("averages/step_0000016.pt", weights_only=True) if trainer.is_global_zero else {}
    for kind, averages in ("averages", checkpoint["averages"]), ("snapshot", saved.get("averages", {})):
        found |= {f"{kind}/{length}/{name}": full(tensor)
                  for length, average in averages.items() for name, tensor in average.items()}  # fmt: skip
    found["losses"] = torch.tensor(seen.losses, dtype=torch.float64)
    trainer.validate(model, datamodule=data, verbose=False)
    found["val/loss"] = trainer.callback_metrics["val/loss"].double()
    trainer.test(model, datamodule=data, verbose=False)
    found["test/loss"] = trainer.callback_metrics["test/loss"].double()
    held_out = torch.tensor(float(seen.held_out))
    found["held out seen"] = trainer.strategy.reduce(held_out, reduce_op="sum")
    return trainer, found


def main(groups):
    """Trains the cases of each group: a file for the results, processes, strategy, accumulated batches, cases."""
    warnings.filterwarnings("ignore")

    def work(file, processes, strategy, accumulated, cases):
        found = {}
        for case in cases:
            trainer, found[case] = train(case, processes, strategy, accumulated)
        if trainer.is_global_zero:
            torch.save(found, file)
        return 0

    for group in groups:
        codes = fork(group[1], lambda rank, group=group: work(*group))
        assert not any(codes), (group, codes)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
