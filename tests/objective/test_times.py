"""Time distributions: their laws, stratified or not, and the unbiasedness of importance sampling."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from lightning_score import objective as objectives
from lightning_score.errors import InputError
from lightning_score.objective import (
    DenoisingScoreMatching,
    FixedTimes,
    ImportanceTimes,
    Likelihood,
    LogNormalTimes,
    TableTimes,
    UniformTimes,
)
from lightning_score.process import VE, VP, BetaTable, Cosine, SigmaTable
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import Noise

LAWS = [UniformTimes, LogNormalTimes, TableTimes, ImportanceTimes]


class Damped(nn.Module):
    """A network whose error depends on the noise level."""

    def forward(self, x, noise_label, cond=None):
        return 0.5 * torch.tanh(x) * torch.sigmoid(noise_label).unsqueeze(1)


def test_uniform_times_cover_the_interval():
    torch.manual_seed(0)
    t = UniformTimes(0.2).sample(VP(), torch.zeros(10000))
    assert 0.2 < float(t.min()) < 0.21 and 0.99 < float(t.max()) <= 1 and abs(float(t.mean()) - 0.6) < 0.01
    assert float(UniformTimes().sample(VP(), torch.zeros(10000)).min()) >= VP.t_min


@pytest.mark.parametrize("stratified", [False, True])
def test_log_normal_times(stratified):
    torch.manual_seed(0)
    for process in (VE(1e-4, 1e4), BetaTable()):
        times = LogNormalTimes(-0.5, 0.8, stratified).sample(process, torch.zeros(20000))
        log_sigma = -process.log_snr(times) / 2
        assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=0.03)
        assert float(log_sigma.std()) == pytest.approx(0.8, abs=0.02)
    assert float(LogNormalTimes(-20.0).sample(VP(), torch.zeros(100)).min()) == pytest.approx(VP.t_min)
    edges = LogNormalTimes().quantile(VP(), torch.tensor([0.0, 1e-9, 1.0]))
    assert bool(((edges > 0) & (edges <= 1)).all())


def test_a_law_is_fitted_to_a_density_at_uneven_levels():
    x = torch.linspace(-2, 2, 201, dtype=torch.float64) ** 3
    density = 7 * torch.exp(-(((x - 0.3) / 1.1) ** 2) / 2) - 1e-9
    law = LogNormalTimes.fitted(x, density)
    assert (law.mean, law.std) == (pytest.approx(0.3, abs=1e-4), pytest.approx(1.1, rel=1e-3))
    with pytest.raises(InputError, match="positive at two noise levels"):
        LogNormalTimes.fitted(x, -density.clamp(min=0))


def test_table_times_are_the_entries_with_equal_probability():
    torch.manual_seed(0)
    process = SigmaTable(levels=10)
    t = TableTimes().sample(process, torch.zeros(20000))
    counts = torch.bincount(process.index(t), minlength=11)[1:]
    torch.testing.assert_close(t, (process.index(t) / 10).float())
    assert int(counts.min()) > 1800 and int(counts.max()) < 2200
    stratified = TableTimes(stratified=True).sample(process, torch.zeros(200))
    assert torch.bincount(process.index(stratified), minlength=11)[1:].sub(20).abs().max() <= 1


def test_half_precision_reaches_every_entry():
    torch.manual_seed(0)
    t = TableTimes().quantile(BetaTable(), (torch.arange(1000) + 0.5) / 1000)
    assert torch.equal(BetaTable().index(t), torch.arange(1, 1001))
    assert TableTimes().sample(BetaTable(), torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_table_times_refuse_a_continuous_process():
    with pytest.raises(InputError, match="VP is a continuous process"):
        DenoisingScoreMatching(times=TableTimes()).check(VP())


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1), (math.inf, 1), (1e300, 1), (0, math.inf), (0, math.nan), (0, 0)])
def test_normal_logarithms_of_noise_have_finite_moments(mean, std):
    with pytest.raises(InputError, match=r"must lie between -100 and 100|must be above 0 and at most 100"):
        LogNormalTimes(mean, std)


def test_fixed_times_are_at_one_noise_level(noise_process):
    t = FixedTimes(0.5).sample(noise_process, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(noise_process.noise_level(t), torch.full((4,), 0.5, dtype=torch.float64))
    FixedTimes(0.5).check(noise_process)
    with pytest.raises(InputError, match=r"sigma=1e-06: .* has noise levels sigma/alpha from"):
        DenoisingScoreMatching(times=FixedTimes(1e-6)).check(noise_process)


def test_importance_times_follow_their_density(noise_process):
    """The density, g^2/sigma^2 up to a constant, integrates over [t_min, t] to the probability of these times."""
    torch.manual_seed(0)
    law = ImportanceTimes(0.05)
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = law.quantile(noise_process, u)
    grid = torch.linspace(0.05, noise_process.t_signal, 200_001, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    cdf = nn.functional.pad((law.density(noise_process, middle) * grid.diff()).cumsum(0), (1, 0))
    assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
    position = torch.searchsorted(grid, t).clamp(1)
    torch.testing.assert_close(cdf[position], u, atol=4e-3, rtol=0)


@pytest.mark.parametrize("process", [VP(), VE(), Cosine(), SigmaTable(levels=50)], ids=lambda p: type(p).__name__)
def test_importance_times_keep_the_loss_and_lower_its_variance(process):
    torch.manual_seed(0)
    score, x = ScoreFunction(Damped(), process, Noise()), torch.randn(100_000, 2)
    t_min = max(process.t_min, 0.01)

    def losses(times):
        return DenoisingScoreMatching(Likelihood(), times)(score, x)

    uniform, importance = losses(UniformTimes(t_min)), losses(ImportanceTimes(t_min))
    error = ((uniform.var() + importance.var()) / len(x)).sqrt()
    assert bool(importance.isfinite().all())
    assert abs(float(uniform.mean() - importance.mean())) < 4 * float(error)
    if type(process) in (VP, Cosine):  # elsewhere g^2/sigma^2 is constant and the two laws are the same
        assert float(importance.var()) < 0.8 * float(uniform.var())


def test_importance_times_refuse_infinite_density():
    with pytest.raises(InputError, match=r"t_min=0: must be a time at which VP has noise"):
        DenoisingScoreMatching(times=ImportanceTimes(0)).check(VP())


@pytest.mark.parametrize("law", LAWS, ids=lambda c: c.__name__)
def test_stratified_times_have_the_same_law(law):
    torch.manual_seed(0)
    process = BetaTable() if law is TableTimes else VP()
    once = torch.stack([law(stratified=True).sample(process, torch.zeros(5)) for _ in range(4000)])
    independent = law().sample(process, torch.zeros(20000))
    for column in once.unbind(1):  # each of a batch's times
        assert kstest(column.numpy(), independent.numpy()).statistic < 0.035


@pytest.mark.parametrize("law", LAWS, ids=lambda c: c.__name__)
def test_stratified_times_lower_the_variance_of_a_batch(law):
    torch.manual_seed(0)
    process = BetaTable() if law is TableTimes else VP()

    def variance(stratified):
        means = [law(stratified=stratified).sample(process, torch.zeros(64)).mean() for _ in range(500)]
        return float(torch.stack(means).var())

    assert variance(True) < 0.05 * variance(False)


def test_every_law_has_been_looped_over():
    laws = {c for c in vars(objectives).values() if isinstance(c, type) and issubclass(c, objectives.TimeDistribution)}
    assert laws == {objectives.TimeDistribution, FixedTimes, *LAWS}
