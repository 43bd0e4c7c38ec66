"""The model: sampling with little memory, precision, optimizer state."""

import lightning_score.lean_imports  # noqa: F401

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_score import GaussianMixture, ScoreModel
from lightning_score.networks import MLP, Network
from lightning_score.process import VP
from lightning_score.sampling import Ancestral, PredictorCorrector, Uniform


class Narrow(PredictorCorrector):
    """A sampler for which there is memory for `room` samples at once."""

    room = 5
    tried: list[int]

    def __call__(self, score, noise, *settings):
        self.tried.append(noise.shape[0])
        if noise.shape[0] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().__call__(score, noise, *settings)


class Convolution(Network):
    """One convolution."""

    def __init__(self, shape, num_classes=0):
        super().__init__(shape, num_classes)
        self.weight = torch.nn.Parameter(torch.zeros(4, 3, 5, 5))

    def forward(self, x, noise_label, cond=None):
        return torch.nn.functional.conv2d(x, self.weight, padding=2)[:, :3]


@pytest.fixture
def model():
    network = partial(MLP, width=8, depth=1)
    sampler = Narrow(Ancestral(), grid=Uniform(3, 0.01))
    sampler.tried = []
    return ScoreModel(network, (2,), VP(), sampler=sampler)


def test_samples_that_do_not_fit_are_drawn_in_parts(model):
    """They are the same samples; the next draw knows how many fit."""
    with pytest.warns(UserWarning, match="16 samples at once do not fit into memory: from here on 8"):
        few = model.draw(range(16), trajectory=True)
    assert model.sampler.tried == [16, 8, 4, 4, 4, 4]
    model.sampler.room = 100
    model._batches.size = None
    whole = model.draw(range(16), trajectory=True)
    torch.testing.assert_close(few.x, whole.x)
    torch.testing.assert_close(torch.stack(few.trajectory), torch.stack(whole.trajectory))
    assert few.nfe == whole.nfe == 3


def test_one_sample_that_does_not_fit_is_an_error(model):
    model.sampler.room = 0
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        model.draw(range(2))


def test_other_errors_are_not_treated_as_out_of_memory(model):
    model.sampler.room = None
    with pytest.raises(TypeError):
        model.draw(range(2))


class Watched(MLP):
    """A network that records whether it is called in mixed precision, in training and in sampling."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.mixed = {True: set(), False: set()}

    def forward(self, x, noise_label, cond=None):
        self.mixed[self.training].add(torch.is_autocast_enabled("cpu"))
        return super().forward(x, noise_label, cond)


class Draws(Callback):
    """Draws samples when a fit begins and ends."""

    def on_train_start(self, trainer, pl_module):
        pl_module.draw(range(2))

    on_train_end = on_train_start


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_samples_are_drawn_in_the_trainers_precision(precision, tmp_path):
    model = ScoreModel(partial(Watched, width=8, depth=1), (2,), VP(), sampler=PredictorCorrector(grid=Uniform(2, 0.01)))
    data = GaussianMixture(num_samples=64, batch_size=16)
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, precision=precision, callbacks=[Draws()], **settings)
    trainer.fit(model, datamodule=data)
    mixed = precision == "bf16-mixed"
    assert model.score_function.network.mixed == {True: {mixed}, False: {mixed}}
    assert model.draw(range(2)).x.dtype == torch.float32


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_state_of_another_layout(fused):
    """Contiguous state, as sharded weights leave it, resumes with channels-last weights."""
    torch.manual_seed(0)
    gradients = [torch.randn(4, 3, 5, 5) for _ in range(4)]

    def steps(model, optimizer, gradients):
        (weight,) = model.parameters()
        for gradient in gradients:
            weight.grad = gradient.clone(memory_format=torch.channels_last)
            optimizer.step()
        return weight

    def made():
        model = ScoreModel(Convolution, (3, 8, 8), VP(), optimizer=partial(torch.optim.Adam, fused=fused))
        return model, model.configure_optimizers()

    whole, (first, optimizer) = made(), made()
    expected = steps(*whole, gradients)
    kept = steps(first, optimizer, gradients[:2]).detach().clone()
    state = optimizer.state_dict()
    state["state"] = {k: {name: value.contiguous() for name, value in v.items()} for k, v in state["state"].items()}
    second, optimizer = made()
    with torch.no_grad():
        next(second.parameters()).copy_(kept)
    optimizer.load_state_dict(state)
    torch.testing.assert_close(steps(second, optimizer, gradients[2:]), expected)


@pytest.mark.parametrize(("optimizer", "warns"), [(torch.optim.Adam, True), (torch.optim.SGD, False)])
def test_a_resumed_optimizer_without_its_state_is_reported(optimizer, warns, tmp_path, recwarn):
    """A checkpoint with an empty list of states would restart Adam's moments silently; plain SGD has none."""
    data, file = GaussianMixture(num_samples=64, batch_size=16), tmp_path / "last.ckpt"
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}

    def fit(steps, ckpt_path=None):
        model = ScoreModel(partial(MLP, width=8, depth=1), (2,), VP(), optimizer=partial(optimizer, lr=1e-3))
        trainer = Trainer(accelerator="cpu", max_steps=steps, limit_val_batches=0, **settings)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    fit(2).save_checkpoint(file)
    fit(4, file)
    assert not [each for each in recwarn if "without its state" in str(each.message)]
    torch.save({**torch.load(file, weights_only=True), "optimizer_states": []}, file)
    fit(4, file)
    found = [str(each.message) for each in recwarn if "without its state" in str(each.message)]
    assert len(found) == warns and all(text.startswith("Adam starts without its state") for text in found)


class Plain(LightningDataModule):
    """Batches of a data module that knows nothing of score models."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)), 4)


def test_any_data_module_trains(tmp_path):
    model = ScoreModel(partial(MLP, width=8, depth=1), (2,), VP())
    before = [parameter.clone() for parameter in model.parameters()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=1, default_root_dir=tmp_path, **quiet).fit(model, datamodule=Plain())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
