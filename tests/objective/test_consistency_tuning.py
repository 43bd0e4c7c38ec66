"""Consistency tuning: its loss by hand, its minimizer, its stages in training, and equal random numbers in both passes."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_score import MLP, ConsistencyTuning, DenoisingScoreMatching, ScoreField, ScoreFunction, ScoreModel
from lightning_score.data import GaussianMixture
from lightning_score.errors import InputError
from lightning_score.objective import FixedTimes, LogNormalTimes, TableTimes, UniformTimes, Weighting
from lightning_score.process import VE, VP, BetaTable, Linear
from lightning_score.score.parametrization import EDM, Flow, Velocity
from lightning_score.tensors import broadcast_to

STD = 0.6
EVERYWHERE = [VP(), VE(0.02, 50.0), BetaTable(), Linear()]


class Smooth(nn.Module):
    """A network whose output is smooth in its input and in the noise level."""

    def forward(self, x, noise_label, cond=None):
        return torch.tanh(x.flip(1) + 0.1 * broadcast_to(noise_label, x))


def by_hand(objective, score, x):
    """The loss from the same draws: in x/alpha and s, as the paper writes it."""
    process, t = score.process, objective.times.sample(score.process, x)
    z, s = torch.randn_like(x), process.sigma(t) / process.alpha(t)
    share = 1 - (1 + objective.k / (1 + torch.exp(objective.b * s))) / objective.q**objective.stage
    s_r = (s * share).clamp(min=0)
    clean = s_r < process.sigma(torch.tensor(process.t_min).double()) / process.alpha(torch.tensor(process.t_min).double())
    s_r = torch.where(clean, 0.0, s_r)

    def end(level):
        time = process.inverse_log_snr(-2 * level.log())
        scale = process.alpha(time)[:, None]
        return score.denoised(scale * (x + level[:, None] * z), time)

    target = torch.where(clean[:, None], x, end(torch.where(clean, s, s_r)))
    squared = (end(s) - target.detach()).square().sum(1)
    distance = squared if objective.huber is None else (squared + objective.huber**2).sqrt() - objective.huber
    return distance / (s - s_r)


@pytest.mark.parametrize("process", EVERYWHERE, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("parametrization", [Velocity(), EDM(0.6), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("settings", [{"stages": 1}, {"stages": 3}, {"q": 16.0, "stages": 2, "huber": 0.1}, {"huber": None}])
def test_the_loss_is_that_of_the_formula(process, parametrization, settings):
    objective, score = ConsistencyTuning(**settings), ScoreFunction(Smooth(), process, parametrization)
    x = STD * torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    found = objective(score, x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, by_hand(objective, score, x), rtol=1e-6, atol=1e-9)


class ByLevel(Weighting):
    """The weight of the score's residual for which half its square is that of the denoised image over s."""

    def __call__(self, process, t):
        return 2 * process.sigma(t) ** 4 / process.alpha(t) ** 2 / process.noise_level(t)


@pytest.mark.parametrize("process", EVERYWHERE, ids=lambda p: type(p).__name__)
def test_without_a_second_level_it_is_denoising_score_matching(process):
    """In a first stage with n(s) > q, where r = 0: the training from which the tuning starts."""
    score, x = ScoreFunction(Smooth(), process, Velocity()), STD * torch.randn(200, 3, dtype=torch.float64)
    times = LogNormalTimes(-1.1, 2.0)
    torch.manual_seed(0)
    found = ConsistencyTuning(times, stages=1, b=0.0, huber=None)(score, x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, DenoisingScoreMatching(ByLevel(), times)(score, x))


class FlowMap(ScoreField):
    """f(x, t) = c x/alpha STD/sqrt(STD^2 + s^2): for c = 1 the end of the path of data N(0, STD^2).

    With `mean` STD^2/(STD^2 + s^2) in place of its root: the mean of the data given x.
    """

    evaluations = 0

    def __init__(self, process, mean=False):
        super().__init__(process)
        self.c, self.power = nn.Parameter(torch.ones((), dtype=torch.float64)), 1.0 if mean else 0.5

    def factor(self, s):
        return (STD**2 / (STD**2 + s**2)) ** self.power

    def denoised(self, x, t, cond=None):
        return self.c * broadcast_to(self.factor(self.process.noise_level(t)) / self.process.alpha(t), x) * x

    def forward(self, x, t, cond=None):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return (broadcast_to(alpha, x) * self.denoised(x, t) - x) / broadcast_to(sigma, x) ** 2


@pytest.mark.parametrize("stages", [3, 4, 6])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_flow_map_of_a_gaussian_is_the_minimizer_in_the_limit(stages, sigma):
    """The gradient at the exact map is that of E[f_r given x_t], which is linear, and vanishes as r comes near to t."""
    objective, score = ConsistencyTuning(FixedTimes(sigma), stages=stages, huber=None), FlowMap(VP())
    x = STD * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    objective(score, x).mean().backward()
    s = torch.tensor(sigma, dtype=torch.float64)
    r = objective.target_level(s)
    a_t, a_r = score.factor(s), score.factor(r)
    expected = 2 * a_t * (a_t * (STD**2 + s**2) - a_r * (STD**2 + r * s)) / (s - r)
    assert float(score.c.grad) == pytest.approx(float(expected), abs=0.02)
    assert abs(float(expected)) < 2.5 * float(s - r)


