"""Laws that samplers must obey. With the exact score of a Gaussian most steps are affine in x and z, so the moments of the
samples are known without drawing any.
"""

import math

import torch
from conftest import MixtureScore

from lightning_score.data import Mixture
from lightning_score.sampling import PredictorCorrector

MEAN, STD = 0.5, 0.4


class Draws:
    """Noise given by a test: the draws that set the size of a step are also the ones that it adds."""

    def drawn_and_added(self):
        z = self.normal()
        return z, z


class Given(Draws):
    """The same noise at every step."""

    def __init__(self, z):
        self.z = z

    def normal(self):
        return self.z


def gaussian(process, mean=MEAN, std=STD):
    return MixtureScore(process, Mixture([[mean]], [std]))


def affine(step):
    """(A, B, C) of a step x -> A x + B + C z, in one dimension."""
    x, z = (torch.tensor(v, dtype=torch.float64).unsqueeze(1) for v in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    b, a_plus_b, c_plus_b = step(x, Given(z)).flatten().tolist()
    return a_plus_b - b, b, c_plus_b - b


class Basis(Draws):
    """One-dimensional noise: row 2 + i of a batch sees only draw i, and rows 0 and 1 see none."""

    def __init__(self, draws):
        self.draws, self.used = draws, 0

    def normal(self):
        assert self.used < self.draws, f"a sampler drew noise more than {self.draws} times: give moments() as many draws"
        z = torch.zeros(2 + self.draws, 1, dtype=torch.float64)
        z[2 + self.used] = 1
        self.used += 1
        return z


def moments(score, stages, state, mean, variance):
    """Mean and variance after the stages, each of which draws noise at most once.

    The state of a method may depend on x, so the steps are not examined one by one: the whole map from x and all draws z is
    affine, x -> A x + B + sum_i C_i z_i, and its coefficients are the images of a basis.
    """
    noise, state = Basis(len(stages)), dict(state)
    x = torch.zeros(2 + len(stages), 1, dtype=torch.float64)
    x[1] = 1
    for method, t, s, _ in stages:
        x, state[method] = method.step(score, x, t, s, noise, state[method])
    x = x.flatten()
    a, b, c = x[1] - x[0], x[0], x[2:] - x[0]
    return float(a * mean + b), float(a**2 * variance + (c**2).sum())


def weak_error(predictor, process, steps, t_max, t_min):
    """Error of the mean and the standard deviation at t_min, from the exact law at t_max."""
    times = torch.linspace(t_max, t_min, steps + 1, dtype=torch.float64)
    stages = PredictorCorrector(predictor).plan(process, times)

    def law(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, alpha**2 * STD**2 + sigma**2

    states = {method: method.init(process, times) for method in {stage.method for stage in stages}}
    mean, variance = moments(gaussian(process), stages, states, *law(times[0]))
    exact_mean, exact_variance = law(times[-1])
    return abs(mean - exact_mean) + abs(math.sqrt(variance) - math.sqrt(exact_variance))
