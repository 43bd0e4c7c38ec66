"""Twisted SMC against exact posteriors, and its groups of samples that depend on one another."""

import itertools
import warnings

import pytest
import torch
from conftest import QuickNoise
from posteriors import TWO_MODES_Y, LawScore, gaussian, two_modes
from torch import nn

from lightning_score import ScoreModel
from lightning_score.errors import InputError
from lightning_score.guidance import Composed, Guidance, Observed, PseudoInverse
from lightning_score.observations import GaussianNoise, Mask
from lightning_score.process import VP
from lightning_score.sampling import (
    DDIM,
    Ancestral,
    DiffPIR,
    EulerMaruyama,
    Geometric,
    Heun,
    NoiseStream,
    NoPredictor,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SDEDPMSolver2M,
    TwistedSMC,
)
from lightning_score.sampling.twisted import transition
from lightning_score.score import EDM
from lightning_score.score.function import Conditioned
from lightning_score.training.inference import completed, share
from lightning_score.training.model import FittingBatches


def drawn(problem, y, guidance, sampler, n, seed=0):
    """Samples given one observation, with the exact score of the prior."""
    guidance.operator.observed_shape(problem.prior.shape)
    score = guidance.observe_with(y).guide(LawScore(VP(), problem.prior), torch.arange(n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sampler(score, QuickNoise((n, *problem.prior.shape), seed))


def standardized(x, law):
    """Samples in the units of the posterior's standard deviations."""
    whitening = torch.linalg.inv(torch.linalg.cholesky(law.covariance))
    return (x.flatten(1) - law.mean) @ whitening.mT


@pytest.mark.parametrize(
    "predictor",
    [Ancestral(), Ancestral(True), ReverseDiffusion(), EulerMaruyama(), DDIM(1.0)],
    ids=lambda p: type(p).__name__,
)
def test_the_transition_read_off_a_predictor_is_its_step(predictor):
    t, s, process = torch.tensor(0.6), torch.tensor(0.5), VP()
    a, b, c = transition(predictor, process, t, s)
    score = LawScore(process, gaussian(4, 2).prior)
    x, z = torch.randn(2, 5, 4, dtype=torch.float64)
    expected, _ = predictor.step(score, x, t, s, Given(z), None)
    torch.testing.assert_close(a * x + b * score(x, t) + c * z, expected)


class Given(QuickNoise):
    def __init__(self, z):
        super().__init__(z.shape)
        self.z = z

    def normal(self):
        return self.z


@pytest.mark.slow
def test_the_posterior_of_a_gaussian_is_exact():
    """Means and variances along the posterior's axes, within three standard errors of independent groups and, for variances,
    three per cent for the steps in time; the guidance is not exact: alone it has twice the variance along one direction.
    """
    problem, generator = gaussian(), torch.Generator().manual_seed(3)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    guidance = PseudoInverse(problem.operator, noise=problem.noise, data_std=0.5)
    particles, groups = 64, 48
    sampler = TwistedSMC(EulerMaruyama(), particles, grid=Geometric(400, 1e-3))
    out = drawn(problem, y, guidance, sampler, particles * groups)
    x = standardized(out.x, problem.posterior(y[0])).reshape(groups, particles, 16)
    for found, expected in ((x, 0.0), (x.square(), 1.0)):
        means = found.mean(1)
        error = means.std(0) / groups**0.5
        assert ((means.mean(0) - expected).abs() < 3 * error + 0.03 * expected).double().mean() > 0.9
    assert out.nfe == 400


@pytest.mark.slow
def test_mode_shares_converge_as_one_over_the_particles():
    """The share of the small mode: of many groups the mean error is the bias, c/P and a little for the steps in time."""
    problem = two_modes()
    exact = float(problem.posterior(TWO_MODES_Y[0]).weights[0])
    guidance = PseudoInverse(problem.operator, noise=problem.noise, data_std=1.2)
    errors = {}
    for particles, steps in ((2, 100), (8, 100), (128, 200)):
        sampler = TwistedSMC(particles=particles, grid=Geometric(steps, 1e-3))
        out = drawn(problem, TWO_MODES_Y, guidance, sampler, 16384)
        errors[particles] = exact - float(problem.posterior(TWO_MODES_Y[0]).shares(out.x)[0])
    assert errors[2] > 0.1 and abs(errors[128]) < 0.02
    assert 2 < errors[2] / errors[8] < 6
    alone = drawn(problem, TWO_MODES_Y, guidance, PredictorCorrector(Ancestral(), grid=Geometric(100, 1e-3)), 4096)
    assert exact - float(problem.posterior(TWO_MODES_Y[0]).shares(alone.x)[0]) > 0.1


def model(guidance, sampler):
    torch.manual_seed(0)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, label, cond=None):
            return self.layer(x)

    return ScoreModel(lambda shape, classes: Linear(), [3], VP(), EDM(0.5), sampler=sampler, guidance=guidance)


def observing(n=1, per=1):
    y = torch.linspace(-0.5, 0.5, n).unsqueeze(1)
    return PseudoInverse(Mask([1, 0, 0]), y, noise=GaussianNoise(2.0), samples_per_observation=per)


class Unchanged(Guidance):
    def guide(self, score, indices):
        return score


def test_a_sample_depends_on_its_group_alone():
    """Sample k is the same for any number of samples, in any batch, on any number of processes, and in little memory."""
    smc = TwistedSMC(particles=4, grid=Geometric(10, 1e-2))
    drawing = model(observing(3, 8), smc)
    whole = drawing.draw(range(24), 5)
    torch.testing.assert_close(drawing.draw([9], 5).x, whole.x[9:10])
    some = drawing.draw([18, 1, 2], 5)
    torch.testing.assert_close(some.x, whole.x[[18, 1, 2]])
    assert whole.nfe == 10 and some.nfe == pytest.approx(10 * 8 / 3) and whole.ess.shape == (24,)
    torch.testing.assert_close(drawing.sample(21, 5, batch_size=10), whole.x[:21])
    drawing._batches.size = 9
    torch.testing.assert_close(drawing.draw(range(24), 5).x, whole.x)
    for processes in (1, 2, 3):
        shares = [list(share(21, rank, processes, 4)) for rank in range(processes)]
        assert sorted(itertools.chain(*shares)) == list(range(21))
        assert not {k // 4 for k in shares[0]} & {k // 4 for part in shares[1:] for k in part}
    assert completed([9, 3, 8], 4) == ([0, 1, 2, 3, 8, 9, 10, 11], [1] * 4 + [0] * 4, [5, 3, 4])


def test_a_group_has_one_condition():
    score = Conditioned(observing().guide(LawScore(VP(), gaussian(3, 1).prior), torch.arange(4)), torch.tensor([0, 0, 1, 2]))
    with pytest.raises(InputError, match="the same condition"):
        TwistedSMC(particles=2)(score, NoiseStream(0, range(4), (3,)))


def test_a_group_that_does_not_fit_into_memory_is_said():
    def draw(here):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.warns(UserWarning, match="do not fit"), pytest.raises(InputError, match="particles=4: so many samples"):
        FittingBatches().draw(16, draw, 4)


def test_a_collapse_is_told_and_its_size_kept():
    smc = TwistedSMC(particles=8, grid=Geometric(5, 1e-2))
    guidance = Observed(Mask([1, 0, 0]), torch.tensor([[3.0]]), noise=GaussianNoise(0.01))
    with pytest.warns(UserWarning, match=r"in 2 of 2 groups the effective sample size fell to .* of particles=8"):
        found = model(guidance, smc).draw(range(16))
    assert found.ess.max() < 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: model(None, TwistedSMC(particles=2)), "sampler=TwistedSMC: needs an observation"),
        (lambda: model(Unchanged(), PredictorCorrector(DiffPIR())), "sampler=PredictorCorrector: needs an observation"),
        (lambda: model(None, None).draw([0], sampler=PredictorCorrector(DiffPIR())), "DiffPIR: needs an observation"),
        (lambda: model(observing(), TwistedSMC(DDIM())), "predictor=DDIM: .* draws noise"),
        (lambda: model(observing(), TwistedSMC(Heun())), "predictor=Heun: .* one evaluation per step"),
        (lambda: model(observing(), TwistedSMC(SDEDPMSolver2M())), "predictor=SDEDPMSolver2M: .* no memory"),
        (lambda: model(observing(), TwistedSMC(NoPredictor())), "predictor=NoPredictor: .* one evaluation"),
        (lambda: model(observing(), TwistedSMC(Restart(DDIM(1.0)))), "predictor=Restart"),
        (lambda: TwistedSMC(particles=1), "particles=1: must be at least 2"),
        (lambda: TwistedSMC(threshold=0), "threshold=0"),
        (lambda: model(observing(2), TwistedSMC(particles=4)).draw([0]), "same observation.*multiple of 4"),
        (
            lambda: model(Composed([observing(), observing()]), TwistedSMC(particles=2)).draw([0]),
            "TwistedSMC: takes one observation",
        ),
        (
            lambda: model(PseudoInverse(Mask([1, 0, 0]), torch.zeros(1, 1)), TwistedSMC(particles=2)).draw([0]),
            "exact observations have no density",
        ),
        (
            lambda: model(observing(), PredictorCorrector(DiffPIR(), clip=[-1, 1])).draw([0]),
            "DiffPIR: the guided score is changed afterwards by ClippedScore; set clip",
        ),
        (lambda: DiffPIR(strength=0), "strength=0"),
        (lambda: DiffPIR(zeta=2), "zeta=2"),
        (lambda: DiffPIR(repeats=0), "repeats=0"),
    ],
)
def test_mistakes(wrong, words):
    with pytest.raises(InputError, match=words):
        wrong()
