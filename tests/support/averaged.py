"""A small model for tests of averages, and what its training is watched by."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_score.callbacks.ema import EMA

BATCHES = 4


class Line(LightningModule):
    """A linear regression with dropout (so that random numbers matter), buffers, and Adam."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.register_buffer("sigmas", torch.linspace(0.1, 1.0, 3))
        self.register_buffer("index", torch.arange(3))
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch).square().mean())

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return flat(self)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self):
        data = torch.randn(8 * BATCHES, 3, generator=torch.Generator().manual_seed(2))
        return DataLoader(data, batch_size=8)

    def val_dataloader(self):
        return self.train_dataloader()

    test_dataloader = predict_dataloader = val_dataloader


class Watch(Callback):
    """Records the weights that the model holds in training and validation."""

    def __init__(self) -> None:
        self.validated: list[torch.Tensor] = []
        self.tested: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validated.append(flat(pl_module))

    def on_test_epoch_end(self, trainer, pl_module):
        self.tested.append(flat(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.trained.append(flat(pl_module))


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in module.parameters()])


def averages(ema: EMA, model: LightningModule) -> torch.Tensor:
    with ema.averaged(model):
        return flat(model)


def fit(model: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, **options) -> Trainer:
    """Fits deterministically: the random numbers of a step depend only on its number, resumed or not."""
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      callbacks=[*callbacks, Reseed()], **options)  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


class Reseed(Callback):
    def on_train_batch_start(self, trainer, *_):
        torch.manual_seed(trainer.global_step)
