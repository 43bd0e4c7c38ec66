"""Implicit and sliced score matching: traces, gradients, and one minimizer with the denoising loss."""

import pytest
import torch
from conftest import MixtureScore
from torch import nn

from lightning_score.data import GaussianMixture
from lightning_score.errors import InputError
from lightning_score.networks import MLP, UNet
from lightning_score.objective import (
    DenoisingScoreMatching,
    ExactTrace,
    ExplicitScoreMatching,
    FixedTimes,
    Gaussian,
    Hutchinson,
    ImplicitScoreMatching,
    Rademacher,
    SlicedScoreMatching,
)
from lightning_score.process import VE
from lightning_score.score.function import ScoreFunction
from lightning_score.score.parametrization import ScoreOverSigma

SIGMA = 0.5
TIMES = FixedTimes(SIGMA)
OBJECTIVES = {
    "dsm": lambda: DenoisingScoreMatching(times=TIMES),
    "esm": lambda: ExplicitScoreMatching(times=TIMES),
    "ism-exact": lambda: ImplicitScoreMatching(times=TIMES),
    "ism-hutchinson": lambda: ImplicitScoreMatching(times=TIMES, trace=Hutchinson()),
    "ism-gaussian": lambda: ImplicitScoreMatching(times=TIMES, trace=Hutchinson(2, Gaussian())),
    "ssm": lambda: SlicedScoreMatching(times=TIMES, variance_reduced=False),
    "ssm-vr": lambda: SlicedScoreMatching(times=TIMES),
}


def process():
    return VE(0.05, 5.0)


def network(shape, cond=0):
    """A network whose last layer is not zero, so that gradients reach everything."""
    torch.manual_seed(0)
    if len(shape) == 1:
        built = MLP(shape, cond, 16, 1)
        nn.init.normal_(built.linear_out.weight, std=0.3)
    else:
        built = UNet(shape, cond, 8, (1, 2), 1, (2,), 0.0, 4)
        for part in built.modules():
            if isinstance(part, nn.Conv2d | nn.Linear) and not part.weight.any():
                nn.init.normal_(part.weight, std=0.1)
    return ScoreFunction(built, process(), ScoreOverSigma(1.0))


def jacobian_trace(score, x, t):
    """The trace row by row, from the whole Jacobian."""
    rows = [torch.autograd.functional.jacobian(lambda r: score(r[None], t)[0].flatten(), r) for r in x]
    return torch.stack([row.reshape(row.shape[0], -1).trace() for row in rows])


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)], ids=["mlp", "unet"])
def test_exact_trace(shape):
    score, t = network(shape), torch.tensor(0.5)
    x = torch.randn(3, *shape)
    loss = ImplicitScoreMatching().at(score, x, t, torch.zeros_like(x))
    expected = score(x, t).square().flatten(1).sum(1) / 2 + jacobian_trace(score, x, t)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def draws(objective, score, x, t, n):
    """The loss of every row of x with n independent draws of its vectors, (n, B)."""
    x = x.repeat(n, 1)
    return objective.at(score, x, t, x).detach().unflatten(0, (n, -1))


@pytest.mark.parametrize("law", [Rademacher(), Gaussian()], ids=lambda p: type(p).__name__)
def test_hutchinson_has_the_exact_trace_as_its_mean(law):
    score, t, x = network((3,)), torch.tensor(0.5), torch.randn(4, 3)
    exact = ImplicitScoreMatching().at(score, x, t, x)
    many = draws(ImplicitScoreMatching(trace=Hutchinson(20, law)), score, x, t, 100).mean(0)
    one = draws(ImplicitScoreMatching(trace=Hutchinson(1, law)), score, x, t, 200)
    error = one.std(0) / 2000**0.5
    assert bool(((many - exact).abs() < 4 * error + 1e-4).all())


@pytest.mark.parametrize("variance_reduced", [False, True])
def test_sliced_score_matching_has_the_implicit_loss_as_its_mean(variance_reduced):
    score, t, x = network((3,)), torch.tensor(0.5), torch.randn(4, 3)
    exact = ImplicitScoreMatching().at(score, x, t, x)
    sliced = draws(SlicedScoreMatching(law=Gaussian(), variance_reduced=variance_reduced), score, x, t, 1000)
    assert bool(((sliced.mean(0) - exact).abs() < 4 * sliced.std(0) / 1000**0.5).all())


