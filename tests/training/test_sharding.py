"""Sharded weights (FSDP): training, samples and checkpoints are those of unsharded weights."""

import lightning_score.lean_imports  # noqa: F401

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forked import run_together
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from subprocesses import SHORT, environment_fixture, trouble  # noqa: F401
from torch.distributed.tensor import DTensor

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.networks import MLP, NCSN, DDPMpp, NCSNpp, NCSNv2, UNet
from lightning_score.networks.grid import channels_last
from lightning_score.objective import SlicedScoreMatching
from lightning_score.process import VP
from lightning_score.runs.records import FILE, read_records
from lightning_score.training import sharding

FIT = ["fit", "--config=ncsn", *SHORT, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.gradient_clip_val=1",
       "--trainer.precision=64-true", "--evaluate.raw_weights=true", "--ema.lengths=[0.05, 0.1]"]  # fmt: skip
NETWORKS = {
    "mlp": (lambda: MLP((2,), width=16), (2,)),
    "ncsn": (lambda: NCSN((1, 8, 8), 3, channels=8), (1, 8, 8)),
    "ncsnv2": (lambda: NCSNv2((1, 8, 8), channels=8), (1, 8, 8)),
    "unet": (lambda: UNet((1, 8, 8), 3, channels=8, groups=4, multipliers=(1, 2), attention=(4,), dropout=0.0), (1, 8, 8)),
    "volumes": (
        lambda: UNet((1, 4, 4, 4), channels=8, groups=4, multipliers=(1, 2), attention=(2,), dropout=0.0, periodic=True),
        (1, 4, 4, 4),
    ),
    "ddpmpp": (lambda: DDPMpp((1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,), dropout=0.0), (1, 8, 8)),
    "ncsnpp": (lambda: NCSNpp((1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,), dropout=0.0), (1, 8, 8)),
}


COMPARED = ("state_dict", "current_model_state", "averaging_state", "averages", "optimizer_states", "lr_schedulers", "loops")


class Weigh(Callback):
    """Records how many numbers this process holds: of weights, averages and the optimizer's state, during training,
    and of weights within a validation.
    """

    def on_train_batch_end(self, trainer, pl_module, *_):
        averages = next(c._averages for c in trainer.callbacks if type(c).__name__ == "EMA")
        state = [t for values in trainer.optimizers[0].state.values() for t in values.values() if t.dim()]
        self.kept = [count(pl_module.parameters()), count(averages.values()), count(state)]

    def on_validation_epoch_end(self, trainer, pl_module):
        note = {"training": self.kept, "validation": count(pl_module.parameters())}
        Path(f"kept_{trainer.global_rank}.json").write_text(json.dumps(note))


def count(tensors):
    return sum(sharding.local(tensor).numel() for tensor in tensors)


