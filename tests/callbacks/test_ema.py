"""The averages: their formula, when the model holds them, and checkpoints with both sets of weights."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from averaged import BATCHES, Line, Watch, averages, fit, flat
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from lightning_score.callbacks.ema import EMA
from lightning_score.errors import InputError


def recursion(weights: list[torch.Tensor], start: torch.Tensor, decay: float, warmup: bool) -> list[torch.Tensor]:
    """The averages by the textbook formula, from the weights after each step."""
    found = [start]
    for n, weight in enumerate(weights, start=1):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        found.append(d * found[-1] + (1 - d) * weight)
    return found[1:]


@pytest.mark.parametrize("decay, warmup", [(0.9, False), (0.999, True), (0.3, True), (0.0, False)])
def test_the_averages_follow_the_formula(decay, warmup):
    model, ema, watch = Line(), EMA(decay, warmup), Watch()
    start = flat(model)
    fit(model, ema, watch)
    expected = recursion(watch.trained, start, decay, warmup)
    torch.testing.assert_close(averages(ema, model), expected[-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(watch.validated[1], expected[BATCHES - 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(watch.validated[0], start)  # the sanity check
    assert ema.updates == 2 * BATCHES
    assert not torch.allclose(flat(model), averages(ema, model), atol=1e-4) or decay == 0.0


def test_accumulated_gradients_count_as_one_step():
    model, ema, watch = Line(), EMA(0.9), Watch()
    start = flat(model)
    fit(model, ema, watch, accumulate_grad_batches=2)
    assert ema.updates == BATCHES
    expected = recursion(watch.trained[1::2], start, 0.9, True)
    torch.testing.assert_close(averages(ema, model), expected[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ema_first", [True, False])
def test_validation_sees_averages_and_training_the_raw_weights_in_either_order(ema_first):
    model, ema, watch = Line(), EMA(0.9), Watch()
    seen = []

    class Sample(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            with ema.averaged(pl_module):  # nested: no harm
                inside = flat(pl_module)
            seen.append(torch.equal(inside, flat(pl_module)))

        def on_train_batch_end(self, trainer, pl_module, *_):
            raw = flat(pl_module)
            with ema.averaged(pl_module):
                assert not torch.equal(raw, flat(pl_module))
            seen.append(torch.equal(raw, flat(pl_module)))

    start = flat(model)
    fit(model, *([ema, watch] if ema_first else [watch, ema]), Sample(), val_check_interval=2)
    expected = recursion(watch.trained, start, 0.9, True)
    for step, validated in zip((2, 4, 6, 8), watch.validated[1:], strict=True):
        torch.testing.assert_close(validated, expected[step - 1], rtol=1e-5, atol=1e-6)
    assert all(seen) and len(seen) == 2 * BATCHES + 5


def test_training_is_the_same_bit_for_bit_with_and_without_averages():
    with_ema, without = Line(), Line()
    fit(with_ema, EMA(0.9), val_check_interval=1)
    fit(without, val_check_interval=1)
    assert with_ema.losses == without.losses
    assert torch.equal(flat(with_ema), flat(without))


def test_the_parameters_remain_the_objects_the_optimizer_knows():
    model, ema = Line(), EMA()
    before = [(id(parameter), parameter.data_ptr()) for parameter in model.parameters()]
    fit(model, ema)
    with ema.averaged(model):
        assert [(id(parameter), parameter.data_ptr()) for parameter in model.parameters()] == before


def test_buffers_are_the_models_own():
    class Counting(Line):
        def on_train_batch_end(self, *_):
            self.index += 1
            self.sigmas += 0.25

    model, ema = Counting(), EMA(0.9)
    trainer = fit(model, ema)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    for state in ("state_dict", "current_model_state"):
        assert torch.equal(checkpoint[state]["index"], torch.arange(3) + 2 * BATCHES)
        assert torch.equal(checkpoint[state]["sigmas"], model.sigmas)
    with ema.averaged(model):
        assert torch.equal(model.index, torch.arange(3) + 2 * BATCHES)


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_validation_gives_the_raw_weights_back(hook, error):
    model, ema, watch = Line(), EMA(0.9), Watch()

    def fail(self, trainer, pl_module, *_):
        if trainer.global_step:
            raise error("broken")

    broken = type("Broken", (Callback,), {hook: fail})()
    with pytest.raises((ValueError, SystemExit)):
        fit(model, ema, watch, broken)
    assert torch.equal(flat(model), watch.trained[-1])


def test_a_failing_block_gives_the_raw_weights_back():
    model, ema = Line(), EMA(0.9)
    fit(model, ema)
    raw = flat(model)
    with pytest.raises(RuntimeError), ema.averaged(model), ema.averaged(model):
        raise RuntimeError
    assert torch.equal(flat(model), raw)


class SaveIn(Callback):
    """Saves a checkpoint at the end of a validation epoch, while the model holds the averages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("ema_first", [True, False])
