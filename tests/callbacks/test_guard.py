"""NaN or infinite losses: reported, saved, and then what the policy does."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

from lightning_score.callbacks import LossGuard
from lightning_score.callbacks.policies import Policy
from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.metrics import Estimate, totals
from lightning_score.process import SigmaTable
from lightning_score.sampling.diverged import BOUND, Diverged, DivergenceMonitor
from lightning_score.sampling.step import Move

CONFIG = TINY.replace("lr: 1.0e-3", "lr: 1.0e-3, fused: true")
"""Three noise levels, the smallest of them 0.03."""
FIT = ["fit", "--config=tiny.yaml", "--trainer.max_steps=12", "--trainer.val_check_interval=4", "--evaluate.features=null",
       "--trainer.callbacks=null", "--trainer.logger=false"]  # fmt: skip


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """The weights after four steps without a bad loss."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit(folder / "run", 99, 99, "--trainer.max_steps=4") == 0
    return weights(folder / "run")[1]


def fit(folder, first, last, *options):
    broken = ["--model.objective=faulty.Broken", f"--model.objective.first={first}", f"--model.objective.last={last}"]
    broken += ["--model.objective.times=TableTimes", "--model.lr_scheduler.total_iters=2400"]
    return run([*FIT, f"--output={folder}", *broken, *options])


