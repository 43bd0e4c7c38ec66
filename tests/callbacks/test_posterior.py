"""The measurement of samples given observations: of the exact posterior and of other laws, on any number of processes."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lightning_score import VP, Network, ScoreModel
from lightning_score.callbacks import Posterior
from lightning_score.cli import run
from lightning_score.data import Digits, GaussianMixture, MixturePosterior
from lightning_score.errors import InputError
from lightning_score.guidance import Composed, Observed
from lightning_score.observations import GaussianNoise, Matrix
from lightning_score.runs.records import FILE, read_records
from lightning_score.sampling import Samples
from lightning_score.sweep.logged import OF_CALLBACKS

LINE = Matrix([[1.0, 0.5]])
DATA = GaussianMixture(num_samples=4000)


class Unused(Network):
    def forward(self, x, noise_label, cond=None):
        return x


def exact(y, group, count):
    """Samples of the exact posterior of the observation of a group."""
    return MixturePosterior(DATA.mixture, LINE, y, 0.3).sample(count, torch.Generator().manual_seed(group))


def narrow(y, group, count):
    mean = MixturePosterior(DATA.mixture, LINE, y, 0.3).mean
    return mean + 0.5 * (exact(y, group, count) - mean)


def prior(y, group, count):
    return DATA.mixture.sample(count, torch.Generator().manual_seed(group))


def model_of(law, guidance=None):
    """A model whose samples follow a law given the observation that the guidance holds."""
    model = ScoreModel(Unused, (2,), VP(), guidance=guidance or Observed(LINE, noise=GaussianNoise(0.3)))

    def draw(numbers, seed, cond):
        assert cond is None
        (held,) = model.guidance.observing()
        count = held.samples_per_observation
        drawn = {i: law(held.observation[i], i, count) for i in {k // count for k in numbers}}
        x = torch.stack([drawn[k // count][k % count] for k in numbers]).float()
        return Samples(x, x, 1, None)

    model.draw = draw
    return model


def scores_of(law, observations, samples, rank=0, processes=1, batch_size=1024):
    model = model_of(law, Composed([Observed(LINE, noise=GaussianNoise(0.3))]))
    strategy = SimpleNamespace(reduce=lambda values, reduce_op: values, reduce_boolean_decision=lambda *_, **__: False)
    trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=strategy, datamodule=DATA,
                              is_global_zero=False, progress_bar_callback=None)  # fmt: skip
    callback = Posterior(observations, samples, batch_size=batch_size)
    truths = callback.prepared(DATA, model, callback._truths(DATA, observations, False))
    with callback.drawing(model, truths, samples):
        scores, _ = callback._scores(trainer, model, truths, samples)
    assert model.guidance.observing()[0].observation is None
    return scores


DEVIATIONS = ("rank_deviation", "tarp_deviation", "likelihood_rank_deviation")


def test_samples_of_the_exact_posterior_have_no_deviation():
    found = scores_of(exact, 60, 16).found()
    assert all(found[name].estimate.value < found[name].limit for name in DEVIATIONS), found
    aims = {"interval_50": 0.5, "interval_90": 0.9, "residual_over_noise": 1, "spread_skill": 1, "z_score": 1}
    for name, aim in aims.items():
        value, error, _ = found[name].estimate
        assert abs(value - aim) < 3 * error < 0.6, (name, value, error)
    (value, error, _), floor, _ = found["posterior_distance"]
    assert abs(value - floor) < 3 * error < 0.15


def test_other_laws_are_told_from_the_posterior():
    found = scores_of(narrow, 50, 32).found()
    assert found["rank_deviation"].estimate.value > found["rank_deviation"].limit
    assert found["z_score"].estimate.value > 1.5 and found["interval_90"].estimate.value < 0.8
    (value, error, _), floor, _ = found["posterior_distance"]
    assert value - floor > 3 * error
    found = scores_of(prior, 50, 8).found()
    assert found["rank_deviation"].estimate.value < found["rank_deviation"].limit, "the prior's entries have uniform ranks"
    assert all(found[name].estimate.value > found[name].limit for name in DEVIATIONS[1:]), found


def test_numbers_do_not_depend_on_processes_and_batches():
    alone = scores_of(exact, 10, 5).sums
    assert all(bool((value.reshape(10, -1).abs().sum(1) > 0).all()) for value in alone.values())
    for parts in ([scores_of(exact, 10, 5, 0, 1, 3)], [scores_of(exact, 10, 5, rank, 3, 7) for rank in range(3)]):
        for name, value in alone.items():
            assert torch.equal(sum(part.sums[name] for part in parts), value), name


def checked(guidance, **settings):
    callback = Posterior(**settings)
    callback.check_model(ScoreModel(Unused, (2,), VP(), guidance=guidance))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Posterior(observations=9), "observations=9: must be at least 10"),
        (lambda: Posterior(samples=3), "samples=3: must be at least 4"),
        (lambda: Posterior(noise_std=-1.0), "std=-1.0"),
        (lambda: Posterior(5000).check(Digits()), "observations=5000: there are only 360 held-out examples"),
        (lambda: checked(None), "needs one guidance by observations"),
        (lambda: checked(Observed(LINE, noise=GaussianNoise(None))), "give that of the simulation, --posterior.noise_std"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_unknown_noise_is_simulated_with_the_level_that_is_given():
    checked(Observed(LINE, noise=GaussianNoise(None)), noise_std=0.2)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """It measures nothing else, writes records, pictures and logs, and refuses what cannot be measured in one line."""
    small = ["--data.batch_size=64", "--data.num_samples=200", "--trainer.max_steps=1", "--trainer.callbacks=null"]
    nothing = ["--samples.num_samples=0", "--evaluate.features=null", "--evaluate.distances=[]"]
    assert run(["fit", "--config=toy", f"--output={tmp_path}/run", *small, *nothing]) == 0
    test = ["test", f"--ckpt_path={tmp_path}/run/last.ckpt", "--evaluate.distances=null", "--model.sampler.steps=1"]
    guided = ["--model.guidance=PseudoInverse", "--model.guidance.operator=Matrix"]
    guided += ["--model.guidance.operator.matrix=[[1.0, 0.5]]", "--model.guidance.noise_std=0.3"]
    few = ["--posterior.observations=10", "--posterior.samples=4", "--trainer.callbacks+=Ensembles"]
    assert run([*test, *guided, *few, f"--output={tmp_path}/tested"]) == 0
    found = {each.metric: each for each in read_records(tmp_path / "tested" / FILE)}
    assert {"crps", "tarp_deviation", "z_score", "residual_over_noise", "posterior_distance"} <= found.keys()
    assert {each.n for each in found.values()} == {40} and all(each.error >= 0 for each in found.values())
    assert re.fullmatch(
        r"held out, 4 samples each, Matrix\(matrix=tensor of 1 x 2, \w{8}\), GaussianNoise\(std=0.3\)", found["crps"].split
    )
    for name in ("coverage", "posterior"):
        assert Image.open(next((tmp_path / "tested" / name).glob("*.png"))).size[0] > 300
    with (tmp_path / "tested" / "metrics.csv").open() as file:
        columns = {name for name in file.readline().strip().split(",") if name.startswith("test/")}
    assert {f"test/{name}" for name in found} <= columns <= {*OF_CALLBACKS[Posterior], "test/loss"}
    capsys.readouterr()
    refused = [
        (["--posterior.observations=10"], "needs one guidance by observations"),
        (["--posterior.samples=3"], "samples=3: must be at least 4"),
        (["--posterior.sample=8"], "Did you mean --posterior.samples?"),
        ([*guided, "--evaluate.distances=[Histogram]"], "has no observation; give predict --observation"),
    ]
    for options, message in refused:
        try:
            code = run([*test, *options, f"--output={tmp_path}/refused"])
        except SystemExit as end:
            code = end.code
        error = capsys.readouterr().err
        assert code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "refused").exists(), error