def test_a_checkpoint_holds_averages_and_raw_weights(tmp_path, ema_first):
    model, ema, inside = Line(), EMA(0.9), SaveIn(tmp_path / "inside.ckpt")
    trainer = fit(model, *([ema, inside] if ema_first else [inside, ema]))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    for name in ("inside.ckpt", "after.ckpt"):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        raw, averaged = Line(), Line.load_from_checkpoint(tmp_path / name, weights_only=True)
        raw.load_state_dict(checkpoint["current_model_state"])
        assert torch.equal(flat(raw), flat(model))
        assert torch.equal(flat(averaged), averages(ema, model))
        assert int(checkpoint["averaging_state"]["n_averaged"]) == 2 * BATCHES


def everything(model: Line, ema: EMA) -> tuple:
    return flat(model).tolist(), averages(ema, model).tolist(), ema.updates


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("moment", ["inside", "after"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, moment, accumulate):
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    whole, whole_ema = Line(), EMA(0.9)
    fit(whole, whole_ema, ModelCheckpoint(tmp_path / "whole"), max_epochs=4, **options)

    first = Line()
    trainer = fit(first, EMA(0.9), ModelCheckpoint(tmp_path, save_last=True), max_epochs=2, **options)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    path = tmp_path / {"inside": "last.ckpt", "after": "after.ckpt"}[moment]

    resumed, ema = Line(), EMA(0.9)
    fit(resumed, ema, ModelCheckpoint(tmp_path / "resumed"), max_epochs=4, ckpt_path=path, **options)
    assert everything(resumed, ema) == everything(whole, whole_ema)
    assert first.losses + resumed.losses == whole.losses


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_a_finished_run_can_be_extended(tmp_path, from_checkpoint):
    class Plain(Line):
        def configure_optimizers(self):  # without a state, which only a checkpoint would restore
            return torch.optim.SGD(self.parameters(), lr=0.05)

    whole, whole_ema = Plain(), EMA(0.9)
    fit(whole, whole_ema, max_epochs=4)
    model, ema = Plain(), EMA(0.9)
    trainer = fit(model, ema, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, ckpt_path=tmp_path / "end.ckpt" if from_checkpoint else None)
    assert everything(model, ema) == everything(whole, whole_ema)


class Beginning(Callback):
    """Records the weights and the averages at the start of training."""

    def __init__(self, averaged: Callable[[LightningModule], torch.Tensor]) -> None:
        self.of = averaged

    def on_train_start(self, trainer, pl_module):
        self.raw, self.averaged = flat(pl_module), self.of(pl_module)


def test_lightnings_averaging_reads_ours(tmp_path):
    ours, ema = Line(), EMA(0.9)
    fit(ours, ema).save_checkpoint(tmp_path / "ours.ckpt")
    theirs = EMAWeightAveraging(decay=0.9)
    beginning = Beginning(lambda _: flat(theirs._average_model.module))
    fit(Line(), theirs, beginning, ckpt_path=tmp_path / "ours.ckpt", max_epochs=3)
    assert torch.equal(beginning.raw, flat(ours))
    assert torch.equal(beginning.averaged, averages(ema, ours))
    assert int(theirs._average_model.n_averaged) == 3 * BATCHES


def test_we_read_lightnings_averaging(tmp_path):
    path = tmp_path / "theirs.ckpt"
    fit(Line(), EMAWeightAveraging(decay=0.9), SaveIn(path))
    saved, raw, averaged = torch.load(path, weights_only=True), Line(), Line()
    raw.load_state_dict(saved["current_model_state"])
    averaged.load_state_dict(saved["state_dict"])
    ema = EMA(0.9)
    beginning = Beginning(lambda model: averages(ema, model))
    fit(Line(), ema, beginning, ckpt_path=path, max_epochs=3)
    assert torch.equal(beginning.raw, flat(raw))
    assert torch.equal(beginning.averaged, flat(averaged))
    assert ema.updates == 3 * BATCHES


def test_a_checkpoint_without_averages_starts_them_at_its_weights(tmp_path):
    plain = Line()
    fit(plain, max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")
    model, ema, watch = Line(), EMA(0.9), Watch()
    fit(model, ema, watch, ckpt_path=tmp_path / "plain.ckpt", max_epochs=2)
    expected = recursion(watch.trained, flat(plain), 0.9, True)
    torch.testing.assert_close(averages(ema, model), expected[-1], rtol=1e-5, atol=1e-6)


def test_after_a_fit_the_same_trainer_evaluates_the_averages(tmp_path):
    model, ema, watch = Line(), EMA(0.9), Watch()
    trainer = fit(model, ema, watch)
    raw, expected = flat(model), averages(ema, model)
    trainer.validate(model, verbose=False)
    trainer.test(model, verbose=False)
    predicted = trainer.predict(model)
    assert all(torch.equal(seen, expected) for seen in (watch.validated[-1], watch.tested[-1], predicted[0]))
    assert torch.equal(flat(model), raw)

    other = Line()  # the averages of one model are not lent to another
    trainer.test(other, verbose=False)
    assert torch.equal(watch.tested[-1], flat(Line()))


def test_an_evaluated_checkpoint_is_evaluated_with_its_own_averages(tmp_path):
    early, ema = Line(), EMA(0.9)
    fit(early, ema, max_epochs=1).save_checkpoint(tmp_path / "early.ckpt")
    expected = averages(ema, early)

    watch = Watch()
    live = fit(Line(), EMA(0.9), watch, max_epochs=3)  # a trainer with its own averages
    live.test(ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert torch.equal(watch.tested[-1], expected)

    fresh, model, watch = EMA(0.9), Line(), Watch()  # a trainer that only evaluates
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[fresh, watch],
                      enable_checkpointing=False)  # fmt: skip
    trainer.test(model, ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert torch.equal(watch.tested[-1], expected)
    assert torch.equal(flat(model), expected)


def test_a_new_model_has_new_averages():
    ema = EMA(0.9)
    fit(Line(), ema, max_epochs=3)
    model, watch = Line(), Watch()
    start = flat(model)
    fit(model, ema, watch, max_epochs=1)
    expected = recursion(watch.trained, start, 0.9, True)
    torch.testing.assert_close(averages(ema, model), expected[-1], rtol=1e-5, atol=1e-6)


def test_tied_weights_are_saved_under_both_names(tmp_path):
    class Tied(Line):
        def __init__(self) -> None:
            super().__init__()
            self.twin = self.net[0]

    model, ema = Tied(), EMA(0.9)
    fit(model, ema).save_checkpoint(tmp_path / "tied.ckpt")
    state = torch.load(tmp_path / "tied.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["twin.weight"], state["net.0.weight"])
    assert not torch.equal(state["twin.weight"], model.twin.weight)


def test_half_precision_weights_are_averaged_in_single_precision():
    class Drift(LightningModule):
        """Its weights change from 1 to 1.5 at the first step and stay there."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def training_step(self, batch, batch_idx):
            return (self.weight * 0.0).sum()

        def on_train_batch_start(self, *_):
            self.weight.data.fill_(1.5)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        train_dataloader = Line.train_dataloader

    model, ema = Drift(), EMA(0.999, warmup=False)
    trainer = fit(model, ema, max_epochs=25)
    saved = trainer._checkpoint_connector.dump_checkpoint()["state_dict"]["weight"]
    torch.testing.assert_close(saved, torch.tensor([1.5 - 0.5 * 0.999**100]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        EMA(decay)


def test_trainers_that_would_lose_the_averages_are_refused(tmp_path):
    with pytest.raises(InputError, match="save_weights_only"):
        fit(Line(), EMA(), ModelCheckpoint(tmp_path, save_weights_only=True), enable_checkpointing=True)
    with pytest.raises(InputError, match="more than one EMA"):
        fit(Line(), EMA(), EMA(0.5))


DISTRIBUTED = """
import sys
import lightning_score.lean_imports  # noqa: F401

sys.path[:0] = ["tests/support", "tests/callbacks"]
from test_ema import EMA, Callback, Line, averages, fit, torch

class Compare(Callback):
    def setup(self, trainer, pl_module, stage):
        assert trainer.world_size == 2
        with torch.no_grad():
            pl_module.net[0].weight += trainer.global_rank  # DDP makes the ranks equal before they train

    def on_train_end(self, trainer, pl_module):
        zero, one = trainer.strategy.all_gather(averages(ema, pl_module).float())
        assert torch.equal(zero, one) and ema.updates == 4, (zero, one, ema.updates)
        print("equal", flush=True)

torch.set_num_threads(1)
ema = EMA(0.9)
fit(Line(), Compare(), ema, strategy="ddp_fork", devices=2)
"""


@pytest.mark.slow
def test_every_rank_has_the_same_averages():
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", DISTRIBUTED], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
