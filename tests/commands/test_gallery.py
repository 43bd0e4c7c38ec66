"""The gallery: every sampler is in it, and many noise levels do what one cannot."""

import pytest
from conftest import CORRECTORS, PREDICTORS, MixtureScore

from lightning_score.cli import run
from lightning_score.commands import gallery
from lightning_score.commands.gallery import draw_levels, one_level_and_many, samplers, two_segments
from lightning_score.data import Mixture
from lightning_score.process import VE, VP, SigmaTable
from lightning_score.sampling import NoiseStream, Restart


@pytest.mark.parametrize("process", [SigmaTable(0.05, 5.0, 20), VP(), VE(0.02, 8.0)], ids=lambda p: type(p).__name__)
def test_every_sampler_of_the_gallery_runs(process):
    found = samplers(process)
    names = " ".join(found)
    missing = [kind.__name__ for kind in [*PREDICTORS, Restart, *CORRECTORS] if kind.__name__ not in names]
    assert set(missing) == {"NoPredictor", "AnnealedLangevinStep", "FixedLangevin", "SampleLangevin"}
    score = MixtureScore(process, Mixture([[0.5, -0.5]], [0.4]))
    for name, sampler in found.items():
        x = sampler(score, NoiseStream(0, range(3), (2,))).x
        assert bool(x.isfinite().all()), name


def test_one_noise_level_fails_on_a_line_where_many_succeed():
    data = two_segments()
    truth = float((data[:, 0] > 0).double().mean())
    (_, one), (_, many) = one_level_and_many(400).values()
    assert truth == 0.8
    assert abs(one - truth) > 0.2, "a sample stays in the segment nearer to where it started"
    assert abs(many - truth) < 0.08


def test_the_figure_of_levels_is_drawn():
    figure = draw_levels(50)
    assert len(figure.axes) == 3 and all(axes.collections for axes in figure.axes)


def test_gallery_refuses_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert run(["gallery", f"--ckpt_path={tmp_path}/none.ckpt"]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(["gallery"])
    assert "--ckpt_path runs/NAME/latest/last.ckpt" in capsys.readouterr().err


@pytest.mark.slow
def test_gallery_draws_a_trained_toy_and_refuses_images(tmp_path, checkpoint, monkeypatch, capsys):
    """With three of the samplers, all of which run in the test above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "samplers", lambda process: dict(list(samplers(process).items())[:3]))
    quick = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--samples.num_samples=4"]
    quick += ["--evaluate.num_samples=4"]
    assert run(["fit", "--config=toy", *quick, "--trainer.callbacks=[]"]) == 0
    assert run(["gallery", "--ckpt_path=runs/toy/latest/last.ckpt", "--num_samples=20", "--output=pictures"]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["levels.png", "samplers.png"]
    assert run(["gallery", f"--ckpt_path={checkpoint}"]) == 2
    assert "not Digits" in capsys.readouterr().err