def tuning(**settings):
    """An objective in its first step, which has begun with the exact denoised image of the Gaussian as the teacher."""
    objective = ConsistencyTuning(FixedTimes(1.5), huber=None, distill=True, **settings)
    objective.steps_done = lambda: 0
    objective.begin(FlowMap(VP(), mean=True))
    return objective


def test_the_loss_of_the_flow_map_vanishes_with_the_steps_of_an_exact_teacher():
    """A step of DDIM misses the end of the path by a part of the order of the square of its length."""
    x = STD * torch.randn(1000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for q in (32.0, 64.0, 128.0):
        torch.manual_seed(0)
        found[q] = float(tuning(q=q, stages=1)(FlowMap(VP()), x).mean())
    assert found[32.0] / found[64.0] == pytest.approx(8, rel=0.2) == found[64.0] / found[128.0]
    torch.manual_seed(0)
    alone = ConsistencyTuning(FixedTimes(1.5), q=128.0, stages=1, huber=None)(FlowMap(VP()), x).mean()
    assert found[128.0] < 1e-3 * float(alone)


def test_held_out_losses_have_no_teacher():
    score, x, objective = FlowMap(VP()), torch.randn(50, 1, dtype=torch.float64), tuning(stages=1)
    objective.steps_done = lambda: None
    torch.manual_seed(0)
    found = objective(score, x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, ConsistencyTuning(FixedTimes(1.5), stages=1, huber=None)(score, x))


def test_both_passes_have_the_same_dropout():
    """At r within 1e-8 of t the difference over t - r is a derivative; of other masks it would be above 1e6."""
    network = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 4)).double()

    class Dropping(nn.Module):
        def forward(self, x, noise_label, cond=None):
            return network(x)

    score = ScoreFunction(Dropping(), VP(), EDM(0.6))
    objective, x = ConsistencyTuning(LogNormalTimes(0.0, 1.0), stages=28), torch.randn(500, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    assert float(objective(score, x).detach().max()) < 1e3
    masks = torch.get_rng_state()
    torch.set_rng_state(before)
    objective.times.sample(score.process, x), torch.randn_like(x), score(x, torch.full((500,), 0.5).double())
    assert torch.equal(masks, torch.get_rng_state()), "the first pass takes no random numbers from later ones"


class Stages(Callback):
    def __init__(self):
        self.seen, self.held_out = [], []

    def on_train_batch_start(self, trainer, model, *_):
        self.seen.append(model.objective.stage)

    def on_validation_batch_start(self, trainer, model, *_):
        self.held_out.append(model.objective.stage)


def fit(*callbacks, accumulated=1, ckpt_path=None):
    """Trains through three stages, of two steps, two steps and four."""
    seed_everything(0, verbose=False)
    objective = ConsistencyTuning(LogNormalTimes(0.0, 1.0), stages=3, steps=2)
    network = partial(MLP, width=8, depth=1)
    model, stages = ScoreModel(network, (2,), VP(), EDM(), objective=objective), Stages()
    trainer = Trainer(
        accelerator="cpu", max_steps=8, accumulate_grad_batches=accumulated, callbacks=[stages, *callbacks], logger=False,
        enable_progress_bar=False, enable_checkpointing=bool(callbacks), enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=GaussianMixture(num_samples=64, batch_size=12), ckpt_path=ckpt_path, weights_only=True)
    return model, stages


def test_stages_follow_the_optimizer_steps():
    """Whatever the number of batches of a step; held-out losses are those of the last stage."""
    for accumulated in (1, 2):
        stages = fit(accumulated=accumulated)[1]
        assert stages.seen == [stage for stage in (1, 1, 2, 2, 3, 3, 3, 3) for _ in range(accumulated)]
        assert stages.held_out and set(stages.held_out) == {3}


def test_resumes_to_the_bit_in_its_stage(tmp_path):
    whole, _ = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1))
    resumed, stages = fit(ckpt_path=tmp_path / "step=3.ckpt")
    assert stages.seen == [2, 3, 3, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"q": 1.0}, "q=1.0"),
        ({"k": -1.0}, "k=-1.0, b=1.0"),
        ({"b": -0.5}, "k=8.0, b=-0.5"),
        ({"stages": 0}, "stages=0"),
        ({"stages": 65}, "stages=65"),
        ({"steps": 0}, "steps=0"),
        ({"huber": -0.1}, "huber=-0.1"),
    ],
)
def test_errors_name_the_value(settings, words):
    with pytest.raises(InputError, match=words):
        ConsistencyTuning(**settings)


@pytest.mark.parametrize("times", [TableTimes(), FixedTimes(1.0)], ids=lambda t: type(t).__name__)
def test_a_few_levels_are_refused(times):
    with pytest.raises(InputError, match=f"times={type(times).__name__}: .* use LogNormalTimes"):
        ConsistencyTuning(times).check(BetaTable())
    ConsistencyTuning(UniformTimes()).check(BetaTable())