def weights(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return checkpoint["global_step"], torch.cat([w.flatten() for w in checkpoint["current_model_state"].values()])


@pytest.fixture(params=[pytest.param(False, id="same step"), pytest.param(True, id="one step later")])
def later(request, monkeypatch):
    """Whether the loss is checked one step later, as on a GPU, and the fused optimizer skips the step by itself."""
    if request.param:
        monkeypatch.setattr(LossGuard, "_skips_on_device", lambda *_: True)
    return request.param


@pytest.mark.faults("NaN losses", 2)
def test_training_stops_and_reports_where(tmp_path, capsys, later):
    folder = tmp_path / "run"
    assert fit(folder, 7, 7) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 7, batch 6 of epoch 0: the loss is NaN or infinite" in message and "sigma/alpha 0.03" in message
    step, kept = weights(folder)
    assert step == 4 and bool(kept.isfinite().all())  # from before
    evidence = torch.load(folder / "broken/step_0000007.pt", weights_only=True)
    assert evidence["x"].shape == (128, 1, 8, 8) and evidence["batch_idx"] == 6
    bad = ~evidence["losses"].isfinite()
    assert 0 < int(bad.sum()) < 80 and f"of {int(bad.sum())} of 128 examples" in message
    assert all(torch.isfinite(value).all() for value in evidence["state_dict"].values())


@pytest.mark.faults("NaN losses", 4)
def test_a_skipped_step_changes_nothing(tmp_path, capsys, later, four_steps):
    """With the loss of its last two steps skipped, a run of six steps has the weights of one of four."""
    assert fit(tmp_path / "skipped", 5, 6, "--guard.policy=skip", "--trainer.max_steps=6") == 0
    assert capsys.readouterr().out.count("the step is skipped") == 2
    step, skipped = weights(tmp_path / "skipped")
    assert step == 6 and torch.equal(skipped, four_steps)


@pytest.mark.faults("NaN losses", 2)
def test_restoring(tmp_path, capsys, later, four_steps):
    """At the sixth step the checkpoint of the fourth is restored; the step that detects it changes nothing."""
    steps = 7 if later else 6
    assert fit(tmp_path / "back", 6, 6, "--guard.policy=restore", f"--trainer.max_steps={steps}") == 0
    assert "back to last.ckpt" in capsys.readouterr().out
    step, back = weights(tmp_path / "back")
    assert step == steps and torch.equal(back, four_steps)


@pytest.mark.slow
@pytest.mark.faults("NaN losses", 2)
@pytest.mark.parametrize("bad", [1, 2])
def test_one_bad_batch_of_an_accumulated_step(tmp_path, capsys, later, bad):
    """One of two accumulated batches is bad: the step is skipped."""
    two = ["--guard.policy=skip", "--trainer.accumulate_grad_batches=2"]
    assert fit(tmp_path / "skipped", 2 * 4 + bad, 2 * 4 + bad, *two, "--trainer.max_steps=5") == 0
    assert capsys.readouterr().out.count("step 5, batch") == 1
    assert fit(tmp_path / "short", 99, 99, "--trainer.max_steps=4", *two) == 0
    assert torch.equal(weights(tmp_path / "skipped")[1], weights(tmp_path / "short")[1])


@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_too_many_bad_steps_stop_training(tmp_path, capsys, policy):
    assert fit(tmp_path / "run", 5, 999, f"--guard.policy={policy}", "--trainer.max_steps=40") == 2
    assert "step 15" in capsys.readouterr().err


def test_a_real_explosion(tmp_path, capsys):
    """A learning rate of 1e6."""
    options = ["--model.optimizer.lr=1.0e+6", "--model.lr_scheduler=null"]
    assert run([*FIT, f"--output={tmp_path / 'run'}", *options, "--trainer.max_steps=200"]) == 2
    assert "the loss is NaN or infinite" in capsys.readouterr().err


MEASURED = ["fit", "--config=tiny.yaml", "--trainer.max_steps=6", "--trainer.val_check_interval=2",
            "--samples.num_samples=16", "--model.sampler.steps=1", "--trainer.logger=false"]  # fmt: skip
TOO_LARGE = ["--model.sampler=faulty.Reckless", "--model.sampler.step_size=1.0e+6", "--model.sampler.steps=3"]


@pytest.mark.faults("diverging samples")
class TestSamples:
    def test_a_diverging_chain_stops_training_and_is_saved(self, tmp_path, capsys):
        folder = tmp_path / "run"
        assert run([*MEASURED, *TOO_LARGE, "--trainer.callbacks=null", f"--output={folder}"]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            "step 2, samples: 16 of 16 samples diverged" in message and "after move" in message and "sigma/alpha" in message
        )
        kept = torch.load(folder / "broken/samples_0000002.pt", weights_only=True)
        assert kept["x"].shape == (16, 1, 8, 8) and kept["indices"] == list(range(16)) and kept["level"] > 0
        assert bool(torch.isfinite(kept["x"]).all()), "detected before they are NaN"
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2

    @pytest.mark.faults("diverging samples", 9)
    @pytest.mark.slow
    def test_they_are_skipped_and_training_continues(self, tmp_path, capsys):
        """Grid, Langevin health and distance, at three validations; the weights are those of a run without them."""
        options = [*MEASURED, "--trainer.callbacks=[{class_path: LangevinHealth}]", "--guard.policy=skip"]
        assert run([*options, *TOO_LARGE, f"--output={tmp_path / 'run'}"]) == 0
        assert capsys.readouterr().out.count("it is skipped") == 9
        assert run([*FIT, "--trainer.max_steps=6", f"--output={tmp_path / 'other'}"]) == 0
        assert torch.equal(weights(tmp_path / "run")[1], weights(tmp_path / "other")[1])

    def test_the_best_weights_are_restored(self, tmp_path, capsys, monkeypatch):
        """They are those of step 2; the distance of step 4 is NaN."""
        found = iter([Estimate(5.0, 0.1), Estimate(float("nan"), 0.0), Estimate(9.0, 0.1)])
        monkeypatch.setattr(totals, "frechet_estimate", lambda *_, **__: next(found))
        options = [*MEASURED, "--trainer.callbacks=null", "--samples.num_samples=0", "--model.optimizer.lr=0"]
        restored = []
        monkeypatch.setattr(
            Policy, "recover", lambda self, trainer, model, name: restored.append((trainer.global_step, name))
        )
        assert run([*options, "--guard.policy=restore", f"--output={tmp_path / 'run'}"]) == 0
        assert "it is skipped, back to best.ckpt" in capsys.readouterr().out and restored == [(4, "best.ckpt")]

    @pytest.mark.faults("NaN distances", 4)
    def test_a_nan_distance(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(totals, "frechet_estimate", lambda *_, **__: Estimate(float("nan"), 0.0))
        options = [*MEASURED, "--samples.num_samples=0", "--trainer.callbacks=null"]
        assert run([*options, f"--output={tmp_path / 'run'}"]) == 2
        assert "step 2, fid_digits_20: fid is nan: the features of the samples" in capsys.readouterr().err
        assert run([*options, "--guard.policy=skip", f"--output={tmp_path / 'other'}"]) == 0
        assert capsys.readouterr().out.count("fid is nan") == 3

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_the_bound_of_diverged_samples(self, factor):
        """A million times the noise and the data."""
        process, x = SigmaTable(0.1, 9.0, 3), torch.zeros(4, 2)
        x[2] = factor * BOUND * (1 + 9.0)
        t = torch.tensor(1.0)
        watch = DivergenceMonitor([5, 6, 7, 8])
        with nullcontext() if factor < 1 else pytest.raises(Diverged, match="1 of 4 samples diverged") as found:
            watch(SimpleNamespace(process=process), Move(None, t, t, t), x, x, None)
        if factor > 1:
            assert found.value.indices == [7] and found.value.level == pytest.approx(9.0)


def test_refuses():
    with pytest.raises(InputError, match="every_n_steps=0: must be at least 1"):
        LossGuard(every_n_steps=0)
