"""The exact score of a finite data set: its density, its limits, its labels and its precision."""

import math

import pytest
import torch

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.objective import ImplicitScoreMatching
from lightning_score.process import VE, VP
from lightning_score.score import empirical
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.tensors import broadcast_to


def points(n=30, shape=(2,), seed=0, dtype=torch.float64):
    return torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def log_density(process, data, x, t):
    """log of 1/M sum_m N(x; alpha x_m, sigma^2 I), written out."""
    alpha, sigma = broadcast_to(process.alpha(t), x), broadcast_to(process.sigma(t), x)
    squares = (x.unsqueeze(1) - alpha.unsqueeze(1) * data).square().flatten(2).sum(2)
    variance = sigma.reshape(len(x), 1) ** 2
    normal = -squares / (2 * variance) - x[0].numel() / 2 * (2 * math.pi * variance).log()
    return normal.logsumexp(1) - math.log(len(data))


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_score_is_the_gradient_of_the_log_density(noise_process, shape):
    data, x = points(shape=shape), points(7, shape, seed=1).requires_grad_()
    t = torch.linspace(0.2, 0.9, 7, dtype=torch.float64)
    exact = torch.autograd.grad(log_density(noise_process, data, x, t).sum(), x)[0]
    torch.testing.assert_close(EmpiricalScore(noise_process, data)(x.detach(), t), exact, rtol=1e-8, atol=1e-10)


def test_score_is_that_of_a_mixture_of_points():
    process, data, x, t = VP(), points(), points(50, seed=1), torch.tensor(0.3, dtype=torch.float64)
    mixture = Mixture(data.tolist(), [1e-9] * len(data))
    exact = mixture.score(x, process.alpha(t), process.sigma(t))
    torch.testing.assert_close(EmpiricalScore(process, data)(x, t), exact)


def test_blocks_change_nothing(monkeypatch):
    score, x, t = EmpiricalScore(VP(), points(101)), points(10, seed=1), torch.full((10,), 0.2, dtype=torch.float64)
    whole = score(x, t)
    monkeypatch.setattr(empirical, "BLOCK", 70)
    torch.testing.assert_close(score(x, t), whole)
    assert score.evaluations == 20


def test_single_precision_suffices_for_little_noise_on_large_images():
    """Squares of norms would cancel: |x|^2 is 3e7 times sigma^2."""
    data = points(5, (3, 32, 32), dtype=torch.float32)
    data[1] = data[0] + 0.002 * points(1, (3, 32, 32), seed=2, dtype=torch.float32)[0]
    x, t = data[:2].mean(0, keepdim=True) + 0.001 * points(1, (3, 32, 32), seed=3, dtype=torch.float32), torch.tensor(0.0)
    process = VE(0.01, 10.0)
    exact = EmpiricalScore(process, data.double()).denoised(x.double(), t.double())
    weight = (EmpiricalScore(process, data).denoised(x, t) - data[0]).norm() / (data[1] - data[0]).norm()
    assert 0.2 < float(weight) < 0.8
    assert float(weight) == pytest.approx(float((exact - data[0]).norm() / (data[1] - data[0]).double().norm()), rel=1e-3)


def test_far_from_all_points_and_between_the_ends_nothing_is_nan(noise_process):
    score = EmpiricalScore(noise_process, points(dtype=torch.float32))
    t = torch.tensor([noise_process.t_min, 0.5, 1.0])
    assert bool(score(torch.tensor([[1e4, 0.0]]).expand(3, 2), t).isfinite().all())


def test_its_divergence_is_that_of_the_density():
    """Guidance and likelihoods differentiate a score in x."""
    data, x, t = points(), points(4, seed=1), torch.tensor(0.5, dtype=torch.float64)
    score = EmpiricalScore(VP(), data)
    loss = ImplicitScoreMatching().at(score, x, t, x) - score(x, t).square().sum(1) / 2
    hessians = [
        torch.autograd.functional.hessian(lambda r: log_density(VP(), data, r[None], t[None]).sum(), row) for row in x
    ]
    torch.testing.assert_close(loss, torch.stack([hessian.trace() for hessian in hessians]))


def test_labels_select_the_points_of_a_class():
    data, labels, x = points(), torch.arange(30) % 3, points(6, seed=1)
    score, t = EmpiricalScore(VP(), data, labels), torch.tensor(0.4, dtype=torch.float64)
    cond = torch.tensor([0, 1, 2, 0, 1, 3])  # nothing has label 3, which means "no class"
    expected = [EmpiricalScore(VP(), data[labels == y] if y < 3 else data)(x[i : i + 1], t) for i, y in enumerate(cond)]
    torch.testing.assert_close(score(x, t, cond), torch.cat(expected))
    torch.testing.assert_close(score(x, t), EmpiricalScore(VP(), data)(x, t))


def test_refuses_empty_data_and_labels_of_another_length():
    with pytest.raises(InputError, match="data of length 0"):
        EmpiricalScore(VP(), torch.zeros(0, 2))
    with pytest.raises(InputError, match=r"labels of length 2: .* 3 points"):
        EmpiricalScore(VP(), torch.zeros(3, 2), torch.zeros(2))
