"""Likelihoods: equal to densities where these are known; bits per dimension of known discrete laws."""

import math
from functools import partial

import pytest
import torch
from conftest import PROCESSES, MixtureScore

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.networks import UNet
from lightning_score.process import VE, VP, BetaTable, SigmaTable
from lightning_score.sampling import DormandPrince, NoiseStream
from lightning_score.sampling.likelihood import (
    Dequantization,
    LogLikelihood,
    MeanLikelihood,
    bits_per_dim,
    log_likelihood,
    log_prior,
)
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import Noise
from lightning_score.score.trace import ExactTrace, Gaussian, Hutchinson

SMALL = {BetaTable: {"steps": 20, "beta_min": 0.005, "beta_max": 0.6}, SigmaTable: {"sigma_max": 10.0, "levels": 20}}
EVERY = [p(**SMALL.get(p, {})) for p in PROCESSES]
GAUSSIAN = Mixture([[0.5, -1.0]], [0.5])
MIXTURE = Mixture([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], [0.5, 0.4, 0.3], [0.5, 0.3, 0.2])
TRACES = [ExactTrace(), Hutchinson(), Hutchinson(8), Hutchinson(law=Gaussian())]


def marginal(mixture, process, t, x):
    """log p_t(x) of the mixture under the process, in nats (B,), float64."""
    t, x = torch.as_tensor(t, dtype=torch.float64), x.double()
    alpha, sigma = process.alpha(t), process.sigma(t)
    means, stds, weights = (torch.as_tensor(v, dtype=torch.float64) for v in (mixture.means, mixture.stds, mixture.weights))
    std = (alpha**2 * stds**2 + sigma**2).sqrt()
    each = torch.distributions.Normal(alpha * means, std.unsqueeze(-1)).log_prob(x.unsqueeze(1)).sum(-1)
    return torch.logsumexp(each + weights.log(), 1)


def exactly(mixture):
    """log_likelihood's `prior` of the mixture: the true law at t = 1."""
    return lambda process, latent: marginal(mixture, process, 1.0, latent)


def points(n=4):
    return GAUSSIAN.sample(n, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("process", EVERY, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_likelihood_of_a_gaussian_is_its_density(process, dtype):
    """Under inference mode; the Jacobian is diagonal, so that random signs are exact too."""
    with torch.inference_mode():
        for trace in (ExactTrace(), Hutchinson()):
            result = log_likelihood(
                MixtureScore(process, GAUSSIAN), points().to(dtype), trace=trace, prior=exactly(GAUSSIAN)
            )
            torch.testing.assert_close(result.value, marginal(GAUSSIAN, process, process.t_min, points()), rtol=0, atol=2e-3)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 50.0), SigmaTable()], ids=lambda p: type(p).__name__)
def test_the_likelihood_of_a_mixture_is_its_density(process):
    x = MIXTURE.sample(6, torch.Generator().manual_seed(0)).double()
    score = MixtureScore(process, MIXTURE)
    exact = marginal(MIXTURE, process, process.t_min, x)
    likelihood = partial(log_likelihood, score, x, trace=ExactTrace())
    loose, tight = (likelihood(solver=DormandPrince(v, v), prior=exactly(MIXTURE)).value - exact for v in (1e-4, 1e-8))
    assert float(tight.abs().max()) < 1e-4 and float(loose.abs().max()) < 3e-2


def test_the_default_prior_is_the_law_of_the_process_at_one():
    process, z = VE(0.01, 50.0), torch.randn(5, 3, 2, 2, dtype=torch.float64)
    latent = process.prior(z)
    normal = torch.distributions.Normal(0.0, torch.tensor(50.0, dtype=torch.float64))
    torch.testing.assert_close(log_prior(process, latent), normal.log_prob(latent).sum((1, 2, 3)))
    result = log_likelihood(MixtureScore(VP(), MIXTURE), points(), trace=ExactTrace())
    exact = marginal(MIXTURE, VP(), VP.t_min, points())
    torch.testing.assert_close(result.value, exact, rtol=0, atol=5e-2)  # the prior is not quite the mixture's p_1