def tensors(value, path=""):
    """All tensors and numbers of a checkpoint, by their paths."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{path}/{key}")
    elif isinstance(value, torch.Tensor | int | float):
        yield path, torch.as_tensor(value)


def assert_same(run, other, measured=4):
    """Two runs have the same checkpoint and the same measurements."""
    one, two = (
        {
            path: tensor
            for part in COMPARED
            for path, tensor in tensors(torch.load(Path(folder, "last.ckpt"), weights_only=True)[part], part)
            if "/time" not in path and not path.endswith("_last_lr")
        }
        for folder in (run, other)
    )
    assert one.keys() == two.keys() and len(one) > 300
    for path, tensor in one.items():
        torch.testing.assert_close(tensor, two[path], rtol=1e-9, atol=1e-12, msg=lambda text, path=path: f"{path}: {text}")
    found, expected = read_records(Path(run, FILE)), read_records(Path(other, FILE))
    assert [(r.step, r.metric) for r in found] == [(r.step, r.metric) for r in expected] and len(found) == measured
    assert [r.value for r in found] == pytest.approx([r.value for r in expected], rel=1e-6)


def broken(policy):
    """A loss that is NaN at the seventh step of twelve."""
    return [f"--guard.policy={policy}", "--trainer.max_steps=12", "--model.objective=faulty.Broken",
            "--model.objective.first=7", "--model.objective.last=7"]  # fmt: skip


LARGE = ["fit", "--config=imagenet64/edm", "--data.path=photos", "--data.shape=[3, 16, 16]", "--data.num_classes=2",
         "--data.batch_size=2", "--model.network.channels=32", "--model.network.multipliers=[1, 2]",
         "--model.network.attention=[8]", "--model.network.head_channels=32", "--model.network.groups=8",
         "--model.network.blocks=1", "--model.sampler.grid.steps=3", "--evaluate.features=null", "--samples.num_samples=4",
         "--trainer.max_steps=2", "--trainer.devices=2", "--trainer.accelerator=cpu",
         "--trainer.val_check_interval=8"]  # fmt: skip
RUNS = {
    "ddp": [*FIT, "--trainer.strategy=ddp"],
    "fsdp2": [*FIT, "--trainer.strategy=fsdp2", '--trainer.callbacks=[{"class_path": "test_sharding.Weigh"}]'],
    "skip-ddp": [*FIT, "--trainer.strategy=ddp", *broken("skip")],
    "skip-fsdp2": [*FIT, "--trainer.strategy=fsdp2", *broken("skip")],
    "restore-ddp": [*FIT, "--trainer.strategy=ddp", *broken("restore")],
    "restore-fsdp2": [*FIT, "--trainer.strategy=fsdp2", *broken("restore")],
    "diverging": [*FIT, "--trainer.strategy=fsdp2", "--guard.policy=skip", "--model.sampler=faulty.Reckless",
                  "--model.sampler.step_size=1.0e+6", "--model.sampler.steps=3"],
    "large": LARGE,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, by one start of two processes."""
    folder = tmp_path_factory.mktemp("runs")
    for label in "ab":
        (folder / "photos" / label).mkdir(parents=True)
        for k in range(20):
            Image.effect_noise((16, 16), 50 + k).convert("RGB").save(folder / f"photos/{label}/{k}.png")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        codes, output = run_together(environment, 2, *([*options, f"--output={name}"] for name, options in RUNS.items()))
    assert codes == [0, 0], output[-3000:]
    return folder


@pytest.mark.slow
def test_training_is_that_of_ddp(runs):
    """Also with measurements of the raw weights, for which the weights are refreshed."""
    assert_same(runs / "fsdp2", runs / "ddp")
    kept = [json.loads((runs / f"kept_{rank}.json").read_text()) for rank in range(2)]
    weights = count(torch.load(runs / "ddp/last.ckpt", weights_only=True)["state_dict"].values())
    for k, total in enumerate((weights, weights, 2 * weights)):
        assert sum(process["training"][k] for process in kept) == pytest.approx(total, rel=0.01)  # except for buffers
        assert all(process["training"][k] / total == pytest.approx(0.5, abs=0.02) for process in kept)
    assert all(process["validation"] == pytest.approx(weights, rel=0.01) for process in kept)


@pytest.mark.slow
def test_a_killed_run_resumes(runs, environment):
    """Sharded or not, before and after."""
    resumes = {"fsdp2-fsdp2": "fsdp2", "ddp-fsdp2": "fsdp2", "fsdp2-ddp": "ddp"}
    for begun in "fsdp2", "ddp":
        fit = [*FIT, f"--trainer.strategy={begun}", f"--output={begun}", trouble("kill", rank=0, step=6)]
        codes, output = run_together(environment, 2, fit)
        assert codes[0] == -signal.SIGKILL and codes[1] != 0, output[-3000:]
        assert torch.load(f"{begun}/last.ckpt", weights_only=True)["global_step"] == 4
    for name in resumes:
        shutil.copytree(name.partition("-")[0], name)
    commands = (["fit", f"--ckpt_path={name}", f"--trainer.strategy={strategy}", "--trainer.callbacks=null",
                 "--trust=subprocesses"] for name, strategy in resumes.items())  # fmt: skip
    codes, output = run_together(environment, 2, *commands)
    assert codes == [0, 0], output[-3000:]
    for name in resumes:
        assert_same(name, runs / "ddp")


def slope(network, x, t):
    """A derivative of the network, as guidance needs it."""
    with torch.inference_mode(False), torch.enable_grad():
        y = x.clone().requires_grad_()
        return torch.autograd.grad(network(y, t).square().sum(), y)[0]


