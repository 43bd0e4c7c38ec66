"""The published recipes: each config builds the paper's network, takes a step, and samples as often as the paper says."""

import re

import numpy as np
import pytest
import torch
from recipes import PARAMETERS, SCIENCE, header
from torch import nn

from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import shipped
from lightning_score.data import Examples, Splits
from lightning_score.sampling import NoiseStream
from lightning_score.score.function import ScoreFunction

FASHION = [f"fashion_mnist/{name}" for name in ("ncsn16", "ddpm16", "edm16", "ncsn", "ddpm", "edm")]
EVERY = [*PARAMETERS, *FASHION, "images"]
"""All configs but those of the embedded data, which are trained for real elsewhere."""


LARGE = {"imagenet64/edm", "ncsnv2/bedroom128", "ncsnv2/celeba64", "ncsnv2/church96", "ncsnv2/ffhq256", "cifar10/edm",
         "cifar10/ddpmpp_subvp", "cifar10/ddpmpp_vp", "cifar10/ncsn", "cifar10/ncsnpp_ve", "cifar10/ncsnv2",
         "cifar10/ddo", "cifar10/ect", "cifar10/flow"}  # fmt: skip
"""Whose networks take a second or more for a step, or are others' too."""


SMALL = ["--model.network=UNet", "--model.network.channels=8", "--model.network.multipliers=[1]", "--model.network.groups=4",
         "--model.network.attention=[]", "--model.augmentation=null"]  # fmt: skip


def experiment(name, *options):
    return IdleExperiment(["--config", str(shipped() / f"{name}.yaml"), "--evaluate.features=null", *options])


class Constant(nn.Module):
    """A network that predicts the same everywhere."""

    def forward(self, x, noise_label, cond=None):
        return torch.full_like(x, 0.1)


def give_samples(model, data, images, file):
    """Gives an objective samples of the model that it refines, in place of those that `fit` reads."""
    np.savez(file, images=images.permute(0, 2, 3, 1).numpy())
    data.splits = Splits(*[Examples(images, torch.zeros(len(images), dtype=torch.long))] * 2)
    model.objective.samples = str(file)
    model.objective.receive(data)
    model.objective.begin(model.score_function)


def test_every_config_is_tested_somewhere():
    folders = {str(path.relative_to(shipped()).with_suffix("")) for path in shipped().glob("*/*.yaml")}
    assert folders == {*EVERY, *(f"science/{name}" for name in SCIENCE)} - {"images"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in EVERY])
def test_builds_the_network_and_takes_a_step(name, tmp_path):
    """On random images, of at most 32 pixels: the networks for larger ones do not depend on the size."""
    cli = experiment(name)
    model, data = cli.model, cli.datamodule
    network = model.score_function.network
    count = sum(p.numel() for p in network.parameters())
    assert count == PARAMETERS.get(name, count)
    millions = re.search(r"([\d.]+) M parameters", header(name))
    if millions:
        assert abs(count / 1e6 - float(millions[1])) < 0.06
    size = min(data.shape[1], 32)
    images = torch.randint(0, 256, (2, data.shape[0], size, size), dtype=torch.uint8)
    batch = data.transform(train=True)(images), torch.zeros(2, dtype=torch.long)
    if model.objective.refines:
        give_samples(model, data, images, tmp_path / "samples.npz")
    optimizers = model.configure_optimizers()
    optimizer = optimizers["optimizer"] if isinstance(optimizers, dict) else optimizers
    before = {key: p.detach().clone() for key, p in network.named_parameters() if "conv_out" in key or "head.2" in key}
    model.loss(batch).backward()
    optimizer.step()
    assert before and any(not torch.equal(p, dict(network.named_parameters())[key]) for key, p in before.items())
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.slow
def test_samples_with_the_published_number_of_evaluations(name):
    """Counted with the config's process, parametrization and sampler on tiny images and a network that costs nothing."""
    model = experiment(name, *SMALL).model
    score = ScoreFunction(Constant(), model.score_function.process, model.score_function.parametrization)
    with torch.no_grad():
        samples = model.sampler(score, NoiseStream(0, [0], (1, 2, 2)))
    assert samples.x.isfinite().all()
    published = re.search(r"(\d+) network evaluations", header(name))
    assert published is not None or name not in PARAMETERS
    assert published is None or samples.nfe == int(published[1])