def test_the_reduced_form_varies_less():
    score, t, x = network((3,)), torch.tensor(0.5), torch.randn(4, 3) * 2
    plain, reduced = (
        draws(SlicedScoreMatching(law=Gaussian(), variance_reduced=reduced), score, x, t, 500).var(0).mean()
        for reduced in (False, True)
    )
    assert float(reduced) < float(plain)


def test_implicit_differs_from_denoising_by_a_constant():
    """Hyvarinen's theorem for p_sigma: the same difference of losses between two scores."""
    torch.manual_seed(0)
    data = GaussianMixture()
    x = data.mixture.sample(40_000)
    exact = MixtureScore(process(), data.mixture)

    class Bent(MixtureScore):
        def forward(self, x, t, cond=None):
            return super().forward(x, t) + torch.sin(x)

    differences = []
    for name in ("dsm", "ism-exact"):
        values = []
        for score in (Bent(process(), data.mixture), exact):
            torch.manual_seed(1)
            values.append(OBJECTIVES[name]()(score, x))
        differences.append(values[0] - values[1])
    denoising, implicit = differences
    error = float((denoising - implicit).std()) / len(x) ** 0.5
    assert abs(float((denoising - implicit).mean())) < 4 * error < 0.1 * float(denoising.mean())


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=["mlp", "unet"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_reaches_every_parameter(name, shape):
    """Through second derivatives of the network for all losses with a trace."""
    score, x, cond = network(shape, 3), torch.randn(4, *shape), torch.tensor([0, 1, 2, 3])
    objective = OBJECTIVES[name]()
    objective.prepare(x)
    objective(score, x, None if objective.needs_data else cond).mean().backward()
    for parameter, values in score.named_parameters():
        if not (objective.needs_data and "class" in parameter):
            assert values.grad is not None and bool(values.grad.isfinite().all()) and bool(values.grad.any()), parameter


@pytest.mark.parametrize("name", OBJECTIVES)
def test_validation_computes_the_loss_too(name):
    """Lightning validates in inference mode."""
    score, x, objective = network((2,)), torch.randn(8, 2), OBJECTIVES[name]()
    objective.prepare(x)
    torch.manual_seed(0)
    trained = objective(score, x)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            torch.manual_seed(0)
            torch.testing.assert_close(objective(score, x), trained.detach())


def test_implicit_with_random_signs_is_sliced_score_matching_with_reduced_variance():
    score, x, losses = network((3,)), torch.randn(8, 3), []
    for name in ("ism-hutchinson", "ssm-vr"):
        torch.manual_seed(0)
        losses.append(OBJECTIVES[name]()(score, x))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("ism-exact", "ssm-vr") else pytest.mark.slow)
        for name in OBJECTIVES
        if name != "ism-hutchinson"  # the same loss as ssm-vr
    ],
)
def test_all_objectives_train_to_the_same_score(name):
    """A small network learns the score of p_sigma from each: E||learned - exact||^2 < 0.05 E||exact||^2."""
    data = GaussianMixture(num_samples=10_000)
    x = data.splits.train.x
    torch.manual_seed(0)
    score = ScoreFunction(MLP((2,), width=32, depth=1), process(), ScoreOverSigma(1.0))
    objective = OBJECTIVES[name]()
    objective.prepare(x[:500])  # at this noise level their score is that of all
    steps = 400
    optimizer = torch.optim.Adam(score.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        loss = objective(score, x[torch.randint(len(x), (512,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    t = TIMES.quantile(process(), torch.ones(()))
    x_t = data.mixture.sample(5000).float()
    x_t = x_t + SIGMA * torch.randn_like(x_t)
    exact = MixtureScore(process(), data.mixture)(x_t, t)
    error = float((score(x_t, t).detach() - exact).square().sum() / exact.square().sum())
    print(f"{name}: relative squared error {error:.4f}")
    assert error < 0.05


def test_number_of_probes():
    with pytest.raises(InputError, match="probes=0"):
        Hutchinson(0)
    with pytest.raises(InputError, match="probes=0"):
        SlicedScoreMatching(probes=0)


def test_exact_trace_of_a_linear_map():
    matrix = torch.randn(4, 4)
    exact = ExactTrace()
    trace = exact(lambda v: v @ matrix, exact.vectors(torch.zeros(3, 4)))
    torch.testing.assert_close(trace, matrix.trace().expand(3))