def _compare(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(rank)
        network = make().double()
        for parameter in network.parameters():  # that is zero at first, where a network has outputs that are
            torch.nn.init.normal_(parameter, std=0.1)
        channels_last(network)
        sharding.shard(network, network, torch.device("cpu"))
        assert any(isinstance(part, network.units) for part in network.modules())
        plain = make().double()
        plain.load_state_dict({key: t.full_tensor() if isinstance(t, DTensor) else t
                               for key, t in network.state_dict().items()})  # fmt: skip
        torch.manual_seed(0)
        x, t = torch.randn(4, *shape, dtype=torch.double), torch.arange(4) % 3
        x = x.to(memory_format=torch.channels_last) if len(shape) == 3 else x
        for repeat in range(2):
            mine = slice(2 * rank, 2 * rank + 2)
            network(x[mine], t[mine]).square().mean().backward()
            plain(x, t).square().mean().backward()
            for (key, parameter), (_, other) in zip(network.named_parameters(), plain.named_parameters(), strict=True):
                torch.testing.assert_close(parameter.grad.full_tensor(), other.grad, rtol=1e-9, atol=1e-12,
                                           msg=lambda text, at=(name, key, repeat): f"{at}: {text}")  # fmt: skip
            with sharding.unsharded(network):
                if rank == 0:  # no other process is needed, for derivatives neither
                    torch.testing.assert_close(network(x, t), plain(x, t), rtol=1e-9, atol=1e-12)
                    for _ in range(2):
                        torch.testing.assert_close(slope(network, x, t), slope(plain, x, t), rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_sharded_network_has_the_gradients_of_the_full_one(tmp_path):
    """Before and after its weights were unsharded."""
    mp.spawn(_compare, (str(tmp_path),), 2)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_a_nan_loss(policy, runs):
    """Is skipped, or undone, as with unsharded weights; the saved evidence holds full weights."""
    sharded, full = runs / f"{policy}-fsdp2", runs / f"{policy}-ddp"
    assert_same(sharded, full, measured=6)
    kept, expected = (torch.load(folder / "broken/step_0000007.pt", weights_only=True) for folder in (sharded, full))
    torch.testing.assert_close(kept["state_dict"], expected["state_dict"], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_diverging_samples(runs):
    """On the process that shows them, and on all that measure them; the saved evidence holds full weights."""
    checkpoint = torch.load(runs / "diverging/last.ckpt", weights_only=True)
    kept = torch.load(runs / "diverging/broken/samples_0000008.pt", weights_only=True)
    assert checkpoint["global_step"] == 8
    torch.testing.assert_close(kept["state_dict"], {**kept["state_dict"], **checkpoint["state_dict"]}, rtol=0, atol=0)


@pytest.mark.slow
def test_the_config_for_large_networks(runs, monkeypatch):
    """Two steps of eight small batches each, in bfloat16, with a small network."""
    monkeypatch.chdir(runs)
    checkpoint = torch.load("large/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 and len(list(Path("large/samples").glob("*.png"))) > 0
    assert {tensor.dtype for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point()} == {torch.float32}
    draw = ["predict", "--ckpt_path=large/last.ckpt", "--num_samples=3", "--output=drawn", "--trainer.devices=1"]
    assert run([*draw, "--trainer.accelerator=cpu"]) == 0
    assert np.load("drawn/samples.npz")["images"].shape == (3, 16, 16, 3)


@pytest.mark.parametrize("kind", sharding.OTHERS)
def test_strategies_that_do_not_unshard_weights_for_sampling_are_refused(kind):
    """Else processes would wait forever at the first picture."""
    with pytest.raises(InputError, match=f"{kind.__name__}: shards the weights.*use fsdp2"):
        sharding.check_strategy(SimpleNamespace(strategy=kind.__new__(kind)))
    sharding.check_strategy(SimpleNamespace(strategy=DDPStrategy()))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("precision", "16-mixed", "--trainer.precision 16-mixed: not with --trainer.strategy fsdp2; use bf16-mixed"),
        ("compile", "default", "--model.compile: not with --trainer.strategy fsdp2"),
        ("objective", SlicedScoreMatching(), "--model.objective SlicedScoreMatching: not with --trainer.strategy fsdp2"),
        ("weight", torch.nn.Parameter(torch.ones(1)), r"weights outside of the network \(further\): not with"),
    ],
)
def test_unsupported_settings_are_refused(part, value, message):
    network = partial(MLP, width=8, depth=1)
    model = ScoreModel(network, (2,), VP(), **{part: value} if part in ("objective", "compile") else {})
    strategy = sharding.FullyShard()
    strategy._lightning_module = model
    if part == "precision":
        strategy.precision_plugin = SimpleNamespace(precision=value)
    if part == "weight":
        model.further = value
    with pytest.raises(InputError, match=message):
        strategy._check()


def test_lightning_knows_the_strategy_by_its_name():
    assert isinstance(Trainer(strategy="fsdp2", accelerator="cpu", logger=False, devices=2).strategy, sharding.FullyShard)
