"""The timed parts of benchmarks: training steps of shipped models and of diffusers' networks, and their convolutions and
matrix products.
"""

import lightning_score.lean_imports  # noqa: F401

import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_score import EMA, ScoreModel
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import shipped

PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
ATTENTION = "scaled_dot_product"


def experiment_of(name: str, *options: str) -> IdleExperiment:
    """The model and the data of a shipped config, ready for training steps."""
    experiment = IdleExperiment(["--config", str(shipped() / f"{name}.yaml"), "--evaluate.features=null", *options])
    if experiment.model.objective.needs_data:
        data = experiment.datamodule
        experiment.model.objective.prepare(data.as_input(data.splits.train.x))
    return experiment


def model_of(name: str, *options: str) -> ScoreModel:
    """The model of a shipped config."""
    return experiment_of(name, *options).model


class Ours:
    """The training step of a model without the trainer around it: loss, backward, clip, fused Adam, EMA."""

    def __init__(self, model: ScoreModel, batch: int, device: str, precision: torch.dtype = torch.float32):
        self.model, self.device, self.precision = model.to(device).train(), device, precision
        optimizers = model.configure_optimizers()
        self.optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
        self.ema = EMA()
        self.ema.begin(model)
        self.x = torch.rand(batch, *model.shape, device=device).to(memory_format=torch.channels_last)
        self.y = torch.zeros(batch, dtype=torch.long, device=device)

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            loss = self.model.loss((self.x, self.y))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def network(self) -> Tensor:
        """One call of the network."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.model.score_function.network(self.x, torch.ones(len(self.x), device=self.device))


class Diffusers:
    """The training step of diffusers' examples: noise, UNet2DModel, mean squared error, backward, clip, AdamW, EMA."""

    def __init__(self, network: nn.Module, batch: int, device: str, precision: torch.dtype = torch.float32):
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.plain = network.to(device).train()
        self.net, self.device, self.precision = self.plain, device, precision
        self.scheduler = DDPMScheduler(1000)
        self.optimizer = torch.optim.AdamW(self.plain.parameters(), 1e-4)
        self.ema = EMAModel(self.plain.parameters())
        self.x = torch.rand(batch, 3, 32, 32, device=device)

    def __call__(self) -> None:
        noise = torch.randn_like(self.x)
        t = torch.randint(0, 1000, (len(self.x),), device=self.device)
        with autocast(self.device, self.precision):
            loss = nn.functional.mse_loss(self.net(self.scheduler.add_noise(self.x, noise, t), t).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.plain.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.plain.parameters())

    def network(self) -> Tensor:
        """One call of the network."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.net(self.x, torch.ones(len(self.x), device=self.device)).sample


class OwnProcess:
    """A step that another process takes: a peer's, which there has nothing to do with our settings of this one.

    Args:
        make: makes the step there; a function of a module, with its arguments.
    """

    def __init__(self, make: Callable[..., Callable[[], None]], *arguments):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        context.Process(target=_serve, args=(there, make, arguments), daemon=True).start()

    def __call__(self) -> None:
        self._pipe.send(True)
        self._pipe.recv()


def _serve(pipe, make, arguments) -> None:
    step = make(*arguments)
    while pipe.recv():
        step()
        pipe.send(True)


def diffusers_step(network: Callable[[], nn.Module], batch: int, device: str) -> Callable[[], None]:
    """The training step of a network of diffusers."""
    return Diffusers(network(), batch, device)


def diffusers_forward(network: Callable[[], nn.Module], batch: int, device: str) -> Callable[[], Tensor]:
    """One call of a network of diffusers."""
    return Diffusers(network(), batch, device).network


def autocast(device: str, precision: torch.dtype):
    """Mixed precision, or nothing for single precision."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device, precision)


def diffusers_unet() -> nn.Module:
    """diffusers' network of the size of DDPM's for CIFAR-10, google/ddpm-cifar10-32."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=[128, 256, 256, 256],
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=0.1,
    )


def diffusers_ncsnpp() -> nn.Module:
    """diffusers' NCSN++ of the size of the one for CIFAR-10: FIR resampling inside skip blocks, Fourier features."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=[128, 256, 256, 256],
        layers_per_block=4,
        down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"],
        up_block_types=["SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
        attention_head_dim=None,
        time_embedding_type="fourier",
        norm_eps=1e-6,
        mid_block_scale_factor=2**0.5,
    )


class Products(TorchDispatchMode):
    """Records the convolutions and matrix products within a `with` block, so that they can be repeated alone."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS or ATTENTION in name:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    @torch.no_grad()
    def again(self) -> None:
        """Repeats all of them on the same tensors."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)