@pytest.mark.parametrize("process", [VP(), VE(0.05, 20.0)], ids=lambda p: type(p).__name__)
def test_densities_integrate_to_one(process):
    """Whatever the prior, for the flow is one to one: here the process's own."""
    mixture = Mixture([[1.0], [-0.5]], [0.4, 0.3], [0.6, 0.4])
    grid = torch.linspace(-4, 5, 181, dtype=torch.float64)
    result = log_likelihood(MixtureScore(process, mixture), grid.unsqueeze(1), trace=ExactTrace())
    assert float(torch.trapezoid(result.value.exp(), grid)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("trace", TRACES, ids=["exact", "signs", "eight-signs", "normal"])
def test_the_vectors_of_a_trace_have_unit_second_moments(trace):
    """mean v v^T = I, over directions and examples."""
    x, noise = torch.zeros(4000, 1, 2, 2), NoiseStream(0, range(4000), (1, 2, 2))
    v = torch.stack([v.flatten(1) for v in trace.vectors(x, noise)])
    second = torch.einsum("kbi,kbj->ij", v, v) / (len(x) * getattr(trace, "probes", 1))
    torch.testing.assert_close(second, torch.eye(4), rtol=0, atol=0.09)


def test_hutchinson_is_right_in_expectation_and_the_same_in_any_batch():
    score, x = MixtureScore(VP(), MIXTURE), torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    exact = log_likelihood(score, x, trace=ExactTrace()).value
    for trace in (Hutchinson(), Hutchinson(law=Gaussian())):
        noise = NoiseStream(0, range(300), (2,), dtype=torch.float64)
        solver = DormandPrince(1e-3, 1e-3)
        values = log_likelihood(score, x.expand(300, 2), noise, trace, solver).value
        assert float((values.mean() - exact).abs()) < 4 * float(values.std()) / math.sqrt(300) + 0.02
        alone = log_likelihood(score, x, NoiseStream(0, [7], (2,), dtype=torch.float64), trace, solver).value
        torch.testing.assert_close(values[7:8], alone, rtol=1e-9, atol=1e-9)


def test_networks_are_differentiated_and_their_evaluations_counted():
    torch.manual_seed(0)
    network = UNet((1, 2, 2), channels=8, multipliers=[1], blocks=1, attention=[2], groups=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    score, x = ScoreFunction(network, VP(), Noise()), torch.randn(2, 1, 2, 2)
    with torch.inference_mode():
        a = log_likelihood(score, x, trace=ExactTrace(), solver=DormandPrince(1e-2, 1e-2))
    assert bool(a.value.isfinite().all()) and a.nfe * 2 == score.evaluations and (a.nfe - 1) % 6 == 0
    assert network.training and all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("levels", "data_range", "dequantized", "offset"),
    [
        (256, (0, 1), True, 8),
        (256, (-1, 1), True, 7),
        (17, (0, 1), True, math.log2(17)),
        (17, (-1, 1), True, math.log2(17) - 1),
        (17, (0, 1), False, 4),
        (17, (-1, 1), False, 3),
    ],
)
def test_dequantization_adds_its_log_determinant(levels, data_range, dequantized, offset):
    from lightning_score.data.images import from_uint8, spread, to_uint8

    dequantization = Dequantization(levels, data_range, dequantized)
    assert dequantization.offset == pytest.approx(offset)
    images = spread(torch.arange(levels), levels).reshape(1, 1, 1, -1)
    x = from_uint8(images, data_range, levels, dequantized)
    torch.testing.assert_close(dequantization.level(x).flatten(), torch.arange(levels).float())
    noisy = dequantization(x, NoiseStream(0, [0], x.shape[1:]))
    assert not torch.equal(noisy, x)
    assert torch.equal(to_uint8(noisy, data_range, levels, dequantized), images)


@pytest.mark.parametrize("dequantized", [True, False])
def test_uniform_levels_take_log2_of_their_number(dequantized):
    """Under the density that is uniform over all bins."""
    dequantization = Dequantization(16, (-1, 1), dequantized)
    x = dequantization.low + dequantization.width * torch.arange(16.0).reshape(4, 1, 2, 2)

    def uniform(score, x, noise):
        value = torch.full((len(x),), -4 * math.log(16 * dequantization.width), dtype=torch.float64)
        return LogLikelihood(value, x, 0.0)

    bits = bits_per_dim(None, x, dequantization, likelihood=uniform)
    assert bits == pytest.approx((4.0, 0.0, 0.0, 4, 2), abs=1e-9)


def test_bits_bound_those_of_the_discrete_law():
    """Levels of a Gaussian: the bound lies above the entropy of its bins, and for narrow bins barely."""
    process, mixture = VE(0.01, 20.0), Mixture([[0.5]], [0.2])
    x = mixture.sample(400, torch.Generator().manual_seed(0)).clamp(0.01, 0.99).double()
    dequantization = Dequantization(16)
    likelihood = partial(log_likelihood, trace=ExactTrace(), prior=exactly(mixture))
    score, settings = MixtureScore(process, mixture), {"dequantization": dequantization, "likelihood": likelihood}
    bits = bits_per_dim(score, x, **settings, draws=8, batch_size=400)
    law = torch.distributions.Normal(0.5, (0.2**2 + 0.01**2) ** 0.5)
    low = dequantization.level(x) / 16
    discrete = -(law.cdf(low + 1 / 16) - law.cdf(low)).log2()
    assert float(discrete.mean()) < bits.mean < float(discrete.mean()) + 0.02
    assert 0 < bits.error < 0.1 and 0 < bits.spread < 0.02 and (bits.n, bits.draws) == (400, 8)
    whole, parts = (bits_per_dim(score, x[:50], **settings, batch_size=size) for size in (50, 20))
    assert parts == pytest.approx(whole, rel=1e-9)


def test_error_bars():
    bits = MeanLikelihood.of(torch.tensor([[1.0, 2.0, 3.0], [1.2, 2.2, 3.2]]))
    assert bits == pytest.approx((2.1, 1 / math.sqrt(3), 0.2 / math.sqrt(2), 3, 2))
    assert math.isnan(MeanLikelihood.of(torch.ones(1, 3)).spread)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dequantization(1), "levels=1"),
        (lambda: Dequantization(256, (1, 0)), "data_range="),
        (lambda: log_likelihood(MixtureScore(VP()), points(), t_min=0.0), "t_min=0.0"),
        (lambda: bits_per_dim(None, points(), Dequantization(), draws=0), "draws=0"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()


class TestCallback:
    """BitsPerDim within a trainer's test, on the digits."""

    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)

    def run(self, data, conditional=False, **settings):
        from lightning.pytorch import Trainer

        from lightning_score import BitsPerDim, ScoreModel

        torch.manual_seed(0)
        network = partial(UNet, channels=8, multipliers=[1], blocks=1, attention=[], groups=2)
        model = ScoreModel(network, data.shape, VP(), num_classes=data.num_classes, conditional=conditional)
        callback = BitsPerDim(**settings)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_test_batches=1,
            callbacks=[callback],
        )
        return trainer.test(model, data, verbose=False)[0], callback.last

    @pytest.mark.parametrize("conditional", [False, True])
    def test_it_logs_the_bits_with_their_errors(self, conditional):
        from lightning_score import Digits

        data = Digits(data_range=(-1, 1), dequantize=not conditional)
        logged, bits = self.run(data, conditional, num_examples=6, batch_size=6)
        assert logged["test/bits_per_dim"] == pytest.approx(bits.mean) and math.isfinite(bits.mean)
        assert logged["test/bits_per_dim_error"] == pytest.approx(bits.error) and bits.error > 0
        assert logged["test/bits_per_dim_n"] == bits.n == 6 and logged["test/bits_per_dim_spread"] > 0
        _, apart = self.run(data, conditional, num_examples=6, batch_size=4)
        assert apart.mean == pytest.approx(bits.mean, rel=1e-3)

    def test_it_refuses_continuous_data_and_empty_settings(self):
        from lightning_score import BitsPerDim, Digits, GaussianMixture, Nats

        with pytest.raises(InputError, match="GaussianMixture has no gray levels"):
            BitsPerDim().setup(type("Trainer", (), {"datamodule": GaussianMixture()}), None, "test")
        with pytest.raises(InputError, match=r"Digits has gray levels.* use the callback BitsPerDim"):
            Nats().check(Digits())
        with pytest.raises(InputError, match="num_examples=1"):
            BitsPerDim(1)
